"""Triton kernels used by the tests: a spread of what the compiler can emit."""

import triton
import triton.language as tl


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    tl.store(out + i, tl.load(x + i, mask=m) + tl.load(y + i, mask=m), mask=m)


@triton.jit
def row_reduce_kernel(x, s, hi, lo, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    m = i < n
    p = x + row * stride + i
    tl.store(s + row, tl.sum(tl.load(p, mask=m, other=0.0)))
    tl.store(hi + row, tl.max(tl.load(p, mask=m, other=float("-inf"))))
    tl.store(lo + row, tl.min(tl.load(p, mask=m, other=float("inf"))))


@triton.jit
def argmin_kernel(x, val, idx, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * stride + i, mask=i < n, other=float("inf"))
    best, where = tl.min(v, axis=0, return_indices=True)
    tl.store(val + row, best)
    tl.store(idx + row, where)


@triton.jit
def smaller_pair(a, i, b, j):
    take = (a < b) | ((a == b) & (i < j))
    return tl.where(take, a, b), tl.where(take, i, j)


@triton.jit
def custom_argmin_kernel(x, val, idx, rows, n, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    m = (r[:, None] < rows) & (i[None, :] < n)
    v = tl.load(x + r[:, None] * stride + i[None, :], mask=m, other=float("inf"))
    ii = tl.broadcast_to(i[None, :], (ROWS, BLOCK))
    best, where = tl.reduce((v, ii), 1, smaller_pair)
    tl.store(val + r, best, mask=r < rows)
    tl.store(idx + r, where, mask=r < rows)


@triton.jit
def int64_offset_kernel(x, out, start, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    far = i * 4294967296 // 4294967296
    tl.store(out + i, tl.load(x + start + far, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def math_kernel(x, y, out, n, BLOCK: tl.constexpr):
    """Rows of out: where, exp, sqrt, abs, fma, divide, log, sin, rsqrt, floor, erf, exp2."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0.0)
    b = tl.load(y + i, mask=m, other=1.0)
    pos = tl.abs(b) + 0.25
    tl.store(out + i, tl.where(a > b, a, -b), mask=m)
    tl.store(out + n + i, tl.exp(a), mask=m)
    tl.store(out + 2 * n + i, tl.sqrt(pos), mask=m)
    tl.store(out + 3 * n + i, tl.abs(a), mask=m)
    tl.store(out + 4 * n + i, tl.fma(a, b, pos), mask=m)
    tl.store(out + 5 * n + i, a / pos, mask=m)
    tl.store(out + 6 * n + i, tl.log(pos), mask=m)
    tl.store(out + 7 * n + i, tl.sin(a), mask=m)
    tl.store(out + 8 * n + i, tl.rsqrt(pos), mask=m)
    tl.store(out + 9 * n + i, tl.floor(a), mask=m)
    tl.store(out + 10 * n + i, tl.erf(a), mask=m)
    tl.store(out + 11 * n + i, tl.exp2(a), mask=m)


@triton.jit
def exact_math_kernel(x, y, out, n, BLOCK: tl.constexpr):
    """Rows of out: sqrt_rn, div_rn, ceil, min, max."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0.0)
    b = tl.abs(tl.load(y + i, mask=m, other=1.0)) + 0.25
    tl.store(out + i, tl.sqrt_rn(b), mask=m)
    tl.store(out + n + i, tl.div_rn(a, b), mask=m)
    tl.store(out + 2 * n + i, tl.ceil(a), mask=m)
    tl.store(out + 3 * n + i, tl.minimum(a, b), mask=m)
    tl.store(out + 4 * n + i, tl.maximum(a, b), mask=m)


@triton.jit
def int_math_kernel(x, y, out, n, BLOCK: tl.constexpr):
    """Rows of out: quotient, remainder, and, or, xor, shifts, min, max, negate, bit-not, mulhi."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0)
    b = tl.load(y + i, mask=m, other=1)
    tl.store(out + i, a // b, mask=m)
    tl.store(out + n + i, a % b, mask=m)
    tl.store(out + 2 * n + i, a & b, mask=m)
    tl.store(out + 3 * n + i, a | b, mask=m)
    tl.store(out + 4 * n + i, a ^ b, mask=m)
    tl.store(out + 5 * n + i, a << 3, mask=m)
    tl.store(out + 6 * n + i, a >> 3, mask=m)
    tl.store(out + 7 * n + i, tl.minimum(a, b), mask=m)
    tl.store(out + 8 * n + i, tl.maximum(a, b), mask=m)
    tl.store(out + 9 * n + i, -a, mask=m)
    tl.store(out + 10 * n + i, ~a, mask=m)
    tl.store(out + 11 * n + i, a * b + (a & 7), mask=m)


@triton.jit
def atomic_kernel(x, total, low, high, count, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + i, mask=m, other=0)
    tl.atomic_add(total + (i % 4), v.to(tl.float32), mask=m)
    tl.atomic_min(low + i * 0, v, mask=m)
    tl.atomic_max(high + i * 0, v, mask=m)
    tl.atomic_add(count, 1)


@triton.jit
def atomic_float_kernel(x, low, high, old, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + i, mask=m, other=0.0)
    tl.atomic_min(low + i * 0, v, mask=m)
    tl.atomic_max(high + i * 0, v, mask=m)
    prev = tl.atomic_add(old + i, v, mask=m)
    tl.atomic_xchg(old + n + i, prev, mask=m)


@triton.jit
def ticket_kernel(lock, order):
    seen = tl.atomic_cas(lock, 0, 7)
    tl.store(order + tl.program_id(0), seen)


@triton.jit
def cast_kernel(x, out, n, BLOCK: tl.constexpr):
    """Load, scale in fp32, round to the type of out."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + i, mask=m, other=0.0).to(tl.float32) * 1.5
    tl.store(out + i, v.to(out.dtype.element_ty), mask=m)


@triton.jit
def half_arith_kernel(x, y, out, n, BLOCK: tl.constexpr):
    """Arithmetic kept in the storage type."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0.0)
    b = tl.load(y + i, mask=m, other=0.0)
    tl.store(out + i, tl.maximum(a * b, a + b), mask=m)


@triton.jit
def transpose_kernel(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    v = tl.load(x + rm[:, None] * N + rn[None, :], mask=(rm[:, None] < M) & (rn[None, :] < N))
    tl.store(out + rn[:, None] * M + rm[None, :], tl.trans(v), mask=(rn[:, None] < N) & (rm[None, :] < M))


@triton.jit
def softmax_kernel(x, out, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + row * stride + i, mask=m, other=float("-inf"))
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + row * stride + i, e / tl.sum(e, axis=0), mask=m)


@triton.jit
def column_sum_kernel(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr):
    rn = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros((BN,), tl.float32)
    for k in tl.range(0, M, BM, num_stages=STAGES):
        rm = k + tl.arange(0, BM)
        v = tl.load(x + rm[:, None] * N + rn[None, :], mask=(rm[:, None] < M) & (rn[None, :] < N), other=0.0)
        acc += tl.sum(v, axis=0)
    tl.store(out + rn, acc, mask=rn < N)


@triton.jit
def cumsum_kernel(x, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * n + i, mask=i < n, other=0.0)
    tl.store(out + row * n + i, tl.cumsum(v, axis=0), mask=i < n)


@triton.jit
def histogram_kernel(x, out, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0)
    h = tl.histogram(v, BINS, mask=i < n)
    tl.store(out + tl.arange(0, BINS), h)


@triton.jit
def sort_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    tl.store(out + row * BLOCK + i, tl.sort(tl.load(x + row * BLOCK + i)))


@triton.jit
def branch_kernel(x, out, n, BLOCK: tl.constexpr):
    """Program-uniform branches and a data-dependent while loop."""
    pid = tl.program_id(0)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(x + i, mask=m, other=0.0)
    if pid % 2 == 0:
        v = v * 2.0
    else:
        v = v + 3.0
    while tl.max(v) > 1.0:
        v = v * 0.5
    tl.store(out + i, v, mask=m)


@triton.jit
def gather_kernel(x, index, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    j = tl.load(index + i, mask=m, other=0)
    tl.store(out + i, tl.load(x + j, mask=m), mask=m)


@triton.jit
def random_kernel(out, key, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.rand(key, i))


@triton.jit
def decay_pair(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def scan_kernel(x, out, BLOCK: tl.constexpr):
    """out[i] = out[i-1] / 2 + x[i]"""
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    _, total = tl.associative_scan((v * 0 + 0.5, v), 0, decay_pair)
    tl.store(out + i, total)


@triton.jit
def cache_hint_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, eviction_policy="evict_first") + tl.load(x + i, cache_modifier=".cg")
    v += tl.load(x + i, volatile=True) + tl.load(x + i, eviction_policy="evict_last")
    tl.store(out + i, v, cache_modifier=".cs")


@triton.jit
def take_kernel(x, index, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.gather(tl.load(x + i), tl.load(index + i), 0))


@triton.jit
def topk_kernel(x, out, N: tl.constexpr, K: tl.constexpr):
    tl.store(out + tl.arange(0, K), tl.topk(tl.load(x + tl.arange(0, N)), K))


@triton.jit
def bits_kernel(x, out, BLOCK: tl.constexpr):
    """High halves of squares, combined with warp-wide integer reductions."""
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, tl.umulhi(v, v) ^ tl.xor_sum(v, 0) ^ tl.reduce_or(v, 0))
    tl.store(out + BLOCK + i, v + tl.max(v, 0) + tl.min(v, 0) + tl.sum(v, 0))


@triton.jit
def persistent_kernel(x, out, n, programs, BLOCK: tl.constexpr):
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, BLOCK), programs, num_stages=3):
        i = tile * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


@triton.jit
def atomic_scatter_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    tl.atomic_add(out + i % 8, v.to(out.dtype.element_ty), mask=i < n)
