#include "kernel_headers.h"

#if defined(X86_KERNELS)
#include <immintrin.h>

// After the headers, whose inline functions other files use too.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")

#define ISA avx512
#define ISA_NAME "avx512"
#define KERNELS avx512_kernels
#define VECTOR_BYTES 64
#define TILE_ROWS 8
#define STREAM(to, from) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from))

#include "kernels.inc"

#endif
