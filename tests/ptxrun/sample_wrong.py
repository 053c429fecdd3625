"""Triton kernels with deliberate faults, and their repaired counterparts."""

import triton
import triton.language as tl


@triton.jit
def add_unmasked_kernel(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def add_wrong_mask_kernel(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i <= n)


@triton.jit
def scatter_race_kernel(x, out, n, BLOCK: tl.constexpr):
    """Wrong on purpose: every thread of the program writes one of four elements."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i % 4, v, mask=i < n)


@triton.jit
def cross_program_race_kernel(x, out, n, BLOCK: tl.constexpr):
    """Wrong on purpose: every program writes the same elements."""
    i = tl.arange(0, BLOCK)
    v = tl.load(x + tl.program_id(0) * BLOCK + i)
    tl.store(out + i, v)


@triton.jit
def barrier_free_exchange_kernel(x, scratch, out, BLOCK: tl.constexpr):
    """Wrong on purpose: reads what other threads wrote to global memory, with no barrier."""
    i = tl.arange(0, BLOCK)
    tl.store(scratch + i, tl.load(x + i))
    tl.store(out + i, tl.load(scratch + (BLOCK - 1 - i)))


@triton.jit
def fenced_exchange_kernel(x, scratch, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(scratch + i, tl.load(x + i))
    tl.debug_barrier()
    tl.store(out + i, tl.load(scratch + (BLOCK - 1 - i)))
