// The torch operators that the kernels' callers need beyond torch/csrc/stable/ops.h.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

namespace llr_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Arguments>
Tensor call_aten(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor mm(const Tensor& a, const Tensor& b) { return call_aten("aten::mm", "", a, b); }
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) { call_aten("aten::mm", "out", a, b, out); }
inline Tensor multiply(const Tensor& a, const Tensor& b) { return call_aten("aten::mul", "Tensor", a, b); }
// The stable ABI knows subtract, but not add.
inline Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1); }
inline Tensor part(Tensor tensor, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(tensor, dim, start, length);
}
inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

}  // namespace llr_fast
