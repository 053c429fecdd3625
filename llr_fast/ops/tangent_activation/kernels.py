"""The kernels of tangent_activation: one pass over the tangents, one over their gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def measure(b_value, STATISTIC: tl.constexpr):
    """What one value adds to a statistic."""
    if STATISTIC == "sum_squares":
        return b_value * b_value
    return tl.abs(b_value)


@triton.jit
def gather_statistic(b_stat, b_measure, STATISTIC: tl.constexpr):
    if STATISTIC == "max_abs":
        return tl.maximum(b_stat, b_measure, propagate_nan=tl.PropagateNan.ALL)
    return b_stat + b_measure


@triton.jit
def reduce_statistic(b_stat, axis: tl.constexpr, STATISTIC: tl.constexpr):
    if STATISTIC == "max_abs":
        # The bits of numbers >= 0 are ordered as the numbers are, with NaN above all; tl.max of floats would drop NaN.
        bits: tl.constexpr = tl.int64 if b_stat.dtype == tl.float64 else tl.int32
        return tl.max(b_stat.to(bits, bitcast=True), axis).to(b_stat.dtype, bitcast=True)
    return tl.sum(b_stat, axis)


@triton.jit
def rounded(b_product, m_tile):
    """A product that is rounded before it is summed.

    Without the choice the compiler fuses it with the first addition. Threads that hold copies of a sum then round
    different terms of it, and their sums differ in the last bit; which one is stored is left to chance.
    """
    return tl.where(m_tile, b_product, 0.0)


@triton.jit
def sign(b_value):
    return (b_value > 0).to(b_value.dtype) - (b_value < 0).to(b_value.dtype)


@triton.jit
def tangent_activation_kernel(
    p_tangents, p_slope, p_out, p_stat, K, B, n,
    STATISTIC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tangents [K, n], the same for all rows of slope [B, n]. A program owns BLOCK_B rows of BLOCK_N columns."""
    tiles = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    first_b = (program // tiles) * BLOCK_B
    o_n = (program % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    row = tl.cast(n, tl.int64)
    b_stat = tl.zeros([BLOCK_K, BLOCK_N], p_stat.dtype.element_ty)
    for first_k in range(0, K, BLOCK_K):
        o_k = first_k + tl.arange(0, BLOCK_K)[:, None]
        m_tile = (o_k < K) & m_n[None, :]
        b_tangents = tl.load(p_tangents + o_k * row + o_n[None, :], mask=m_tile, other=0.0).to(b_stat.dtype)
        b_stat = gather_statistic(b_stat, measure(b_tangents, STATISTIC), STATISTIC)
        for i in tl.static_range(BLOCK_B):
            o_b = first_b + i
            b_slope = tl.load(p_slope + o_b * row + o_n, mask=m_n & (o_b < B), other=0.0).to(b_stat.dtype)
            p_tile = p_out + (o_k * tl.cast(B, tl.int64) + o_b) * row + o_n[None, :]
            tl.store(p_tile, b_tangents * b_slope[None, :], mask=m_tile & (o_b < B))
    b_total = reduce_statistic(b_stat, 0, STATISTIC)
    for i in tl.static_range(BLOCK_B):
        o_b = first_b + i
        tl.store(p_stat + o_b * row + o_n, b_total, mask=m_n & (o_b < B))


@triton.jit
def tangent_activation_backward_kernel(
    p_d_out, p_d_stat, p_tangents, p_slope, p_stat, p_d_tangents, p_d_slope, K, B, n,
    STATISTIC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tangents [K, n] as in the forward kernel; each output may be None. A program owns BLOCK_N columns of a row."""
    tiles = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    o_n = (program % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    row = tl.cast(n, tl.int64)
    o_row = (program // tiles) * row + o_n
    b_stat = tl.load(p_stat + o_row, mask=m_n, other=0.0)
    if p_d_tangents is not None and p_d_out is not None:
        b_slope = tl.load(p_slope + o_row, mask=m_n, other=0.0).to(b_stat.dtype)
    if p_d_tangents is not None and p_d_stat is not None:
        b_d_stat = tl.load(p_d_stat + o_row, mask=m_n, other=0.0)
    b_d_slope = tl.zeros([BLOCK_K, BLOCK_N], b_stat.dtype)
    b_open = tl.full([BLOCK_N], 1, tl.int32)
    for first_k in range(0, K, BLOCK_K):
        o_k = first_k + tl.arange(0, BLOCK_K)[:, None]
        m_tile = (o_k < K) & m_n[None, :]
        o_tile = o_k * (B * row) + o_row[None, :]
        b_tangents = tl.load(p_tangents + o_k * row + o_n[None, :], mask=m_tile, other=0.0).to(b_stat.dtype)
        b_d_tangents = tl.zeros([BLOCK_K, BLOCK_N], b_stat.dtype)
        if p_d_out is not None:
            b_d_out = tl.load(p_d_out + o_tile, mask=m_tile, other=0.0).to(b_stat.dtype)
            if p_d_slope is not None:
                b_d_slope += b_d_out * b_tangents
            if p_d_tangents is not None:
                b_d_tangents = b_d_out * b_slope[None, :]
        if p_d_tangents is not None:
            if p_d_stat is not None:
                if STATISTIC == "sum_squares":
                    b_d_tangents += 2 * b_d_stat[None, :] * b_tangents
                elif STATISTIC == "sum_abs":
                    b_d_tangents += b_d_stat[None, :] * sign(b_tangents)
                else:
                    # The first tangent that equals the maximum; later tiles find b_open cleared.
                    b_hit = (tl.abs(b_tangents) == b_stat[None, :]) & (o_k < K)
                    b_first = tl.min(tl.where(b_hit, o_k, K), 0)
                    m_hit = (o_k == b_first[None, :]) & (b_open[None, :] != 0)
                    b_d_tangents += tl.where(m_hit, b_d_stat[None, :] * sign(b_tangents), 0.0)
                    b_open = tl.where(b_first < K, 0, b_open)
            tl.store(p_d_tangents + o_tile, b_d_tangents, mask=m_tile)
    if p_d_slope is not None:
        tl.store(p_d_slope + o_row, tl.sum(b_d_slope, 0), mask=m_n)


@triton.jit
def tangent_activation_shared_backward_kernel(
    p_d_out, p_d_stat, p_tangents, p_slope, p_first, p_d_tangents, K, B, n,
    STATISTIC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient by tangents [K, n] that B rows share: a program sums a tile of it over the rows.

    p_d_stat [n] is already summed; p_first [n] is where each maximum is attained, or None.
    """
    tiles = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    o_k = (program // tiles) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    o_n = (program % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n
    m_tile = (o_k < K) & m_n[None, :]
    row = tl.cast(n, tl.int64)
    o_tile = o_k * row + o_n[None, :]
    b_sum = tl.zeros([BLOCK_K, BLOCK_N], tl.float64 if p_tangents.dtype.element_ty == tl.float64 else tl.float32)
    if p_d_out is not None:
        p_tile = p_d_out + o_k * (B * row) + o_n[None, :]
        for b in range(0, B):
            b_slope = tl.load(p_slope + b * row + o_n, mask=m_n, other=0.0).to(b_sum.dtype)
            b_sum += tl.load(p_tile + b * row, mask=m_tile, other=0.0).to(b_sum.dtype) * b_slope[None, :]
    if p_d_stat is not None:
        b_tangents = tl.load(p_tangents + o_tile, mask=m_tile, other=0.0).to(b_sum.dtype)
        b_d_stat = tl.load(p_d_stat + o_n, mask=m_n, other=0.0)[None, :]
        if STATISTIC == "sum_squares":
            b_sum += 2 * b_d_stat * b_tangents
        elif STATISTIC == "sum_abs":
            b_sum += b_d_stat * sign(b_tangents)
        else:
            m_hit = o_k == tl.load(p_first + o_n, mask=m_n, other=-1)[None, :]
            b_sum += tl.where(m_hit, b_d_stat * sign(b_tangents), 0.0)
    tl.store(p_d_tangents + o_tile, b_sum, mask=m_tile)
