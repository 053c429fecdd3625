#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "tangent_activation.h"

namespace llr_fast {
namespace {

using torch::stable::flatten;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::to;
using torch::stable::view;

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

std::tuple<Tensor, Tensor> masked_linear(Tensor tangents, Tensor slope, Tensor weight, std::string name, bool store) {
  const Arguments a(tangents, slope, weight);
  const Statistic statistic = statistic_named(name);
  const int64_t K = tangents.size(0), B = a.rows(), O = a.outputs();
  // Tangents whose masked copy and product stay in the cache until they are measured; enough rows for a fast product.
  const int64_t chunk = std::clamp<int64_t>((1 << 20) / std::max<int64_t>(1, B * (O + slope.size(1))), 1, K);
  const Tensor stat = new_zeros(a.slope, {B, O});
  const Tensor out = store ? new_output(a.slope, {K * B, O}) : new_empty(a.slope, {0});
  const Tensor products = store ? out : new_empty(a.slope, {chunk * B, O});
  for (int64_t k = 0; k < K; k += chunk) {
    const int64_t count = std::min(chunk, K - k);
    const Tensor product = part(products, 0, store ? k * B : 0, count * B);
    mm_out(product, a.masked(k, count), transposed(a.weight));
    measure(view(product, {count, B * O}), statistic, stat);
  }
  return {store ? to(view(out, {K, B, O}), a.dtype) : to(out, a.dtype), stat};
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(std::optional<Tensor> d_out, std::optional<Tensor> d_stat,
                                                          std::optional<Tensor> out, Tensor tangents, Tensor slope,
                                                          Tensor weight, std::string name, bool needs_slope,
                                                          bool needs_weight) {
  const Arguments a(tangents, slope, weight);
  const int64_t K = tangents.size(0), B = a.rows(), O = a.outputs();
  const Tensor masked = a.masked(0, K);
  Tensor gradient;
  if (d_stat) {
    // The statistic is that of an activation of slope 1.
    const Tensor ones = torch::stable::full(std::vector<int64_t>{B, O}, 1.0, a.wide);
    const Tensor product = out ? to(*out, a.wide) : view(mm(masked, transposed(a.weight)), {K, B, O});
    const Tensor stat = new_zeros(a.slope, {B, O});
    if (statistic_named(name) == Statistic::max_abs) measure(product, Statistic::max_abs, stat);
    if (d_out) d_out = to(*d_out, a.wide);
    gradient = std::get<0>(tangent_activation_backward(d_out, d_stat, product, ones, stat, name, false));
  } else {
    STD_TORCH_CHECK(d_out, "masked_linear: no upstream gradient");
    gradient = to(*d_out, a.wide);
  }
  gradient = torch::stable::reshape(gradient, {K * B, O});
  const Tensor d_masked = view(mm(gradient, a.weight), {K, B, slope.size(1)});
  const auto [d_tangents, d_slope] =
      tangent_activation_backward(d_masked, std::nullopt, a.tangents, a.slope, a.slope, "sum_squares", needs_slope);
  const Tensor d_weight = needs_weight ? mm(transposed(gradient), masked) : new_empty(a.weight, {0});
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
