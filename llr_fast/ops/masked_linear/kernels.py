"""The kernels of masked_linear: a matrix product whose left operand is masked as it is loaded."""

from __future__ import annotations

import triton
import triton.language as tl

from ..tangent_activation.kernels import measure, reduce_statistic, rounded, sign
from .tiles import add_product, aligned, load_wide


@triton.jit
def sample_and_direction(first, o_row, K):
    """Of the rows first + o_row. Only `first` is so large that it takes a division in 64 bits."""
    o_k = (first % K).to(tl.int32) + o_row
    return first // K + o_k // K, (o_k % K).to(tl.int64)


@triton.jit
def load_gradient(p_d_out, p_d_stat, p_out, p_first, o_tile, o_stat, o_k, m_tile, like, STATISTIC: tl.constexpr):
    """A tile of d loss / d out, from out's own gradient and that of its statistic; either may be None."""
    b_gradient = tl.zeros(o_tile.shape, like.dtype)
    if p_d_out is not None:
        b_gradient += load_wide(p_d_out + o_tile, m_tile, like)
    if p_d_stat is not None:
        b_out = load_wide(p_out + o_tile, m_tile, like)
        b_d_stat = load_wide(p_d_stat + o_stat, m_tile, like)
        if STATISTIC == "sum_squares":
            b_gradient += 2 * b_d_stat * b_out
        elif STATISTIC == "sum_abs":
            b_gradient += b_d_stat * sign(b_out)
        else:
            m_hit = o_k == tl.load(p_first + o_stat, mask=m_tile, other=-1)
            b_gradient += tl.where(m_hit, b_d_stat * sign(b_out), 0.0)
    return b_gradient


@triton.jit
def store_by_sample(p_sums, b_value, o_b, tile, K, B, o_column, columns, STATISTIC: tl.constexpr):
    """Reduce the rows of a tile that belong to one sample, for each sample in it, into p_sums [slots, B, columns].

    A sample's rows may lie in several tiles: each tile writes to its own slot, counted from the sample's first tile.
    """
    rows: tl.constexpr = b_value.shape[0]
    first = tile * rows
    for b in range(first // K, (tl.minimum(first + rows, K * B) - 1) // K + 1):
        slot = tile - b * K // rows
        b_sum = reduce_statistic(rounded(b_value, (o_b == b)[:, None]), 0, STATISTIC)
        tl.store(p_sums + (slot * B + b) * columns + o_column, b_sum, mask=o_column < columns)


@triton.jit
def masked_linear_kernel(
    p_tangents, p_slope, p_weight, p_out, p_stat, K, B, I, O, stride_k, stride_b,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_O outputs of BLOCK_R rows; row b * K + k is direction k of sample b.

    p_weight is [I, O]: row by row as the product reads it. p_out may be None. p_stat is [slots, B, O], or [B, O] where
    GROUP = K divides a tile into whole samples.
    """
    I, O = aligned(I, ALIGN_I), aligned(O, ALIGN_O)
    stride_k, stride_b = aligned(stride_k, ALIGN_I), aligned(stride_b, ALIGN_I)
    tiles_o = tl.cdiv(O, BLOCK_O)
    # Programs that read the same tangents are neighbours, so that the second reads them from the cache.
    tile = (tl.program_id(0) // tiles_o).to(tl.int64)
    samples = tl.cast(B, tl.int64)
    o_b, o_k = sample_and_direction(tile * BLOCK_R, tl.arange(0, BLOCK_R), K)
    o_o = (tl.program_id(0) % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_row, m_o = o_b < B, o_o < O
    p_rows = p_tangents + (o_k * stride_k + o_b * stride_b)[:, None]
    p_slopes = p_slope + (o_b * I)[:, None]
    b_out = tl.zeros([BLOCK_R, BLOCK_O], p_stat.dtype.element_ty)
    for first_i in range(0, I, BLOCK_I):
        o_i = first_i + tl.arange(0, BLOCK_I)
        m_tile = m_row[:, None] & (o_i < I)[None, :]
        b_masked = load_wide(p_rows + o_i[None, :], m_tile, b_out) * load_wide(p_slopes + o_i[None, :], m_tile, b_out)
        p_tile = p_weight + o_i[:, None].to(tl.int64) * O + o_o[None, :]
        b_weight = tl.load(p_tile, mask=(o_i < I)[:, None] & m_o[None, :], other=0.0)
        b_out = add_product(b_out, b_masked, b_weight, DOT, PRECISION)
    if p_out is not None:
        tl.store(p_out + ((o_k * samples + o_b) * O)[:, None] + o_o[None, :], b_out, mask=m_row[:, None] & m_o[None, :])
    b_measure = rounded(measure(b_out, STATISTIC), m_row[:, None])
    if GROUP == 0:
        store_by_sample(p_stat, b_measure, o_b, tile, K, samples, o_o, O, STATISTIC)
    else:
        b_stat = reduce_statistic(tl.reshape(b_measure, [BLOCK_R // GROUP, GROUP, BLOCK_O]), 1, STATISTIC)
        o_sample = tile * (BLOCK_R // GROUP) + tl.arange(0, BLOCK_R // GROUP)[:, None]
        tl.store(p_stat + o_sample * O + o_o[None, :], b_stat, mask=(o_sample < B) & m_o[None, :])


@triton.jit
def tangents_gradient(
    tile, tile_i, p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_weight, p_d_tangents, p_d_slope,
    K, B, I, O, stride_k, stride_b,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP_O: tl.constexpr,
):  # fmt: skip
    """A tile of p_d_tangents [K, B, I], and what it adds to p_d_slope [slots, B, I] or None."""
    samples = tl.cast(B, tl.int64)
    o_b, o_k = sample_and_direction(tile * BLOCK, tl.arange(0, BLOCK), K)
    o_i = tile_i * BLOCK + tl.arange(0, BLOCK)
    m_row, m_i = o_b < B, o_i < I
    b_d_masked = tl.zeros([BLOCK, BLOCK], tl.float64 if p_tangents.dtype.element_ty == tl.float64 else tl.float32)
    for first_o in range(0, O, STEP_O):
        o_o = first_o + tl.arange(0, STEP_O)
        b_gradient = load_gradient(
            p_d_out, p_d_stat, p_out, p_first, ((o_k * samples + o_b) * O)[:, None] + o_o[None, :],
            (o_b * O)[:, None] + o_o[None, :], o_k[:, None], m_row[:, None] & (o_o[None, :] < O), b_d_masked, STATISTIC,
        )  # fmt: skip
        p_weights = p_weight + o_o[:, None].to(tl.int64) * I + o_i[None, :]
        b_weight = tl.load(p_weights, mask=(o_o[:, None] < O) & m_i[None, :], other=0.0)
        b_d_masked = add_product(b_d_masked, b_gradient, b_weight, DOT, PRECISION)
    m_tile = m_row[:, None] & m_i[None, :]
    b_slope = load_wide(p_slope + (o_b * I)[:, None] + o_i[None, :], m_tile, b_d_masked)
    p_tile = p_d_tangents + ((o_k * samples + o_b) * I)[:, None] + o_i[None, :]
    tl.store(p_tile, b_d_masked * b_slope, mask=m_tile)
    if p_d_slope is not None:
        p_tile = p_tangents + (o_k * stride_k + o_b * stride_b)[:, None] + o_i[None, :]
        b_product = b_d_masked * load_wide(p_tile, m_tile, b_d_masked)
        store_by_sample(p_d_slope, b_product, o_b, tile, K, samples, o_i, I, "sum_squares")


@triton.jit
def weight_gradient(
    first_row, rows, tile_o, tile_i, p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_d_weight,
    K, B, I, O, stride_k, stride_b,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP_R: tl.constexpr,
    ROW_STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of p_d_weight [O, I], summed over `rows` rows: so few that 32 bits count them and divide faster."""
    samples = tl.cast(B, tl.int64)
    o_o = tile_o * BLOCK + tl.arange(0, BLOCK)
    o_i = tile_i * BLOCK + tl.arange(0, BLOCK)[None, :]
    m_o, m_i = o_o < O, o_i < I
    b_d_weight = tl.zeros([BLOCK, BLOCK], tl.float64 if p_tangents.dtype.element_ty == tl.float64 else tl.float32)
    for first in tl.range(0, rows, STEP_R, num_stages=ROW_STAGES):
        o_row = first + tl.arange(0, STEP_R)
        o_b, o_k = sample_and_direction(first_row, o_row, K)
        o_b, o_k, m_row = o_b[:, None], o_k[:, None], (o_row < rows)[:, None]
        b_masked = load_wide(p_tangents + o_k * stride_k + o_b * stride_b + o_i, m_row & m_i, b_d_weight)
        b_masked *= load_wide(p_slope + o_b * I + o_i, m_row & m_i, b_d_weight)
        b_gradient = load_gradient(
            p_d_out, p_d_stat, p_out, p_first, (o_k * samples + o_b) * O + o_o[None, :], o_b * O + o_o[None, :],
            o_k, m_row & m_o[None, :], b_d_weight, STATISTIC,
        )  # fmt: skip
        b_d_weight = add_product(b_d_weight, tl.trans(b_gradient.to(DOT)), b_masked, DOT, PRECISION)
    p_tile = p_d_weight + o_o[:, None].to(tl.int64) * I + o_i
    tl.store(p_tile, b_d_weight, mask=m_o[:, None] & m_i)


@triton.jit
def masked_linear_backward_kernel(
    p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_weight, p_d_tangents, p_d_slope, p_d_weight,
    K, B, I, O, stride_k, stride_b, part_tiles,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, STEP_O: tl.constexpr, STEP_R: tl.constexpr, ROW_STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients; rows are numbered as in the forward kernel. p_d_weight is [parts, O, I] or None.

    The rows come in parts of part_tiles tiles. A part's programs for the gradient by tangents and slope precede those
    for its share of the weight's, which read the same rows: the cache still holds them, if the part fits into it.
    """
    I, O = aligned(I, ALIGN_I), aligned(O, ALIGN_O)
    stride_k, stride_b = aligned(stride_k, ALIGN_I), aligned(stride_b, ALIGN_I)
    tiles_i = tl.cdiv(I, BLOCK)
    tile, tile_i = (tl.program_id(0) // tiles_i).to(tl.int64), tl.program_id(0) % tiles_i
    if p_d_weight is not None:
        part_lines = part_tiles + tl.cdiv(O, BLOCK)  # of tiles_i programs each
        part, tile = tile // part_lines, tile % part_lines
        rows = tl.cast(K, tl.int64) * B
        first = part * part_tiles
        tiles = tl.minimum(part_tiles, tl.cdiv(rows, BLOCK) - first)
        if tile >= tiles:
            weight_gradient(
                first * BLOCK, tl.minimum(tiles * BLOCK, rows - first * BLOCK).to(tl.int32),
                (tile - tiles).to(tl.int32), tile_i,
                p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_d_weight + part * O * I,
                K, B, I, O, stride_k, stride_b, STATISTIC, DOT, PRECISION, BLOCK, STEP_R, ROW_STAGES,
            )  # fmt: skip
            return
        tile += first
    tangents_gradient(
        tile, tile_i, p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_weight, p_d_tangents, p_d_slope,
        K, B, I, O, stride_k, stride_b, STATISTIC, DOT, PRECISION, BLOCK, STEP_O,
    )  # fmt: skip
