#include <optional>
#include <tuple>

#include "../kernels/isa.h"
#include "aten.h"

namespace llr_fast {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

using Optional = std::optional<Tensor>;

template <class T>
Optional prepared(const Optional& tensor) {
  return tensor ? Optional(llr_fast::prepared<T>(*tensor)) : tensor;
}

template <class T>
Ramp<T> ramp_of(const Optional& slope, double below, double lower, double upper, int64_t inner) {
  const int64_t channels = slope ? slope->numel() : 1;
  return {T(lower), T(upper), T(below), slope ? data<T>(*slope) : nullptr, channels, inner};
}

int64_t items(int64_t n) { return (n + kTangentBlock - 1) / kTangentBlock; }

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& z, const Tensor& tangents, const Optional& slope,
                                                   double below, double lower, double upper, int64_t inner,
                                                   bool store) {
  const int64_t n = z.numel(), K = tangents.size(0);
  const Tensor out = new_output(z, {n}), masked = store ? new_output(z, {K, n}) : new_empty(z, {0});
  const Tensor code = new_empty(z, {n}, ScalarType::Char), sums = new_empty(z, {items(n), 2});
  const RollActivation<T> a{ramp_of<T>(slope, below, lower, upper, inner),    K, n, data<T>(z), data<T>(tangents),
                            n * static_cast<int64_t>(sizeof(T)) > kLargeBytes};
  const RollOutputs<T> to{mutable_data<T>(out), store ? mutable_data<T>(masked) : nullptr, mutable_data<int8_t>(code),
                          mutable_data<T>(sums)};
  const auto kernel = kernels<T>().roll_activation;
  torch::stable::parallel_for(0, items(n), 1, [&](int64_t begin, int64_t end) { kernel(a, to, begin, end); });
  return {out, masked, torch::stable::sum(sums, std::vector<int64_t>{0}), code};
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Tensor& d_out, const Optional& d_masked, const Tensor& d_sums,
                                    const Tensor& tangents, const Tensor& code, const Optional& slope, double below,
                                    int64_t inner) {
  const int64_t n = code.numel(), K = tangents.size(0);
  const Tensor d_z = new_output(d_out, {n}), d_tangents = new_output(d_out, {K, n});
  const RollActivation<T> a{ramp_of<T>(slope, below, 0, 0, inner),
                            K,
                            n,
                            nullptr,
                            data<T>(tangents),
                            n * static_cast<int64_t>(sizeof(T)) > kLargeBytes};
  const RollGradients<T> g{data<T>(d_out),       d_masked ? data<T>(*d_masked) : nullptr,
                           data<T>(d_sums),      data<int8_t>(code),
                           mutable_data<T>(d_z), mutable_data<T>(d_tangents)};
  const auto kernel = kernels<T>().roll_activation_backward;
  torch::stable::parallel_for(0, items(n), 1, [&](int64_t begin, int64_t end) { kernel(a, g, begin, end); });
  return {d_z, d_tangents};
}

void check(const Tensor& z, const Tensor& tangents, const Optional& slope, int64_t inner) {
  STD_TORCH_CHECK(z.dim() == 1 && tangents.dim() == 2 && tangents.size(0) > 0 && tangents.size(1) == z.size(0),
                  "roll_activation: expected z [n] and tangents [K, n]");
  STD_TORCH_CHECK(!slope || (inner > 0 && slope->numel() > 0 && z.size(0) % (inner * slope->numel()) == 0),
                  "roll_activation: slopes do not fit");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> roll_activation(Tensor z, Tensor tangents, Optional slope, double below,
                                                           double lower, double upper, int64_t inner, bool store) {
  check(z, tangents, slope, inner);
  const ScalarType dtype = z.scalar_type(), of_tangents = tangents.scalar_type();
  const auto run = [&]<class T>(T) {
    return forward<T>(*prepared<T>(z), *prepared<T>(tangents), prepared<T>(slope), below, lower, upper, inner, store);
  };
  const bool wide = dtype == ScalarType::Double || of_tangents == ScalarType::Double;
  const auto [out, masked, sums, code] = wide ? run(double()) : run(float());
  return {torch::stable::to(out, dtype), torch::stable::to(masked, of_tangents), sums, code};
}

std::tuple<Tensor, Tensor> roll_activation_backward(Tensor d_out, Optional d_masked, Tensor d_sums, Tensor tangents,
                                                    Tensor code, Optional slope, double below, int64_t inner) {
  check(d_out, tangents, slope, inner);
  STD_TORCH_CHECK(code.numel() == d_out.numel() && code.scalar_type() == ScalarType::Char && d_sums.numel() == 2 &&
                      (!d_masked || d_masked->numel() == tangents.numel()),
                  "roll_activation: upstream gradients do not fit");
  const ScalarType dtype = d_out.scalar_type(), of_tangents = tangents.scalar_type();
  const auto run = [&]<class T>(T) {
    return backward<T>(*prepared<T>(d_out), prepared<T>(d_masked), *prepared<T>(d_sums), *prepared<T>(tangents),
                       contiguous(code), prepared<T>(slope), below, inner);
  };
  const bool wide = dtype == ScalarType::Double || of_tangents == ScalarType::Double;
  const auto [d_z, d_tangents] = wide ? run(double()) : run(float());
  return {torch::stable::to(d_z, dtype), torch::stable::to(d_tangents, of_tangents)};
}

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def(
      "roll_activation(Tensor z, Tensor tangents, Tensor? slope, float below, float lower, float upper, int inner,"
      " bool store) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "roll_activation_backward(Tensor d_out, Tensor? d_masked, Tensor d_sums, Tensor tangents, Tensor code,"
      " Tensor? slope, float below, int inner) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("roll_activation", TORCH_BOX(&roll_activation));
  m.impl("roll_activation_backward", TORCH_BOX(&roll_activation_backward));
}

}  // namespace
}  // namespace llr_fast
