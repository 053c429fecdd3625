"""What the kernels of matrix products share: row lengths, loads, products, and the types of operands."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """The same number. Triton sees for itself that it is a multiple of 16, but not of less: 300 of 4, say.

    Rows of such a length then load as wide as they lie in memory.
    """
    return size // ALIGN * ALIGN


@triton.jit
def load_wide(p_tile, m_tile, like):
    """A tile in the type in which sums are held; bf16 arithmetic would round at every step."""
    return tl.load(p_tile, mask=m_tile, other=0.0).to(like.dtype)


@triton.jit
def add_product(b_sum, b_left, b_right, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """b_sum + b_left @ b_right. PRECISION is that of products of float32, as `dot_precision` says."""
    return tl.dot(b_left.to(DOT), b_right.to(DOT), b_sum, input_precision=PRECISION, out_dtype=b_sum.dtype)


def alignment(*sizes: int) -> int:
    """The power of two, up to 16, of which the rows' lengths are multiples.

    Rows of less than 16 load in small pieces, whose addresses and masks take registers of their own.
    """
    return math.gcd(*sizes, 16)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type of a matrix product's operands. The interpreter holds bf16 as integers and cannot multiply it."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}.get(dtype, tl.float64)


def dot_precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: float32 in TF32 where torch's own products are, which certificates never are.

    That is what torch.set_float32_matmul_precision says, and `llr_fast.precision` for the time of a certificate. Each
    float32 as two numbers in TF32, whose three products are as exact, took longer on the GPU that it was measured on.
    """
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
