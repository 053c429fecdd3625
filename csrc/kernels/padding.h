// How wide the rows of matrices are that kernels share with their callers.
#pragma once
#include <cstdint>

namespace llr_fast {

// Rows of shared matrices start on cache lines and may be read and written to the end of their last one.
constexpr int64_t kCacheLine = 64;

// Internal linkage, here and for all that kernels call: a linker that merged copies could keep one for another CPU.
template <class T>
static inline int64_t padded(int64_t width) {
  constexpr int64_t lanes = kCacheLine / sizeof(T);
  return (width + lanes - 1) / lanes * lanes;
}

}  // namespace llr_fast
