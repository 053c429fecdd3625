"""The kernel of roll_max_pool: one pass over windows.

Tensors are samples [N, depth, height, width, inner], or [K, ...] of them. The constants KERNEL, STRIDE, PADDING and
DILATION have three numbers each, for depth, height and width.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def located(first, depth, height, width, inner, BLOCK: tl.constexpr):
    """Sample, coordinates along the three axes, and place within `inner`, of BLOCK elements from `first` on."""
    # Two divisions of 64 bits for all of them; those of each are of 32.
    size = tl.cast(depth * height * width * inner, tl.int32)
    o_n = (first % size).to(tl.int32) + tl.arange(0, BLOCK)
    b_sample = o_n // size
    o_n -= b_sample * size
    b_w = o_n // inner
    b_i = o_n - b_w * inner
    b_h = b_w // width
    b_w -= b_h * width
    b_d = b_h // height % depth  # which is no work where depth is the constant 1
    return first // size + b_sample, b_d, b_h - b_d * height, b_w, b_i


@triton.jit
def entry(b_d, b_h, b_w, b_i, depth, height, width, inner):
    """Where an entry lies in its sample, and whether it is one and no padding."""
    m_real = (b_d >= 0) & (b_d < depth) & (b_h >= 0) & (b_h < height) & (b_w >= 0) & (b_w < width)
    return ((b_d * height + b_h) * width + b_w) * inner + b_i, m_real


@triton.jit
def entry_of_window(
    place, b_d, b_h, b_w, b_i, depth, height, width, inner, KERNEL: tl.constexpr, DILATION: tl.constexpr
):
    """As `entry`, that at one place of windows; b_d, b_h, b_w are their first."""
    b_d = b_d + place // (KERNEL[1] * KERNEL[2]) * DILATION[0]
    b_h = b_h + place // KERNEL[2] % KERNEL[1] * DILATION[1]
    b_w = b_w + place % KERNEL[2] * DILATION[2]
    return entry(b_d, b_h, b_w, b_i, depth, height, width, inner)


@triton.jit
def first_entries(
    first, depth, height, width, out_depth, out_height, out_width, inner,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of BLOCK windows from `first` on: where their samples begin in z, and the coordinates of their first entries."""
    b_n, b_d, b_h, b_w, b_i = located(first, out_depth, out_height, out_width, inner, BLOCK)
    o_sample = b_n * (depth * height * width * inner)
    return o_sample, b_d * STRIDE[0] - PADDING[0], b_h * STRIDE[1] - PADDING[1], b_w * STRIDE[2] - PADDING[2], b_i


@triton.jit
def to_loser(b_lead, scale, HINGES: tl.constexpr):
    """The gradient that the lead over it gives a loser, of the hinges in z or of the squares in tangents."""
    return tl.where((b_lead > 0) & (b_lead < 1), scale, 0.0) if HINGES else scale * b_lead


@triton.jit
def roll_max_pool_kernel(
    p_z, p_tangents, p_out, p_winning, p_index, p_parts, K, n, windows,
    depth, height, width, out_depth, out_height, out_width, inner,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PLACES: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK of `windows` windows and writes its sums into a row of p_parts; z has n elements."""
    wide: tl.constexpr = p_parts.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_w = program * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < windows
    o_sample, b_d, b_h, b_w, b_i = first_entries(
        program * BLOCK, depth, height, width, out_depth, out_height, out_width, inner, STRIDE, PADDING, BLOCK
    )
    b_out = tl.full([BLOCK], -INFINITY, wide)
    b_index = tl.full([BLOCK], -1, tl.int32)
    # Where all places are unrolled, what is loaded twice is loaded once.
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry_of_window(place, b_d, b_h, b_w, b_i, depth, height, width, inner, KERNEL, DILATION)
        b_z = tl.load(p_z + o_sample + b_at, mask=m_w & m_real, other=0.0).to(wide)
        # The first of equals, or the first NaN.
        m_wins = (b_index < 0) | (b_z > b_out) | ((b_z != b_z) & (b_out == b_out))
        b_out = tl.where(m_real & m_wins, b_z, b_out)
        b_index = tl.where(m_real & m_wins, b_at, b_index)
    b_hinges = tl.zeros([BLOCK], wide)
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry_of_window(place, b_d, b_h, b_w, b_i, depth, height, width, inner, KERNEL, DILATION)
        b_z = tl.load(p_z + o_sample + b_at, mask=m_w & m_real, other=0.0).to(wide)
        b_lead = b_out - b_z
        # The difference of equals is NaN for NaN and infinities.
        b_hinge = tl.where(b_lead < 1, 1 - b_lead, b_lead - b_lead)
        b_hinges += tl.where(m_w & m_real & (b_at != b_index), b_hinge, 0.0)
    tl.store(p_out + o_w, b_out, mask=m_w)
    tl.store(p_index + o_w, b_index, mask=m_w)
    b_squares = tl.zeros([BLOCK], wide)
    for k in range(0, K):
        p_row = p_tangents + tl.cast(k, tl.int64) * n
        b_winning = tl.load(p_row + o_sample + b_index, mask=m_w, other=0.0).to(wide)
        for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
            b_at, m_real = entry_of_window(place, b_d, b_h, b_w, b_i, depth, height, width, inner, KERNEL, DILATION)
            m_loses = m_w & m_real & (b_at != b_index)
            b_tangents = tl.load(p_row + o_sample + b_at, mask=m_w & m_real, other=0.0).to(wide)
            b_lead = tl.where(m_loses, b_winning - b_tangents, 0.0)
            b_squares += b_lead * b_lead
        tl.store(p_winning + tl.cast(k, tl.int64) * windows + o_w, b_winning, mask=m_w)
    tl.store(p_parts + 2 * program, tl.sum(b_squares, 0))
    tl.store(p_parts + 2 * program + 1, tl.sum(b_hinges, 0))
