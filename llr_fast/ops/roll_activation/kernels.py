"""The kernels of roll_activation: one pass over the neurons, and one over their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def slopes(b_piece, b_below):
    """The slope of each neuron's piece."""
    return tl.where(b_piece == 1, 1.0, tl.where(b_piece == 0, b_below, 0.0))


@triton.jit
def by_channel(
    p_numbers, channels, first, m_n, inner, OTHERWISE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """The number of each neuron's channel, of BLOCK neurons from `first`; OTHERWISE where there are no numbers."""
    if p_numbers is None:
        b_found = tl.full([BLOCK], OTHERWISE, WIDE)
    else:
        # Two divisions of 64 bits for all of them, and one of 32 bits for each: `room` lie in the first channel.
        inner = tl.cast(inner, tl.int64)
        step = tl.minimum(inner, BLOCK).to(tl.int32)
        room = tl.minimum(inner - first % inner, BLOCK).to(tl.int32)
        b_next = (tl.arange(0, BLOCK) + (step - room)) // step
        b_channel = ((first // inner) % channels).to(tl.int32) + b_next
        b_found = tl.load(p_numbers + b_channel % channels, mask=m_n, other=0.0).to(WIDE)
    return b_found


@triton.jit
def roll_activation_kernel(
    p_z, p_tangents, p_factor, factor_channels, p_slope, channels, p_out, p_masked, p_parts, p_code, K, n, inner,
    BELOW: tl.constexpr, LOWER: tl.constexpr, UPPER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z [n] and tangents [K, n]; a program owns BLOCK neurons and writes its sums into a row of p_parts.

    p_slope is None where the slope is BELOW, p_masked where it is not wanted. One of the kinks may be infinite.
    """
    wide: tl.constexpr = p_parts.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_n = program * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < n
    row = tl.cast(n, tl.int64)
    b_z = tl.load(p_z + o_n, mask=m_n, other=0.0).to(wide)
    b_below = by_channel(p_slope, channels, program * BLOCK, m_n, inner, BELOW, wide, BLOCK)
    # As scalars the kinks would be float32 in a choice.
    b_lower, b_upper = tl.full([BLOCK], LOWER, wide), tl.full([BLOCK], UPPER, wide)
    m_over_lower, m_over_upper = b_z > b_lower, b_z > b_upper
    b_piece = m_over_lower.to(tl.int8) + m_over_upper.to(tl.int8)
    b_slope = slopes(b_piece, b_below)
    b_squares = tl.zeros([BLOCK], wide)
    b_factor = by_channel(p_factor, factor_channels, program * BLOCK, m_n, inner, 1.0, wide, BLOCK)
    for k in range(0, K):
        o_k = k * row + o_n
        b_tangents = tl.load(p_tangents + o_k, mask=m_n, other=0.0).to(wide)
        if p_factor is not None:
            b_tangents *= b_factor
        b_squares += b_tangents * b_tangents
        if p_masked is not None:
            tl.store(p_masked + o_k, b_tangents * b_slope, mask=m_n)
    if p_slope is None and BELOW == 0:
        b_out = tl.where(b_z < b_lower, b_lower, b_z)
    else:
        b_out = tl.where(m_over_lower, b_z, b_lower + b_below * (b_z - b_lower))
    tl.store(p_out + o_n, tl.where(m_over_upper, b_upper, b_out), mask=m_n)
    b_offset = b_z - (b_upper if LOWER == -INFINITY else b_lower)
    if LOWER != -INFINITY and UPPER != INFINITY:
        b_of_upper = b_z - b_upper
        b_offset = tl.where(tl.abs(b_of_upper) < tl.abs(b_offset), b_of_upper, b_offset)
    m_near = tl.abs(b_offset) < 1
    # The difference of equals is NaN for NaN and infinities.
    b_hinges = tl.where(m_near, 1 - tl.abs(b_offset), b_offset - b_offset)
    b_sides = 4 * (m_near & (b_offset > 0)).to(tl.int8) + 8 * (m_near & (b_offset < 0)).to(tl.int8)
    tl.store(p_code + o_n, b_piece + b_sides, mask=m_n)
    tl.store(p_parts + 2 * program, tl.sum(b_squares, 0))
    tl.store(p_parts + 2 * program + 1, tl.sum(tl.where(m_n, b_hinges, 0.0), 0))


@triton.jit
def roll_activation_backward_kernel(
    p_d_out, p_d_masked, p_d_sums, p_tangents, p_code, p_factor, factor_channels, p_slope, channels,
    p_d_z, p_d_tangents, p_products, K, n, inner,
    BELOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As the forward kernel; p_d_masked is None where nothing arrives there.

    p_products [n] gets what a neuron adds to the gradient by its factor.
    """
    wide: tl.constexpr = p_d_sums.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_n = program * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < n
    row = tl.cast(n, tl.int64)
    d_squares, d_hinges = tl.load(p_d_sums), tl.load(p_d_sums + 1)
    b_code = tl.load(p_code + o_n, mask=m_n, other=0)
    b_d_out = tl.load(p_d_out + o_n, mask=m_n, other=0.0).to(wide)
    b_below = by_channel(p_slope, channels, program * BLOCK, m_n, inner, BELOW, wide, BLOCK)
    b_slope = slopes(b_code & 3, b_below)
    b_factor = by_channel(p_factor, factor_channels, program * BLOCK, m_n, inner, 1.0, wide, BLOCK)
    b_products = tl.zeros([BLOCK], wide)
    for k in range(0, K):
        o_k = k * row + o_n
        b_tangents = tl.load(p_tangents + o_k, mask=m_n, other=0.0).to(wide)
        b_d_tangents = 2 * d_squares * b_tangents
        if p_factor is not None:
            b_d_tangents *= b_factor
        if p_d_masked is not None:
            b_d_tangents += tl.load(p_d_masked + o_k, mask=m_n, other=0.0).to(wide) * b_slope
        if p_factor is not None:
            b_products += b_d_tangents * b_tangents
            b_d_tangents *= b_factor
        tl.store(p_d_tangents + o_k, b_d_tangents, mask=m_n)
    if p_factor is not None:
        tl.store(p_products + o_n, b_products, mask=m_n)
    b_side = ((b_code & 8) != 0).to(wide) - ((b_code & 4) != 0).to(wide)
    tl.store(p_d_z + o_n, b_d_out * b_slope + d_hinges * b_side, mask=m_n)
