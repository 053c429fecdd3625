#include <tuple>
#include <vector>

#include "../kernels/isa.h"
#include "aten.h"

namespace llr_fast {
namespace {

using torch::stable::new_empty;

using Sizes = std::vector<int64_t>;

// Of samples [N, *space, I], from kernel, stride, padding, dilation and size for each axis.
Windows windows_of(const Tensor& z, const Sizes& windows) {
  const int64_t rank = z.dim() - 2, missing = 3 - rank;
  STD_TORCH_CHECK(rank >= 1 && rank <= 3 && static_cast<int64_t>(windows.size()) == 5 * rank,
                  "roll_max_pool: expected samples [N, *space, I] of one to three axes and five numbers for each");
  Windows w{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, {1, 1, 1}};
  for (int64_t axis = 0; axis < rank; ++axis) {
    const int64_t to = missing + axis;
    w.space[to] = z.size(axis + 1);
    w.kernel[to] = windows[axis], w.stride[to] = windows[rank + axis], w.padding[to] = windows[2 * rank + axis];
    w.dilation[to] = windows[3 * rank + axis], w.size[to] = windows[4 * rank + axis];
  }
  return w;
}

int64_t items(int64_t N, int64_t inner) { return N * ((inner + kPoolChannels - 1) / kPoolChannels); }

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& z, const Tensor& tangents, const Sizes& windows) {
  const int64_t N = z.size(0), K = tangents.size(0), inner = z.size(z.dim() - 1), work = items(N, inner);
  Sizes one{N}, each{K, N};
  for (Sizes* shape : {&one, &each}) {
    shape->insert(shape->end(), windows.end() - windows.size() / 5, windows.end());
    shape->push_back(inner);
  }
  const Tensor out = new_output(z, one), winning = new_output(z, each);
  const Tensor index = new_empty(z, one, ScalarType::Int), sums = new_empty(z, {work, 2});
  const RollMaxPool<T> a{windows_of(z, windows), K, N, inner, data<T>(z), data<T>(tangents)};
  const RollMaxPoolOutputs<T> to{mutable_data<T>(out), mutable_data<T>(winning), mutable_data<int32_t>(index),
                                 mutable_data<T>(sums)};
  const auto kernel = kernels<T>().roll_max_pool;
  torch::stable::parallel_for(0, work, 1, [&](int64_t begin, int64_t end) { kernel(a, to, begin, end); });
  return {out, winning, torch::stable::sum(sums, Sizes{0}), index};
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Tensor& d_out, const Tensor& d_winning, const Tensor& d_sums, const Tensor& z,
                                    const Tensor& tangents, const Tensor& index, const Sizes& windows) {
  const int64_t N = z.size(0), K = tangents.size(0), inner = z.size(z.dim() - 1);
  const Tensor d_z = torch::stable::empty_like(z), d_tangents = torch::stable::empty_like(tangents);
  const RollMaxPool<T> a{windows_of(z, windows), K, N, inner, data<T>(z), data<T>(tangents)};
  const RollMaxPoolGradients<T> g{data<T>(d_out),       data<T>(d_winning),   data<T>(d_sums),
                                  data<int32_t>(index), mutable_data<T>(d_z), mutable_data<T>(d_tangents)};
  const auto kernel = kernels<T>().roll_max_pool_backward;
  torch::stable::parallel_for(0, items(N, inner), 1, [&](int64_t begin, int64_t end) { kernel(a, g, begin, end); });
  return {d_z, d_tangents};
}

bool is_wide(const Tensor& z, const Tensor& tangents) {
  return z.scalar_type() == ScalarType::Double || tangents.scalar_type() == ScalarType::Double;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> roll_max_pool(Tensor z, Tensor tangents, Sizes windows) {
  STD_TORCH_CHECK(tangents.dim() == z.dim() + 1 && tangents.numel() == tangents.size(0) * z.numel(),
                  "roll_max_pool: expected z [N, *space, I] and tangents [K, N, *space, I]");
  const auto run = [&]<class T>(T) { return forward<T>(prepared<T>(z), prepared<T>(tangents), windows); };
  const auto [out, winning, sums, index] = is_wide(z, tangents) ? run(double()) : run(float());
  return {torch::stable::to(out, z.scalar_type()), torch::stable::to(winning, tangents.scalar_type()), sums, index};
}

std::tuple<Tensor, Tensor> roll_max_pool_backward(Tensor d_out, Tensor d_winning, Tensor d_sums, Tensor z,
                                                  Tensor tangents, Tensor index, Sizes windows) {
  STD_TORCH_CHECK(d_out.numel() == index.numel() && d_winning.numel() == tangents.size(0) * index.numel() &&
                      d_sums.numel() == 2 && index.scalar_type() == ScalarType::Int,
                  "roll_max_pool: upstream gradients do not fit");
  const auto run = [&]<class T>(T) {
    return backward<T>(prepared<T>(d_out), prepared<T>(d_winning), prepared<T>(d_sums), prepared<T>(z),
                       prepared<T>(tangents), torch::stable::contiguous(index), windows);
  };
  const auto [d_z, d_tangents] = is_wide(z, tangents) ? run(double()) : run(float());
  return {torch::stable::to(d_z, z.scalar_type()), torch::stable::to(d_tangents, tangents.scalar_type())};
}

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("roll_max_pool(Tensor z, Tensor tangents, int[] windows) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "roll_max_pool_backward(Tensor d_out, Tensor d_winning, Tensor d_sums, Tensor z, Tensor tangents, Tensor index,"
      " int[] windows) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("roll_max_pool", TORCH_BOX(&roll_max_pool));
  m.impl("roll_max_pool_backward", TORCH_BOX(&roll_max_pool_backward));
}

}  // namespace
}  // namespace llr_fast
