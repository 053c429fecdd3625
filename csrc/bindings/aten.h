// What the kernels' callers need of torch beyond torch/csrc/stable/ops.h.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <vector>

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

inline Tensor to_float(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }

// Contiguous, of the dtype T.
template <class T>
Tensor prepared(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float));
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// An output of this size will have left the cache before anything reads it.
constexpr int64_t kLargeBytes = 16 << 20;

// Uninitialised memory, in huge pages if it is large: for the first touch of small ones takes longer than the writing.
inline Tensor new_output(const Tensor& like, std::vector<int64_t> shape) {
  Tensor out = torch::stable::new_empty(like, shape);
#if defined(__linux__)
  const uintptr_t page = 4096, bytes = out.numel() * (like.scalar_type() == ScalarType::Double ? 8 : 4);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.mutable_data_ptr()) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(out.mutable_data_ptr()) + bytes) / page * page;
  if (bytes > kLargeBytes) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return out;
}

}  // namespace llr_fast
