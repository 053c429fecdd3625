#include <optional>
#include <tuple>

#include "../kernels/isa.h"
#include "parallel.h"

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
ByChannel<T> by_channel(const Optional& numbers, int64_t inner) {
  return {numbers ? data<T>(*numbers) : nullptr, numbers ? numbers->numel() : 1, inner};
}

int64_t items(int64_t n) { return (n + kTangentBlock - 1) / kTangentBlock; }

// What an activation does: arguments of the operator that both passes take.
struct Arguments {
  Optional factor, slope;
  double below, lower, upper;
  int64_t inner;
};

template <class T>
RollActivation<T> view(const Arguments& of, int64_t n, const T* z, const Tensor& tangents) {
  const Ramp<T> ramp{T(of.lower), T(of.upper), T(of.below), by_channel<T>(of.slope, of.inner)};
  return {.ramp = ramp,
          .factor = by_channel<T>(of.factor, of.inner),
          .K = tangents.size(0),
          .n = n,
          .z = z,
          .tangents = data<T>(tangents),
          .past_cache = n * static_cast<int64_t>(sizeof(T)) > kLargeBytes};
}

template <class T>
Arguments prepared(Arguments of) {
  of.factor = prepared<T>(of.factor), of.slope = prepared<T>(of.slope);
  return of;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& z, const Tensor& tangents, const Arguments& of,
                                                   bool store) {
  const int64_t n = z.numel(), K = tangents.size(0);
  const Tensor out = new_output(z, {n}), masked = store ? new_output(z, {K, n}) : new_empty(z, {0});
  const Tensor code = new_empty(z, {n}, ScalarType::Char), sums = new_empty(z, {items(n), 2});
  const auto a = view<T>(of, n, data<T>(z), tangents);
  const RollOutputs<T> to{mutable_data<T>(out), store ? mutable_data<T>(masked) : nullptr, mutable_data<int8_t>(code),
                          mutable_data<T>(sums)};
  const auto kernel = kernels<T>().roll_activation;
  torch::stable::parallel_for(0, items(n), 1, [&](int64_t begin, int64_t end) { kernel(a, to, begin, end); });
  return {out, masked, torch::stable::sum(sums, std::vector<int64_t>{0}), code};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_out, const Optional& d_masked, const Tensor& d_sums,
                                            const Tensor& tangents, const Tensor& code, const Arguments& of) {
  const int64_t n = code.numel(), K = tangents.size(0), channels = of.factor ? of.factor->numel() : 0;
  const Tensor d_z = new_output(d_out, {n}), d_tangents = new_output(d_out, {K, n});
  const int64_t threads = thread_count<T>(items(n), channels);
  const Tensor d_factor = torch::stable::new_zeros(d_out, {threads, channels});
  const auto a = view<T>(of, n, nullptr, tangents);
  const auto kernel = kernels<T>().roll_activation_backward;
  share_batch(items(n), threads, [&](int64_t thread, int64_t begin, int64_t end) {
    const RollGradients<T> g{data<T>(d_out),
                             d_masked ? data<T>(*d_masked) : nullptr,
                             data<T>(d_sums),
                             data<int8_t>(code),
                             mutable_data<T>(d_z),
                             mutable_data<T>(d_tangents),
                             mutable_data<T>(d_factor) + thread * channels};
    kernel(a, g, begin, end);
  });
  return {d_z, d_tangents, torch::stable::sum(d_factor, std::vector<int64_t>{0})};
}

void check(const Tensor& z, const Tensor& tangents, const Arguments& of) {
  STD_TORCH_CHECK(z.dim() == 1 && tangents.dim() == 2 && tangents.size(0) > 0 && tangents.size(1) == z.size(0),
                  "roll_activation: expected z [n] and tangents [K, n]");
  for (const Optional& numbers : {of.factor, of.slope})
    STD_TORCH_CHECK(!numbers || z.size(0) == 0 ||
                        (of.inner > 0 && numbers->numel() > 0 &&
                         (numbers->numel() == 1 || z.size(0) % (of.inner * numbers->numel()) == 0)),
                    "roll_activation: factors or slopes do not fit");
}

bool is_wide(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> roll_activation(Tensor z, Tensor tangents, Optional factor, Optional slope,
                                                           double below, double lower, double upper, int64_t inner,
                                                           bool store) {
  const Arguments of{factor, slope, below, lower, upper, inner};
  check(z, tangents, of);
  const auto run = [&]<class T>(T) {
    return forward<T>(llr_fast::prepared<T>(z), llr_fast::prepared<T>(tangents), prepared<T>(of), store);
  };
  const auto [out, masked, sums, code] = is_wide(z, tangents) ? run(double()) : run(float());
  return {torch::stable::to(out, z.scalar_type()), torch::stable::to(masked, tangents.scalar_type()), sums, code};
}

std::tuple<Tensor, Tensor, Tensor> roll_activation_backward(Tensor d_out, Optional d_masked, Tensor d_sums,
                                                            Tensor tangents, Tensor code, Optional factor,
                                                            Optional slope, double below, int64_t inner) {
  const Arguments of{factor, slope, below, 0, 0, inner};
  check(d_out, tangents, of);
  STD_TORCH_CHECK(code.numel() == d_out.numel() && code.scalar_type() == ScalarType::Char && d_sums.numel() == 2 &&
                      (!d_masked || d_masked->numel() == tangents.numel()),
                  "roll_activation: upstream gradients do not fit");
  const auto run = [&]<class T>(T) {
    return backward<T>(llr_fast::prepared<T>(d_out), prepared<T>(d_masked), llr_fast::prepared<T>(d_sums),
                       llr_fast::prepared<T>(tangents), contiguous(code), prepared<T>(of));
  };
  const auto [d_z, d_tangents, d_factor] = is_wide(d_out, tangents) ? run(double()) : run(float());
  return {torch::stable::to(d_z, d_out.scalar_type()), torch::stable::to(d_tangents, tangents.scalar_type()),
          torch::stable::to(d_factor, (factor ? *factor : tangents).scalar_type())};
}

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def(
      "roll_activation(Tensor z, Tensor tangents, Tensor? factor, Tensor? slope, float below, float lower, float upper,"
      " int inner, bool store) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "roll_activation_backward(Tensor d_out, Tensor? d_masked, Tensor d_sums, Tensor tangents, Tensor code,"
      " Tensor? factor, Tensor? slope, float below, int inner) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("roll_activation", TORCH_BOX(&roll_activation));
  m.impl("roll_activation_backward", TORCH_BOX(&roll_activation_backward));
}

}  // namespace
}  // namespace llr_fast
