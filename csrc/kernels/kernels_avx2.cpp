#include "kernel_headers.h"

#if defined(X86_KERNELS)
#include <immintrin.h>

// After the headers, whose inline functions other files use too.
#pragma GCC target("avx2,fma")

#define ISA avx2
#define ISA_NAME "avx2"
#define KERNELS avx2_kernels
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define STREAM(to, from) \
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))

#include "kernels.inc"

#endif
