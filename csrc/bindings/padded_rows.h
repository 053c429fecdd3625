// Matrices as the kernels take them.
#pragma once
#include <vector>

#include "../kernels/padding.h"
#include "aten.h"

namespace llr_fast {

// The same matrices with rows, those of the last axis, that end with zeros to a whole cache line; a copy unless they do
// already.
template <class T>
Tensor with_padded_rows(const Tensor& matrices) {
  std::vector<int64_t> shape(matrices.sizes().begin(), matrices.sizes().end());
  const int64_t last = shape.size() - 1, width = shape[last];
  shape[last] = padded<T>(width);
  if (shape[last] == width) return torch::stable::contiguous(matrices);
  Tensor out = torch::stable::new_zeros(matrices, shape);
  Tensor inside = part(out, last, 0, width);
  torch::stable::copy_(inside, matrices);
  return out;
}

}  // namespace llr_fast
