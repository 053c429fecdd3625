#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../kernels/isa.h"
#include "aten.h"

namespace llr_fast {
namespace {

using Tensors = std::vector<Tensor>;

template <class T>
struct Bound {
  T ratio;
  int64_t layer, neuron;
  bool operator<(const Bound& other) const {
    return std::tie(ratio, layer, neuron) < std::tie(other.ratio, other.layer, other.neuron);
  }
};

// The smallest finite ratios met so far, a few more than asked for.
template <class T>
class Smallest {
 public:
  explicit Smallest(size_t count) : count_(count) {}

  // Of neurons from `first` on
  void add(const T* ratio, int64_t n, int64_t layer, int64_t first) {
    for (int64_t i = 0; i < n; ++i)
      if (ratio[i] < limit_) add({ratio[i], layer, first + i});
  }
  void add(const Bound<T>& bound) {
    bounds_.push_back(bound);
    if (bounds_.size() >= 2 * count_) shrink();
  }
  const std::vector<Bound<T>>& sorted() {
    shrink();
    std::sort(bounds_.begin(), bounds_.end());
    return bounds_;
  }

 private:
  void shrink() {
    if (bounds_.size() <= count_) return;
    std::nth_element(bounds_.begin(), bounds_.begin() + (count_ - 1), bounds_.end());
    bounds_.resize(count_);
    limit_ = bounds_.back().ratio;
  }

  size_t count_;
  T limit_ = std::numeric_limits<T>::infinity();
  std::vector<Bound<T>> bounds_;
};

// Neurons from `first` on of one layer, the work of one thread at a time.
struct Piece {
  int64_t layer, first, count;
};

template <class T, class N>
std::tuple<Tensor, Tensor, Tensor> smallest(const Tensors& distances, const Tensors& norms, int64_t count,
                                            void (*kernel)(const T*, const N*, int64_t, T*)) {
  constexpr int64_t block = 1024, most = 1 << 16;
  const int64_t batch = distances[0].size(0);
  std::vector<Piece> pieces;
  for (size_t l = 0; l < distances.size(); ++l)
    for (int64_t first = 0, n = distances[l].size(1); first < n; first += most)
      pieces.push_back({static_cast<int64_t>(l), first, std::min(most, n - first)});
  std::vector<Smallest<T>> found(batch * pieces.size(), Smallest<T>(count));
  torch::stable::parallel_for(0, count ? found.size() : 0, 1, [&](int64_t begin, int64_t end) {
    T ratio[block];
    for (int64_t item = begin; item < end; ++item) {
      const auto [layer, start, size] = pieces[item % pieces.size()];
      const int64_t offset = item / pieces.size() * distances[layer].size(1);
      for (int64_t first = start; first < start + size; first += block) {
        const int64_t n = std::min(block, start + size - first);
        kernel(data<T>(distances[layer]) + offset + first, data<N>(norms[layer]) + offset + first, n, ratio);
        found[item].add(ratio, n, layer, first);
      }
    }
  });

  const auto index = [&] { return torch::stable::new_empty(distances[0], {batch, count}, ScalarType::Long); };
  const Tensor layer = index(), neuron = index();
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor value = torch::stable::new_empty(distances[0], {batch, count}, dtype);
  for (int64_t b = 0; b < batch && count; ++b) {
    Smallest<T> merged(count);
    for (size_t p = 0; p < pieces.size(); ++p)
      for (const auto& bound : found[b * pieces.size() + p].sorted()) merged.add(bound);
    const auto& bounds = merged.sorted();
    for (int64_t i = 0; i < count; ++i) {
      const T none = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
      const bool any = i < static_cast<int64_t>(bounds.size());
      mutable_data<T>(value)[b * count + i] = !any ? none : bounds[i].ratio == -none ? nan : bounds[i].ratio;
      mutable_data<int64_t>(layer)[b * count + i] = any ? bounds[i].layer : -1;
      mutable_data<int64_t>(neuron)[b * count + i] = any ? bounds[i].neuron : -1;
    }
  }
  return {value, layer, neuron};
}

std::tuple<Tensor, Tensor, Tensor> bounds(Tensors distances, Tensors norms, int64_t count) {
  STD_TORCH_CHECK(!distances.empty() && norms.size() == distances.size() && count >= 0,
                  "smallest_bounds: expected as many norms as distances");
  const ScalarType dtype = distances[0].scalar_type();
  const bool by_double = norms[0].scalar_type() == ScalarType::Double;
  const bool double_ratios = by_double || dtype == ScalarType::Double;
  for (size_t l = 0; l < distances.size(); ++l) {
    Tensor &distance = distances[l], &norm = norms[l];
    STD_TORCH_CHECK(distance.dim() == 2 && norm.dim() == 2 && distance.size(0) == distances[0].size(0) &&
                        norm.size(0) == distance.size(0) && norm.size(1) == distance.size(1),
                    "smallest_bounds: expected distances and norms [B, n]");
    distance =
        torch::stable::contiguous(torch::stable::to(distance, double_ratios ? ScalarType::Double : ScalarType::Float));
    norm = torch::stable::contiguous(torch::stable::to(norm, by_double ? ScalarType::Double : ScalarType::Float));
  }
  const auto [value, layer, neuron] = by_double ? smallest(distances, norms, count, kernels<double>().margin_ratios)
                                      : double_ratios
                                          ? smallest(distances, norms, count, kernels<double>().margin_ratios_by_float)
                                          : smallest(distances, norms, count, kernels<float>().margin_ratios);
  return {torch::stable::to(value, dtype), layer, neuron};
}

std::tuple<Tensor, Tensor, Tensor> smallest_bounds(Tensors distances, Tensors norms, int64_t count) {
  int64_t neurons = 0;
  for (const Tensor& distance : distances) neurons += distance.dim() == 2 ? distance.size(1) : 0;
  return bounds(std::move(distances), std::move(norms), std::min(count, neurons));
}

std::tuple<Tensor, Tensor, Tensor> margin_reduce(Tensors distances, Tensors norms) {
  const auto [value, layer, neuron] = bounds(std::move(distances), std::move(norms), 1);
  const auto column = [](const Tensor& t) { return torch::stable::reshape(t, {t.size(0)}); };
  return {column(value), column(layer), column(neuron)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def("margin_reduce(Tensor[] distances, Tensor[] norms) -> (Tensor, Tensor, Tensor)");
  m.def("smallest_bounds(Tensor[] distances, Tensor[] norms, int count) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) {
  m.impl("margin_reduce", TORCH_BOX(&margin_reduce));
  m.impl("smallest_bounds", TORCH_BOX(&smallest_bounds));
}

}  // namespace llr_fast
