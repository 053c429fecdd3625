#include <algorithm>
#include <tuple>
#include <vector>

#include "../kernels/isa.h"
#include "aten.h"

namespace llr_fast {
namespace {

using torch::stable::new_empty;

using Sizes = std::vector<int64_t>;

// Of planes [N, *space, I], from kernel, stride, padding, dilation and size for each axis.
Windows windows_of(const Tensor& z, const Sizes& windows) {
  const int64_t rank = z.dim() - 2, missing = 3 - rank;
  STD_TORCH_CHECK(rank >= 1 && rank <= 3 && static_cast<int64_t>(windows.size()) == 5 * rank,
                  "roll_max_pool: expected planes [N, *space, I] of one to three axes and five numbers for each");
  Windows w{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, {1, 1, 1}};
  for (int64_t axis = 0; axis < rank; ++axis) {
    const int64_t to = missing + axis;
    w.space[to] = z.size(axis + 1);
    w.kernel[to] = windows[axis], w.stride[to] = windows[rank + axis], w.padding[to] = windows[2 * rank + axis];
    w.dilation[to] = windows[3 * rank + axis], w.size[to] = windows[4 * rank + axis];
  }
  return w;
}

// [..., positions, I] as [..., I, positions], plane after plane, whatever lies before; free for I = 1.
Tensor swapped(const Tensor& tensor, int64_t positions, int64_t I) {
  const Sizes shape{tensor.numel() / std::max<int64_t>(1, positions * I), positions, I};
  const Tensor rows = torch::stable::view(torch::stable::contiguous(tensor), shape);
  return torch::stable::contiguous(torch::stable::transpose(rows, 1, 2));
}

int64_t positions(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }

// As the kernels take them.
template <class T>
Tensor planes_of(const Tensor& tensor, const int64_t (&sizes)[3], int64_t I) {
  return prepared<T>(swapped(tensor, positions(sizes), I));
}

// As they arrived: in an order in memory, a shape and a type.
Tensor restored(const Tensor& planes, const int64_t (&sizes)[3], int64_t I, const Sizes& shape, ScalarType type) {
  return torch::stable::to(torch::stable::view(swapped(planes, I, positions(sizes)), shape), type);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& z, const Tensor& tangents, const Sizes& windows) {
  const int64_t N = z.size(0), K = tangents.size(0), I = z.size(z.dim() - 1);
  const Windows w = windows_of(z, windows);
  const Tensor planes = planes_of<T>(z, w.space, I), rows = planes_of<T>(tangents, w.space, I);
  const int64_t count = N * I * positions(w.size);
  const Tensor out = new_output(planes, {count}), winning = new_output(planes, {K * count});
  const Tensor index = new_empty(planes, {count}, ScalarType::Int), sums = new_empty(planes, {N * I, 2});
  const RollMaxPool<T> a{w, K, N * I, data<T>(planes), data<T>(rows)};
  const RollMaxPoolOutputs<T> to{mutable_data<T>(out), mutable_data<T>(winning), mutable_data<int32_t>(index),
                                 mutable_data<T>(sums)};
  const auto kernel = kernels<T>().roll_max_pool;
  torch::stable::parallel_for(0, N * I, 1, [&](int64_t begin, int64_t end) { kernel(a, to, begin, end); });
  Sizes one{N}, each{K, N};
  for (Sizes* shape : {&one, &each}) {
    shape->insert(shape->end(), windows.end() - windows.size() / 5, windows.end());
    shape->push_back(I);
  }
  return {restored(out, w.size, I, one, z.scalar_type()), restored(winning, w.size, I, each, tangents.scalar_type()),
          torch::stable::sum(sums, Sizes{0}), restored(index, w.size, I, one, ScalarType::Int)};
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Tensor& d_out, const Tensor& d_winning, const Tensor& d_sums, const Tensor& z,
                                    const Tensor& tangents, const Tensor& index, const Sizes& windows) {
  const int64_t N = z.size(0), K = tangents.size(0), I = z.size(z.dim() - 1);
  const Windows w = windows_of(z, windows);
  const Tensor planes = planes_of<T>(z, w.space, I), rows = planes_of<T>(tangents, w.space, I);
  const Tensor to_out = planes_of<T>(d_out, w.size, I), to_winning = planes_of<T>(d_winning, w.size, I);
  const Tensor to_sums = prepared<T>(d_sums), winners = swapped(index, positions(w.size), I);
  const Tensor d_z = torch::stable::empty_like(planes), d_tangents = torch::stable::empty_like(rows);
  const RollMaxPool<T> a{w, K, N * I, data<T>(planes), data<T>(rows)};
  const RollMaxPoolGradients<T> g{data<T>(to_out),        data<T>(to_winning),  data<T>(to_sums),
                                  data<int32_t>(winners), mutable_data<T>(d_z), mutable_data<T>(d_tangents)};
  const auto kernel = kernels<T>().roll_max_pool_backward;
  torch::stable::parallel_for(0, N * I, 1, [&](int64_t begin, int64_t end) { kernel(a, g, begin, end); });
  const auto back = [&](const Tensor& planes, const Tensor& like) {
    const auto sizes = like.sizes();
    return restored(planes, w.space, I, Sizes(sizes.begin(), sizes.end()), like.scalar_type());
  };
  return {back(d_z, z), back(d_tangents, tangents)};
}

bool is_wide(const Tensor& z, const Tensor& tangents) {
  return z.scalar_type() == ScalarType::Double || tangents.scalar_type() == ScalarType::Double;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> roll_max_pool(Tensor z, Tensor tangents, Sizes windows) {
  STD_TORCH_CHECK(tangents.dim() == z.dim() + 1 && tangents.numel() == tangents.size(0) * z.numel(),
                  "roll_max_pool: expected z [N, *space, I] and tangents [K, N, *space, I]");
  return is_wide(z, tangents) ? forward<double>(z, tangents, windows) : forward<float>(z, tangents, windows);
}

std::tuple<Tensor, Tensor> roll_max_pool_backward(Tensor d_out, Tensor d_winning, Tensor d_sums, Tensor z,
                                                  Tensor tangents, Tensor index, Sizes windows) {
  STD_TORCH_CHECK(d_out.numel() == index.numel() && d_winning.numel() == tangents.size(0) * index.numel() &&
                      d_sums.numel() == 2 && index.scalar_type() == ScalarType::Int,
                  "roll_max_pool: upstream gradients do not fit");
  const auto run = [&]<class T>(T) { return backward<T>(d_out, d_winning, d_sums, z, tangents, index, windows); };
  return is_wide(z, tangents) ? run(double()) : run(float());
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
