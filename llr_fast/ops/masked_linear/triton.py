"""masked_linear for GPUs: how its kernels are launched."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..common.arguments import accumulation_dtype
from ..common.registers import NO_SPILLS
from .kernels import masked_linear_backward_kernel, masked_linear_kernel
from .tiles import alignment, dot_precision, dot_type


def blocks(dtype: torch.dtype, align: int = 16) -> dict[str, int]:
    """Tile of rows and outputs, and the inputs taken at a time, for rows of this alignment."""
    # Loads of single numbers take registers of their own.
    half_outputs, outputs, warps = (128, 128, 4) if align >= 4 else (64, 32, 8)
    meta = {
        2: {"BLOCK_R": 64, "BLOCK_O": half_outputs, "BLOCK_I": 32, "num_warps": warps, "num_stages": 3},
        4: {"BLOCK_R": 64, "BLOCK_O": outputs, "BLOCK_I": 16, "num_warps": warps, "num_stages": 3},
        8: {"BLOCK_R": 32, "BLOCK_O": 32, "BLOCK_I": 16, "num_warps": 4, "num_stages": 3},
    }[dtype.itemsize]
    return NO_SPILLS | meta


def backward_blocks(dtype: torch.dtype, align: int = 16) -> dict[str, int]:
    """Square tiles of both gradients, and the outputs and rows that they sum at a time, for rows of this alignment."""
    rows, warps = (32, 4) if align >= 4 else (16, 8)
    meta = {
        2: {"BLOCK": 64, "STEP_O": 32, "STEP_R": 32, "ROW_STAGES": 1, "num_warps": warps, "num_stages": 2},
        4: {"BLOCK": 64, "STEP_O": 16, "STEP_R": rows, "ROW_STAGES": 1, "num_warps": warps, "num_stages": 1},
        8: {"BLOCK": 32, "STEP_O": 16, "STEP_R": 16, "ROW_STAGES": 2, "num_warps": 8, "num_stages": 3},
    }[dtype.itemsize]
    return NO_SPILLS | meta


def parts(rows: int, tiles: int) -> int:
    """Into how many parts a sum over rows is cut, so that a weight of few tiles still occupies the device."""
    return max(1, min(triton.cdiv(512, max(tiles, 1)), rows // 512))


def slots(directions: int, tile: int) -> int:
    """Into how many tiles of rows the directions of one sample may fall."""
    return triton.cdiv(tile - math.gcd(directions, tile) + directions, tile)


def _layout(tangents: Tensor) -> tuple[Tensor, int, int]:
    """Tangents with contiguous rows, and the strides of directions and samples."""
    if tangents.stride(1) == 0 or tangents.shape[1] == 1:
        rows = tangents[:, 0].contiguous()
        return rows, rows.shape[1], 0
    rows = tangents.contiguous()
    return rows, rows.stride(0), rows.stride(1)


def _parts(like: Tensor, count: int) -> Tensor:
    """Memory for the parts of a sum; a single one is the sum itself, in its own type."""
    return like.new_empty((count, *like.shape), dtype=accumulation_dtype(like.dtype) if count > 1 else like.dtype)


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


def _constants(tangents: Tensor, weight: Tensor, statistic: str) -> dict:
    O, I = weight.shape
    # In float64 the product would spill registers for it.
    known = tangents.dtype != torch.float64
    aligned = {"ALIGN_I": alignment(I) if known else 1, "ALIGN_O": alignment(O) if known else 1}
    products = {"DOT": dot_type(tangents.dtype), "PRECISION": dot_precision(tangents.dtype)}
    return {"STATISTIC": statistic, **products, **aligned}


def launch_masked_linear(
    tangents: Tensor, slope: Tensor, weight: Tensor, statistic: str, store: bool
) -> tuple[Tensor, Tensor]:
    K, (B, I), O = len(tangents), slope.shape, len(weight)
    rows, stride_k, stride_b = _layout(tangents)
    meta = blocks(tangents.dtype, alignment(I, O))
    group = K if K in (1, 4) else 0
    out = tangents.new_empty((K, B, O) if store else 0)
    stat = slope.new_zeros((slots(K, meta["BLOCK_R"]), B, O), dtype=accumulation_dtype(tangents.dtype))
    if B * O:
        masked_linear_kernel[(triton.cdiv(K * B, meta["BLOCK_R"]) * triton.cdiv(O, meta["BLOCK_O"]),)](
            rows, slope.contiguous(), weight.T.contiguous(), out if store else None, stat, K, B, I, O,
            stride_k, stride_b, GROUP=group, **_constants(tangents, weight, statistic), **meta,
        )  # fmt: skip
    if len(stat) == 1:
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
    wide = accumulation_dtype(tangents.dtype)
    meta = backward_blocks(tangents.dtype, alignment(I, O))
    tiles_r, tiles_i = triton.cdiv(K * B, meta["BLOCK"]), triton.cdiv(I, meta["BLOCK"])
    is_summed = tangents.shape[1] < B
    d_tangents = tangents.new_empty((K, B, I), dtype=wide if is_summed else tangents.dtype)
    d_slopes = _parts(slope, slots(K, meta["BLOCK"])).zero_() if needs_slope else None
    d_weights, part_tiles, programs = None, 0, tiles_r * tiles_i
    if needs_weight:
        tiles_w = triton.cdiv(O, meta["BLOCK"]) * tiles_i
        part_tiles = triton.cdiv(tiles_r, parts(K * B, tiles_w))
        d_weights = _parts(weight, triton.cdiv(tiles_r, part_tiles))
        programs += len(d_weights) * tiles_w
    masked_linear_backward_kernel[(programs,)](
        d_out, d_stat, out, first, rows, slope, weight, d_tangents, d_slopes, d_weights,
        K, B, I, O, stride_k, stride_b, part_tiles, **_constants(tangents, weight, statistic), **meta,
    )  # fmt: skip
    if is_summed:
        d_tangents = d_tangents.sum(1, keepdim=True).to(tangents.dtype)
    d_slope = d_slope if d_slopes is None else _summed(d_slopes, slope.dtype)
    d_weight = d_weight if d_weights is None else _summed(d_weights, weight.dtype)
    return d_tangents, d_slope, d_weight
