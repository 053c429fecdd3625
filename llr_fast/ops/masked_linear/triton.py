"""masked_linear for GPUs: a matrix product whose left operand is masked as it is loaded."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import accumulation_dtype
from ..tangent_activation.triton import measure, reduce_statistic, rounded, sign


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
    STATISTIC: tl.constexpr, DOT: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
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
    o_row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    o_b, o_k = o_row // K, o_row % K
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
        b_out = tl.dot(b_masked.to(DOT), b_weight.to(DOT), b_out, input_precision="ieee", out_dtype=b_out.dtype)
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
def masked_linear_backward_kernel(
    p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_weight, p_d_tangents, p_d_slope,
    K, B, I, O, stride_k, stride_b,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """The gradients by tangents, p_d_tangents [K, B, I], and by slope, p_d_slope [slots, B, I] or None."""
    I, O = aligned(I, ALIGN_I), aligned(O, ALIGN_O)
    stride_k, stride_b = aligned(stride_k, ALIGN_I), aligned(stride_b, ALIGN_I)
    tiles_i = tl.cdiv(I, BLOCK_I)
    tile = (tl.program_id(0) // tiles_i).to(tl.int64)
    samples = tl.cast(B, tl.int64)
    o_row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    o_b, o_k = o_row // K, o_row % K
    o_i = (tl.program_id(0) % tiles_i) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_row, m_i = o_b < B, o_i < I
    b_d_masked = tl.zeros([BLOCK_R, BLOCK_I], tl.float64 if p_tangents.dtype.element_ty == tl.float64 else tl.float32)
    for first_o in range(0, O, BLOCK_O):
        o_o = first_o + tl.arange(0, BLOCK_O)
        b_gradient = load_gradient(
            p_d_out, p_d_stat, p_out, p_first, ((o_k * samples + o_b) * O)[:, None] + o_o[None, :],
            (o_b * O)[:, None] + o_o[None, :], o_k[:, None], m_row[:, None] & (o_o[None, :] < O), b_d_masked, STATISTIC,
        )  # fmt: skip
        p_weights = p_weight + o_o[:, None].to(tl.int64) * I + o_i[None, :]
        b_weight = tl.load(p_weights, mask=(o_o[:, None] < O) & m_i[None, :], other=0.0)
        b_d_masked = tl.dot(
            b_gradient.to(DOT), b_weight.to(DOT), b_d_masked, input_precision="ieee", out_dtype=b_d_masked.dtype
        )
    m_tile = m_row[:, None] & m_i[None, :]
    b_slope = load_wide(p_slope + (o_b * I)[:, None] + o_i[None, :], m_tile, b_d_masked)
    p_tile = p_d_tangents + ((o_k * samples + o_b) * I)[:, None] + o_i[None, :]
    tl.store(p_tile, b_d_masked * b_slope, mask=m_tile)
    if p_d_slope is not None:
        p_tile = p_tangents + (o_k * stride_k + o_b * stride_b)[:, None] + o_i[None, :]
        b_product = b_d_masked * load_wide(p_tile, m_tile, b_d_masked)
        store_by_sample(p_d_slope, b_product, o_b, tile, K, samples, o_i, I, "sum_squares")


@triton.jit
def masked_linear_backward_weight_kernel(
    p_d_out, p_d_stat, p_out, p_first, p_tangents, p_slope, p_d_weight, K, B, I, O, stride_k, stride_b, rows,
    STATISTIC: tl.constexpr, DOT: tl.constexpr, ALIGN_I: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """p_d_weight [parts, O, I]: each part is the sum over `rows` of the K * B pairs of direction and sample."""
    I, O = aligned(I, ALIGN_I), aligned(O, ALIGN_O)
    stride_k, stride_b = aligned(stride_k, ALIGN_I), aligned(stride_b, ALIGN_I)
    tiles_i, tiles_o = tl.cdiv(I, BLOCK_I), tl.cdiv(O, BLOCK_O)
    program = tl.program_id(0)
    part = (program // tiles_i // tiles_o).to(tl.int64)
    o_o = ((program // tiles_i) % tiles_o) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_i = (program % tiles_i) * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    m_o, m_i = o_o < O, o_i < I
    samples = tl.cast(B, tl.int64)
    last = tl.minimum((part + 1) * rows, K * samples)
    b_d_weight = tl.zeros([BLOCK_O, BLOCK_I], p_d_weight.dtype.element_ty)
    for first in range(part * rows, last, BLOCK_R):
        o_row = first + tl.arange(0, BLOCK_R)
        o_k, o_b = (o_row // B)[:, None], (o_row % B)[:, None]
        m_row = (o_row < last)[:, None]
        b_gradient = load_gradient(
            p_d_out, p_d_stat, p_out, p_first, o_row[:, None] * O + o_o[None, :], o_b * O + o_o[None, :],
            o_k, m_row & m_o[None, :], b_d_weight, STATISTIC,
        )  # fmt: skip
        b_masked = load_wide(p_tangents + o_k * stride_k + o_b * stride_b + o_i, m_row & m_i, b_d_weight)
        b_masked *= load_wide(p_slope + o_b * I + o_i, m_row & m_i, b_d_weight)
        b_d_weight = tl.dot(
            tl.trans(b_gradient.to(DOT)), b_masked.to(DOT), b_d_weight,
            input_precision="ieee", out_dtype=b_d_weight.dtype,
        )  # fmt: skip
    p_tile = p_d_weight + (part * O + o_o[:, None]) * I + o_i
    tl.store(p_tile, b_d_weight, mask=m_o[:, None] & m_i)


def blocks(dtype: torch.dtype) -> dict[str, int]:
    """Tile of rows and outputs, and the inputs taken at a time."""
    return {
        2: {"BLOCK_R": 64, "BLOCK_O": 64, "BLOCK_I": 32, "num_warps": 4, "num_stages": 4},
        4: {"BLOCK_R": 128, "BLOCK_O": 64, "BLOCK_I": 16, "num_warps": 8, "num_stages": 2},
        8: {"BLOCK_R": 32, "BLOCK_O": 32, "BLOCK_I": 16, "num_warps": 4, "num_stages": 3},
    }[dtype.itemsize]


def backward_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Tile of rows and inputs, and the outputs taken at a time."""
    return {
        2: {"BLOCK_R": 64, "BLOCK_O": 32, "BLOCK_I": 64, "num_warps": 4, "num_stages": 2},
        4: {"BLOCK_R": 64, "BLOCK_O": 16, "BLOCK_I": 64, "num_warps": 8, "num_stages": 2},
        8: {"BLOCK_R": 32, "BLOCK_O": 16, "BLOCK_I": 32, "num_warps": 4, "num_stages": 2},
    }[dtype.itemsize]


def weight_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Tile of the weight's gradient, and the rows summed at a time."""
    return {
        2: {"BLOCK_R": 64, "BLOCK_O": 64, "BLOCK_I": 64, "num_warps": 4, "num_stages": 1},
        4: {"BLOCK_R": 32, "BLOCK_O": 64, "BLOCK_I": 64, "num_warps": 8, "num_stages": 2},
        8: {"BLOCK_R": 16, "BLOCK_O": 32, "BLOCK_I": 32, "num_warps": 8, "num_stages": 1},
    }[dtype.itemsize]


def parts(rows: int, tiles: int) -> int:
    """Into how many parts a sum over rows is cut, so that a weight of few tiles still occupies the device."""
    return max(1, min(triton.cdiv(512, max(tiles, 1)), rows // 512))


def alignment(size: int) -> int:
    """The power of two, up to 16, of which a row's length is a multiple."""
    return math.gcd(size, 16)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type of a matrix product's operands. The interpreter holds bf16 as integers and cannot multiply it."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}.get(dtype, tl.float64)


def _layout(tangents: Tensor) -> tuple[Tensor, int, int]:
    """Tangents with contiguous rows, and the strides of directions and samples."""
    if tangents.stride(1) == 0 or tangents.shape[1] == 1:
        rows = tangents[:, 0].contiguous()
        return rows, rows.shape[1], 0
    rows = tangents.contiguous()
    return rows, rows.stride(0), rows.stride(1)


def _slots(directions: int, block_r: int) -> int:
    """Into how many tiles of rows the directions of one sample may fall."""
    return triton.cdiv(directions - 1, block_r) + 1


def _constants(tangents: Tensor, weight: Tensor, statistic: str) -> dict:
    O, I = weight.shape
    # In float64 the product would spill registers for it.
    known = tangents.dtype != torch.float64
    aligned = {"ALIGN_I": alignment(I) if known else 1, "ALIGN_O": alignment(O) if known else 1}
    return {"STATISTIC": statistic, "DOT": dot_type(tangents.dtype), **aligned}


def launch_masked_linear(
    tangents: Tensor, slope: Tensor, weight: Tensor, statistic: str, store: bool
) -> tuple[Tensor, Tensor]:
    K, (B, I), O = len(tangents), slope.shape, len(weight)
    rows, stride_k, stride_b = _layout(tangents)
    meta = blocks(tangents.dtype)
    group = K if K in (1, 4) else 0
    out = tangents.new_empty((K, B, O) if store else 0)
    stat = slope.new_zeros((_slots(K, meta["BLOCK_R"]), B, O), dtype=accumulation_dtype(tangents.dtype))
    if B * O:
        masked_linear_kernel[(triton.cdiv(K * B, meta["BLOCK_R"]) * triton.cdiv(O, meta["BLOCK_O"]),)](
            rows, slope.contiguous(), weight.T.contiguous(), out if store else None, stat, K, B, I, O,
            stride_k, stride_b, GROUP=group, **_constants(tangents, weight, statistic), **meta,
        )  # fmt: skip
    if group:
        return out, stat[0]
    return out, stat.amax(0) if statistic == "max_abs" else stat.sum(0)


def launch_masked_linear_backward(
    d_out: Tensor | None,
    d_stat: Tensor | None,
    out: Tensor | None,
    tangents: Tensor,
    slope: Tensor,
    weight: Tensor,
    statistic: str,
    needs_slope: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    K, (B, I), O = len(tangents), slope.shape, len(weight)
    d_slope = slope.new_zeros(slope.shape if needs_slope else 0)
    d_weight = weight.new_zeros(weight.shape if needs_weight else 0)
    if B * O * I == 0:
        return tangents.new_zeros(tangents.shape), d_slope, d_weight
    rows, stride_k, stride_b = _layout(tangents)
    slope, weight = slope.contiguous(), weight.contiguous()
    d_out, d_stat = (None if d is None else d.contiguous() for d in (d_out, d_stat))
    first = None
    if d_stat is None:
        out = None
    else:
        out = launch_masked_linear(tangents, slope, weight, statistic, True)[0] if out is None else out
        if statistic == "max_abs":
            # Indices as wide as the numbers, but for half ones: the tile's layout in registers then suits both.
            first = out.abs().argmax(0).to(torch.int64 if out.dtype == torch.float64 else torch.int32)
    gradient = (d_out, d_stat, out, first)
    sizes = (K, B, I, O, stride_k, stride_b)
    fixed = _constants(tangents, weight, statistic)
    wide = accumulation_dtype(tangents.dtype)

    meta = backward_blocks(tangents.dtype)
    is_summed = tangents.shape[1] < B
    d_tangents = tangents.new_empty((K, B, I), dtype=wide if is_summed else tangents.dtype)
    sums = slope.new_zeros((_slots(K, meta["BLOCK_R"]), B, I), dtype=wide) if needs_slope else None
    masked_linear_backward_kernel[(triton.cdiv(K * B, meta["BLOCK_R"]) * triton.cdiv(I, meta["BLOCK_I"]),)](
        *gradient, rows, slope, weight, d_tangents, sums, *sizes, **fixed, **meta
    )
    if is_summed:
        d_tangents = d_tangents.sum(1, keepdim=True).to(tangents.dtype)
    if sums is not None:
        d_slope = sums.sum(0).to(slope.dtype)

    if needs_weight:
        meta = weight_blocks(tangents.dtype)
        tiles = triton.cdiv(O, meta["BLOCK_O"]) * triton.cdiv(I, meta["BLOCK_I"])
        count = parts(K * B, tiles)
        sums = weight.new_empty((count, O, I), dtype=wide)
        masked_linear_backward_weight_kernel[(tiles * count,)](
            *gradient, rows, slope, sums, *sizes, triton.cdiv(K * B, count), **fixed, **meta
        )
        d_weight = sums.sum(0).to(weight.dtype)
    return d_tangents, d_slope, d_weight
