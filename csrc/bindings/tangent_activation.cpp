#include "tangent_activation.h"

#include <algorithm>
#include <utility>

namespace llr_fast {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

// Tangents [K, B, n] without an axis along which they are equal, so [K, 1, n] where samples share them.
Tensor distinct(const Tensor& tangents) {
  const bool shared = tangents.size(1) > 1 && tangents.stride(1) == 0;
  return contiguous(shared ? part(tangents, 1, 0, 1) : tangents);
}

template <class T>
Tangents<T> view(const Tensor& tangents, const Tensor& slope, Statistic statistic) {
  int64_t B = slope.size(0), n = slope.size(1);
  const int64_t row = tangents.size(1) * n, b_stride = tangents.size(1) == B ? n : 0;
  // Samples with tangents of their own are but one longer row.
  if (b_stride) n *= std::exchange(B, 1);
  return {tangents.size(0), B, n, row, b_stride, data<T>(tangents), data<T>(slope), statistic};
}

int64_t items(int64_t rows, int64_t n) { return rows * ((n + kTangentBlock - 1) / kTangentBlock); }

template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& tangents, const Tensor& slope, Statistic statistic) {
  const Tensor out = new_output(slope, {tangents.size(0), slope.size(0), slope.size(1)});
  const Tensor stat = new_empty(slope, {slope.size(0), slope.size(1)});
  auto t = view<T>(tangents, slope, statistic);
  t.past_cache = out.numel() * sizeof(T) > kLargeBytes;
  const auto kernel = kernels<T>().tangent_activation;
  torch::stable::parallel_for(0, items(t.B, t.n), 1, [&](int64_t begin, int64_t end) {
    kernel(t, mutable_data<T>(out), mutable_data<T>(stat), begin, end);
  });
  return {out, stat};
}

template <class T>
std::tuple<Tensor, Tensor> backward(const std::optional<Tensor>& d_out, const std::optional<Tensor>& d_stat,
                                    const Tensor& tangents, const Tensor& slope, const Tensor& stat,
                                    Statistic statistic, int64_t rows, bool needs_slope) {
  const Tensor d_tangents = new_output(slope, {tangents.size(0), rows, slope.size(1)});
  const Tensor d_slope = needs_slope ? new_empty(slope, {slope.size(0), slope.size(1)}) : new_empty(slope, {0});
  auto t = view<T>(tangents, slope, statistic);
  t.past_cache = d_tangents.numel() * sizeof(T) > kLargeBytes;
  const TangentGradients<T> gradients{d_out ? data<T>(*d_out) : nullptr,
                                      d_stat ? data<T>(*d_stat) : nullptr,
                                      data<T>(stat),
                                      mutable_data<T>(d_tangents),
                                      needs_slope ? mutable_data<T>(d_slope) : nullptr,
                                      rows < slope.size(0)};
  const auto kernel = kernels<T>().tangent_activation_backward;
  torch::stable::parallel_for(0, items(gradients.summed ? 1 : t.B, t.n), 1,
                              [&](int64_t begin, int64_t end) { kernel(t, gradients, begin, end); });
  return {d_tangents, d_slope};
}

ScalarType checked_dtype(const Tensor& tangents, const Tensor& slope) {
  STD_TORCH_CHECK(tangents.dim() == 3 && slope.dim() == 2 && tangents.size(2) == slope.size(1) &&
                      (tangents.size(1) == slope.size(0) || tangents.size(1) == 1) && tangents.size(0) > 0,
                  "tangent_activation: expected tangents [K, B or 1, n] and slope [B, n]");
  STD_TORCH_CHECK(slope.scalar_type() == tangents.scalar_type(),
                  "tangent_activation: slope and tangents differ in dtype");
  return slope.scalar_type();
}

std::tuple<Tensor, Tensor> tangent_activation(Tensor tangents, Tensor slope, std::string name) {
  const ScalarType dtype = checked_dtype(tangents, slope);
  const Statistic statistic = statistic_named(name);
  tangents = distinct(tangents), slope = contiguous(slope);
  if (dtype == ScalarType::Double) return forward<double>(tangents, slope, statistic);
  const auto [out, stat] = forward<float>(to_float(tangents), to_float(slope), statistic);
  return {torch::stable::to(out, dtype), stat};
}

}  // namespace

Statistic statistic_named(const std::string& name) {
  if (name == "sum_squares") return Statistic::sum_squares;
  if (name == "sum_abs") return Statistic::sum_abs;
  STD_TORCH_CHECK(name == "max_abs", "statistic: expected sum_squares, sum_abs or max_abs, got ", name);
  return Statistic::max_abs;
}

std::tuple<Tensor, Tensor> tangent_activation_backward(std::optional<Tensor> d_out, std::optional<Tensor> d_stat,
                                                       Tensor tangents, Tensor slope, Tensor stat, std::string name,
                                                       bool needs_slope) {
  const ScalarType dtype = checked_dtype(tangents, slope);
  const Statistic statistic = statistic_named(name);
  const int64_t rows = tangents.size(1);
  tangents = distinct(tangents), slope = contiguous(slope), stat = contiguous(stat);
  const auto prepare = [dtype](std::optional<Tensor>& g, std::initializer_list<int64_t> shape) {
    if (!g) return;
    STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), g->sizes().begin(), g->sizes().end()),
                    "tangent_activation: upstream gradient does not fit");
    g = contiguous(dtype == ScalarType::Double ? *g : to_float(*g));
  };
  prepare(d_out, {tangents.size(0), slope.size(0), slope.size(1)});
  prepare(d_stat, {slope.size(0), slope.size(1)});
  needs_slope = needs_slope && d_out;
  if (dtype == ScalarType::Double)
    return backward<double>(d_out, d_stat, tangents, slope, stat, statistic, rows, needs_slope);
  const auto [d_tangents, d_slope] =
      backward<float>(d_out, d_stat, to_float(tangents), to_float(slope), stat, statistic, rows, needs_slope);
  return {torch::stable::to(d_tangents, dtype), torch::stable::to(d_slope, dtype)};
}

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("tangent_activation(Tensor tangents, Tensor slope, str statistic) -> (Tensor, Tensor)");
  m.def(
      "tangent_activation_backward(Tensor? d_out, Tensor? d_stat, Tensor tangents, Tensor slope, Tensor stat,"
      " str statistic, bool needs_slope) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("tangent_activation", TORCH_BOX(&tangent_activation));
  m.impl("tangent_activation_backward", TORCH_BOX(&tangent_activation_backward));
}

}  // namespace llr_fast
