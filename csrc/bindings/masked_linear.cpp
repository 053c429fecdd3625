#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../kernels/isa.h"
#include "padded_rows.h"
#include "parallel.h"
#include "tangent_activation.h"

namespace llr_fast {
namespace {

using torch::stable::flatten;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::to;
using torch::stable::view;
using MaybeTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
void measure(const Tensor& values, Statistic statistic, const Tensor& stat) {
  const auto kernel = kernels<T>().measure;
  const int64_t K = values.size(0), n = stat.numel();
  torch::stable::parallel_for(0, n, kTangentBlock, [&](int64_t begin, int64_t end) {
    kernel(data<T>(values), K, n, statistic, mutable_data<T>(stat), begin, end);
  });
}

// Adds values [K, B, n] to their statistic [B, n].
void measure(const Tensor& values, Statistic statistic, const Tensor& stat) {
  (stat.scalar_type() == ScalarType::Double ? measure<double> : measure<float>)(values, statistic, stat);
}

struct Arguments {
  ScalarType dtype, wide;
  Tensor tangents, slope, weight;

  Arguments(const Tensor& tangents_, const Tensor& slope_, const Tensor& weight_)
      : dtype(tangents_.scalar_type()), wide(dtype == ScalarType::Double ? dtype : ScalarType::Float) {
    STD_TORCH_CHECK(tangents_.dim() == 3 && slope_.dim() == 2 && weight_.dim() == 2 && tangents_.size(0) > 0 &&
                        (tangents_.size(1) == slope_.size(0) || tangents_.size(1) == 1) &&
                        tangents_.size(2) == slope_.size(1) && weight_.size(1) == slope_.size(1),
                    "masked_linear: expected tangents [K, B or 1, I], slope [B, I] and weight [O, I]");
    STD_TORCH_CHECK(slope_.scalar_type() == dtype && weight_.scalar_type() == dtype, "masked_linear: dtypes differ");
    tangents = to(tangents_, wide), slope = to(slope_, wide), weight = to(weight_, wide);
  }

  // Of tangents k to k + count - 1: [count * B, I]
  Tensor masked(int64_t k, int64_t count) const { return flatten(multiply(part(tangents, 0, k, count), slope), 0, 1); }
  int64_t rows() const { return slope.size(0); }
  int64_t outputs() const { return weight.size(0); }
};

// Whether to compute sample by sample with active neurons alone, rather than all samples with all neurons. Gathering
// takes directions to pay, and threads samples of their own. Measured on one core of a Zen 4, 512 neurons to 512: with
// half of them active plain torch takes 1.3 times as long for 32 directions, 2.0 for 256; with three quarters 1.1 and
// 1.4. The product of all takes as long as plain torch, which is almost all product as well.
bool few_are_active(const Arguments& a) {
  constexpr int64_t least_directions = 32;
  if (a.tangents.size(0) < least_directions || a.rows() < torch::stable::get_num_threads()) return false;
  const Tensor slope = torch::stable::contiguous(a.slope);
  const auto dead = [&]<class T>(const T* first) { return std::count(first, first + slope.numel(), T(0)); };
  return 4 * (a.wide == ScalarType::Double ? dead(data<double>(slope)) : dead(data<float>(slope))) > slope.numel();
}

template <class T>
struct Gathered {
  Tensor tangents, slope, weight, weight_transposed;
  MaskedLinear<T> view;

  Gathered(const Arguments& a, Statistic statistic)
      : tangents(with_padded_rows<T>(a.tangents)),
        slope(torch::stable::contiguous(a.slope)),
        weight(with_padded_rows<T>(a.weight)),
        weight_transposed(with_padded_rows<T>(transposed(a.weight))),
        view{.K = tangents.size(0),
             .B = a.rows(),
             .n = slope.size(1),
             .outputs = a.outputs(),
             .k_stride = tangents.stride(0),
             .b_stride = tangents.size(1) < a.rows() ? 0 : tangents.stride(1),
             .tangents = data<T>(tangents),
             .slope = data<T>(slope),
             .weight = data<T>(weight),
             .weight_transposed = data<T>(weight_transposed),
             .statistic = statistic} {}

  int64_t threads() const {
    const int64_t widest = std::max(view.n, view.outputs);
    return thread_count<T>(view.B, 4 * widest * widest);
  }
};

template <class T>
void forward_gathered(const Arguments& a, Statistic statistic, const Tensor& out, const Tensor& stat) {
  const Gathered<T> g(a, statistic);
  share_batch(a.rows(), g.threads(), [&](int64_t, int64_t first, int64_t last) {
    kernels<T>().masked_linear(g.view, out.numel() ? mutable_data<T>(out) : nullptr, mutable_data<T>(stat), first,
                               last);
  });
}

// The gradients by tangents, by slopes, which is not computed, and by weight.
template <class T>
Gradients backward_gathered(const Arguments& a, const Tensor& d_out, bool needs_weight) {
  const Gathered<T> g(a, Statistic::sum_squares);
  const int64_t K = g.view.K, n = g.view.n, width = padded<T>(n), threads = g.threads();
  const bool shared = g.view.b_stride == 0;
  // Where samples share tangents, each thread sums the gradients of its own samples.
  const Tensor d_tangents = new_zeros(a.slope, {shared ? threads : K, shared ? K : a.rows(), width});
  const Tensor d_weight = new_zeros(a.slope, {needs_weight ? threads : 0, a.outputs(), width});
  share_batch(a.rows(), threads, [&](int64_t thread, int64_t first, int64_t last) {
    MaskedLinearGradients<T> to{data<T>(d_out), mutable_data<T>(d_tangents), a.rows() * width, width, nullptr};
    if (shared) to.d_tangents += thread * K * width, to.k_stride = width, to.b_stride = 0;
    if (needs_weight) to.d_weight = mutable_data<T>(d_weight) + thread * a.outputs() * width;
    kernels<T>().masked_linear_backward(g.view, to, first, last);
  });
  const Tensor by_tangents = shared ? torch::stable::unsqueeze(summed(d_tangents, n), 1) : part(d_tangents, 2, 0, n);
  const Tensor none = new_empty(a.weight, {0});
  return {torch::stable::contiguous(by_tangents), none, needs_weight ? summed(d_weight, n) : none};
}

void forward_dense(const Arguments& a, Statistic statistic, const Tensor& out, const Tensor& stat) {
  const int64_t K = a.tangents.size(0), B = a.rows(), O = a.outputs();
  // Tangents whose masked copy and product stay in the cache until they are measured; enough rows for a fast product.
  const int64_t chunk = std::clamp<int64_t>((1 << 20) / std::max<int64_t>(1, B * (O + a.slope.size(1))), 1, K);
  const bool store = out.dim() == 3;
  const Tensor products = store ? flatten(out, 0, 1) : new_empty(a.slope, {chunk * B, O});
  for (int64_t k = 0; k < K; k += chunk) {
    const int64_t count = std::min(chunk, K - k);
    const Tensor product = part(products, 0, store ? k * B : 0, count * B);
    mm_out(product, a.masked(k, count), transposed(a.weight));
    measure(view(product, {count, B * O}), statistic, stat);
  }
}

std::tuple<Tensor, Tensor> masked_linear(Tensor tangents, Tensor slope, Tensor weight, std::string name, bool store) {
  const Arguments a(tangents, slope, weight);
  const Tensor stat = new_zeros(a.slope, {a.rows(), a.outputs()});
  const Tensor out = store ? new_output(a.slope, {tangents.size(0), a.rows(), a.outputs()}) : new_empty(a.slope, {0});
  const auto gathered = a.wide == ScalarType::Double ? forward_gathered<double> : forward_gathered<float>;
  (few_are_active(a) ? gathered : forward_dense)(a, statistic_named(name), out, stat);
  return {to(out, a.dtype), stat};
}

// The gradient by out, [K, B, O], of what arrives at out and at its statistic.
Tensor gradient_by_out(const Arguments& a, MaybeTensor d_out, const MaybeTensor& d_stat, const MaybeTensor& out,
                       const std::string& name) {
  if (d_out) d_out = torch::stable::contiguous(to(*d_out, a.wide));
  if (!d_stat) {
    STD_TORCH_CHECK(d_out, "masked_linear: no upstream gradient");
    return *d_out;
  }
  // The statistic is that of an activation of slope 1.
  const Tensor ones = torch::stable::full(std::vector<int64_t>{a.rows(), a.outputs()}, 1.0, a.wide);
  const Tensor product =
      out ? to(*out, a.wide) : std::get<0>(masked_linear(a.tangents, a.slope, a.weight, name, /*store=*/true));
  const Tensor stat = new_zeros(a.slope, {a.rows(), a.outputs()});
  if (statistic_named(name) == Statistic::max_abs) measure(product, Statistic::max_abs, stat);
  return std::get<0>(tangent_activation_backward(d_out, d_stat, product, ones, stat, name, /*needs_slope=*/false));
}

Gradients backward_dense(const Arguments& a, const Tensor& d_out, bool needs_slope, bool needs_weight) {
  const Tensor rows = flatten(d_out, 0, 1);
  const Tensor d_masked = view(mm(rows, a.weight), {d_out.size(0), a.rows(), a.slope.size(1)});
  const auto [d_tangents, d_slope] =
      tangent_activation_backward(d_masked, std::nullopt, a.tangents, a.slope, a.slope, "sum_squares", needs_slope);
  const Tensor none = new_empty(a.weight, {0});
  return {d_tangents, d_slope, needs_weight ? mm(transposed(rows), a.masked(0, d_out.size(0))) : none};
}

Gradients masked_linear_backward(MaybeTensor d_out, MaybeTensor d_stat, MaybeTensor out, Tensor tangents, Tensor slope,
                                 Tensor weight, std::string name, bool needs_slope, bool needs_weight) {
  const Arguments a(tangents, slope, weight);
  const Tensor gradient = gradient_by_out(a, d_out, d_stat, out, name);
  const auto gathered = a.wide == ScalarType::Double ? backward_gathered<double> : backward_gathered<float>;
  // The gradient by the slope of an inactive neuron needs its tangents too.
  const bool active_only = !needs_slope && few_are_active(a);
  const auto [d_tangents, d_slope, d_weight] =
      active_only ? gathered(a, gradient, needs_weight) : backward_dense(a, gradient, needs_slope, needs_weight);
  return {to(d_tangents, a.dtype), to(d_slope, a.dtype), to(d_weight, a.dtype)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("masked_linear(Tensor tangents, Tensor slope, Tensor weight, str statistic, bool store) -> (Tensor, Tensor)");
  m.def(
      "masked_linear_backward(Tensor? d_out, Tensor? d_stat, Tensor? out, Tensor tangents, Tensor slope, Tensor weight,"
      " str statistic, bool needs_slope, bool needs_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&masked_linear));
  m.impl("masked_linear_backward", TORCH_BOX(&masked_linear_backward));
}

}  // namespace llr_fast
