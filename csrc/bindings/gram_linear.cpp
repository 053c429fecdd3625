#include <optional>
#include <tuple>

#include "../kernels/isa.h"
#include "padded_rows.h"
#include "parallel.h"

namespace llr_fast {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::to;
using MaybeTensor = std::optional<Tensor>;

ScalarType checked_dtype(const Tensor& gram, const Tensor& slope, const Tensor& weight) {
  STD_TORCH_CHECK(gram.dim() == 3 && slope.dim() == 2 && weight.dim() == 2 && gram.size(1) == slope.size(1) &&
                      gram.size(2) == slope.size(1) && weight.size(1) == slope.size(1) &&
                      (gram.size(0) == slope.size(0) || gram.size(0) == 1),
                  "gram_linear: expected gram [B or 1, n, n], slope [B, n] and weight [O, n]");
  const ScalarType dtype = gram.scalar_type();
  STD_TORCH_CHECK(slope.scalar_type() == dtype && weight.scalar_type() == dtype, "gram_linear: dtypes differ");
  return dtype;
}

template <class T>
constexpr ScalarType scalar_type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class T>
struct Layer {
  Tensor gram, slope, weight, weight_transposed;
  int64_t batch, n, outputs, grams;

  Layer(const Tensor& gram_, const Tensor& slope_, const Tensor& weight_)
      : gram(with_padded_rows<T>(to(gram_, scalar_type<T>))),
        slope(contiguous(to(slope_, scalar_type<T>))),
        weight(with_padded_rows<T>(to(weight_, scalar_type<T>))),
        weight_transposed(with_padded_rows<T>(to(transposed(weight_), scalar_type<T>))),
        batch(slope.size(0)),
        n(slope.size(1)),
        outputs(weight.size(0)),
        grams(gram.size(0)) {}

  bool shared() const { return grams < batch; }
  int64_t gram_size() const { return n * padded<T>(n); }
  GramLinear<T> view() const {
    return {n,
            outputs,
            data<T>(gram),
            grams == batch ? gram_size() : 0,
            data<T>(slope),
            data<T>(weight),
            data<T>(weight_transposed)};
  }
  int64_t threads() const { return thread_count<T>(batch, 3 * (n + outputs) * (n + outputs)); }
};

template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& gram, const Tensor& slope, const Tensor& weight, bool store) {
  const Layer<T> layer(gram, slope, weight);
  const int64_t O = layer.outputs;
  const Tensor out = store ? new_output(layer.slope, {layer.batch, O, O}) : new_empty(layer.slope, {0});
  const Tensor diagonal = new_empty(layer.slope, {layer.batch, O});
  share_batch(layer.batch, layer.threads(), [&](int64_t, int64_t first, int64_t last) {
    kernels<T>().gram_linear(layer.view(), store ? mutable_data<T>(out) : nullptr, mutable_data<T>(diagonal), first,
                             last);
  });
  return {out, diagonal};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(MaybeTensor d_out, MaybeTensor d_diagonal, const Tensor& gram,
                                            const Tensor& slope, const Tensor& weight, bool needs_gram,
                                            bool needs_slope, bool needs_weight) {
  const Layer<T> layer(gram, slope, weight);
  const int64_t n = layer.n, B = layer.batch, threads = layer.threads();
  for (MaybeTensor* d : {&d_out, &d_diagonal})
    if (*d) *d = contiguous(to(**d, scalar_type<T>));
  // Where samples share a Gram matrix, each thread sums the gradients by it of its own samples.
  const int64_t d_grams = layer.shared() ? threads : layer.grams;
  const Tensor d_gram = new_zeros(layer.slope, {needs_gram ? d_grams : 0, n, padded<T>(n)});
  const Tensor d_weight = new_zeros(layer.slope, {threads, layer.outputs, padded<T>(n)});
  const Tensor d_slope = new_zeros(layer.slope, {needs_slope ? B : 0, n});
  share_batch(B, threads, [&](int64_t thread, int64_t first, int64_t last) {
    GramLinearGradients<T> to{};
    if (d_out) to.d_out = data<T>(*d_out);
    if (d_diagonal) to.d_diagonal = data<T>(*d_diagonal);
    if (needs_gram) to.d_gram = mutable_data<T>(d_gram) + (layer.shared() ? thread * layer.gram_size() : 0);
    to.d_gram_stride = layer.shared() ? 0 : layer.gram_size();
    if (needs_slope) to.d_slope = mutable_data<T>(d_slope);
    if (needs_slope || needs_weight) to.d_weight = mutable_data<T>(d_weight) + thread * d_weight.stride(0);
    kernels<T>().gram_linear_backward(layer.view(), to, first, last);
  });
  Tensor by_gram = new_empty(layer.slope, {0});
  if (needs_gram) by_gram = layer.shared() ? torch::stable::unsqueeze(summed(d_gram, n), 0) : part(d_gram, 2, 0, n);
  return {by_gram, needs_slope ? d_slope : new_empty(layer.slope, {0}),
          needs_weight ? summed(d_weight, n) : new_empty(layer.slope, {0})};
}

std::tuple<Tensor, Tensor> gram_linear(Tensor gram, Tensor slope, Tensor weight, bool store) {
  const ScalarType dtype = checked_dtype(gram, slope, weight);
  if (dtype == ScalarType::Double) return forward<double>(gram, slope, weight, store);
  const auto [out, diagonal] = forward<float>(gram, slope, weight, store);
  return {to(out, dtype), diagonal};
}

std::tuple<Tensor, Tensor, Tensor> gram_linear_backward(MaybeTensor d_out, MaybeTensor d_diagonal, Tensor gram,
                                                        Tensor slope, Tensor weight, bool needs_gram, bool needs_slope,
                                                        bool needs_weight) {
  const ScalarType dtype = checked_dtype(gram, slope, weight);
  const int64_t B = slope.size(0), O = weight.size(0);
  STD_TORCH_CHECK((!d_out || (d_out->dim() == 3 && d_out->numel() == B * O * O)) &&
                      (!d_diagonal || (d_diagonal->dim() == 2 && d_diagonal->numel() == B * O)),
                  "gram_linear: upstream gradient does not fit");
  const auto compute = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const auto [by_gram, by_slope, by_weight] =
      compute(d_out, d_diagonal, gram, slope, weight, needs_gram, needs_slope, needs_weight);
  return {contiguous(to(by_gram, dtype)), to(by_slope, dtype), to(by_weight, dtype)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("gram_linear(Tensor gram, Tensor slope, Tensor weight, bool store) -> (Tensor, Tensor)");
  m.def(
      "gram_linear_backward(Tensor? d_out, Tensor? d_diagonal, Tensor gram, Tensor slope, Tensor weight,"
      " bool needs_gram, bool needs_slope, bool needs_weight) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("gram_linear", TORCH_BOX(&gram_linear));
  m.impl("gram_linear_backward", TORCH_BOX(&gram_linear_backward));
}

}  // namespace llr_fast
