#include "../kernels/cut_polygons.h"

#include <cstring>
#include <tuple>
#include <vector>

#include "parallel.h"

namespace llr_fast {
namespace {

using torch::stable::new_empty;

template <class T>
void append(T*& to, const std::vector<T>& from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size() * sizeof(T));
  to += from.size();
}

// What the threads found, one after the other.
std::tuple<Tensor, Tensor, Tensor, Tensor> joined(const std::vector<PolygonCutter>& cutters, const Tensor& vertices,
                                                  const Tensor& sizes) {
  int64_t coordinates = 0, parts = 0;
  for (const auto& cutter : cutters) {
    coordinates += cutter.parts().vertices.size();
    parts += cutter.parts().sizes.size();
  }
  const Tensor out = new_output(vertices, {coordinates / 2, 2});
  const Tensor out_sizes = new_empty(sizes, {parts}), origin = new_empty(sizes, {parts});
  const Tensor centres = new_empty(vertices, {parts, 2});
  double *to_vertices = mutable_data<double>(out), *to_centres = mutable_data<double>(centres);
  int64_t *to_sizes = mutable_data<int64_t>(out_sizes), *to_origin = mutable_data<int64_t>(origin);
  for (const auto& cutter : cutters) {
    append(to_vertices, cutter.parts().vertices);
    append(to_centres, cutter.parts().centres);
    append(to_sizes, cutter.parts().sizes);
    append(to_origin, cutter.parts().origin);
  }
  return {out, out_sizes, centres, origin};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cut_polygons(Tensor vertices, Tensor sizes, Tensor centres,
                                                        std::vector<Tensor> lines, double thinnest) {
  const int64_t polygons = sizes.numel();
  STD_TORCH_CHECK(vertices.scalar_type() == ScalarType::Double && centres.scalar_type() == ScalarType::Double &&
                      sizes.scalar_type() == ScalarType::Long && centres.numel() == 2 * polygons,
                  "cut_polygons: expected float64 vertices [V, 2] and centres [P, 2], and int64 sizes [P]");
  vertices = torch::stable::contiguous(vertices), sizes = torch::stable::contiguous(sizes);
  centres = torch::stable::contiguous(centres);
  std::vector<LayerOfLines> layers;
  for (Tensor& layer : lines) {
    STD_TORCH_CHECK(layer.scalar_type() == ScalarType::Double && layer.dim() == 3 && layer.size(0) == 3 &&
                        layer.size(1) == polygons,
                    "cut_polygons: expected float64 lines [3, P, n]");
    if (layer.stride(2) != 1) layer = torch::stable::contiguous(layer);
    const double* a = data<double>(layer);
    const int64_t apart = layer.stride(0);
    layers.push_back({layer.size(2), layer.stride(1), {a, a + apart, a + 2 * apart}});
  }
  std::vector<int64_t> first(polygons + 1, 0);
  for (int64_t p = 0; p < polygons; ++p) first[p + 1] = first[p] + data<int64_t>(sizes)[p];
  STD_TORCH_CHECK(2 * first[polygons] == vertices.numel(), "cut_polygons: sizes do not fit the vertices");

  const int64_t threads = thread_count<double>(polygons, 0);
  std::vector<PolygonCutter> cutters(threads, PolygonCutter(layers, thinnest));
  share_batch(polygons, threads, [&](int64_t thread, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      cutters[thread].cut(p, data<double>(vertices) + 2 * first[p], first[p + 1] - first[p],
                          data<double>(centres) + 2 * p);
  });
  return joined(cutters, vertices, sizes);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) {
  m.def(
      "cut_polygons(Tensor vertices, Tensor sizes, Tensor centres, Tensor[] lines, float thinnest)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CPU, m) { m.impl("cut_polygons", TORCH_BOX(&cut_polygons)); }

}  // namespace llr_fast
