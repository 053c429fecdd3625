"""tangent_activation for GPUs: how its kernels are launched."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..common.arguments import accumulation_dtype
from ..common.registers import NO_SPILLS
from .kernels import (
    tangent_activation_backward_kernel,
    tangent_activation_kernel,
    tangent_activation_shared_backward_kernel,
)


def blocks(directions: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles [BLOCK_K, BLOCK_N], wide where there are few directions; of eight numbers a thread, or of eight KiB."""
    block_k = 1 if directions == 1 else 4 if directions <= 4 else 16 if directions <= 16 else 32
    size = min(2048, 8192 // dtype.itemsize)
    return NO_SPILLS | {"BLOCK_K": block_k, "BLOCK_N": size // block_k, "num_warps": 8}


def _layout(tangents: Tensor, slope: Tensor) -> tuple[Tensor, int, int]:
    """Tangents that are the same for B rows of n columns, with B and n; one long row where they are not shared."""
    if tangents.stride(1) == 0 or tangents.shape[1] == 1:
        return tangents[:, 0].contiguous(), *slope.shape
    return tangents.contiguous(), 1, slope.numel()


def launch_tangent_activation(tangents: Tensor, slope: Tensor, statistic: str) -> tuple[Tensor, Tensor]:
    rows, B, n = _layout(tangents, slope)
    K = len(tangents)
    out = tangents.new_empty(K, *slope.shape)
    stat = slope.new_empty(slope.shape, dtype=accumulation_dtype(tangents.dtype))
    if slope.numel() == 0:
        return out, stat
    meta = blocks(K, tangents.dtype)
    block_b = 1 if B == 1 else 8
    grid = (triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(B, block_b),)
    tangent_activation_kernel[grid](
        rows, slope.contiguous(), out, stat, K, B, n, STATISTIC=statistic, BLOCK_B=block_b, **meta
    )
    return out, stat


def launch_tangent_activation_backward(
    d_out: Tensor | None,
    d_stat: Tensor | None,
    tangents: Tensor,
    slope: Tensor,
    stat: Tensor,
    statistic: str,
    needs_slope: bool,
) -> tuple[Tensor, Tensor]:
    rows, B, n = _layout(tangents, slope)
    K = len(tangents)
    slope = slope.contiguous()
    d_out = None if d_out is None else d_out.contiguous()
    d_tangents = tangents.new_empty(tangents.shape)
    d_slope = slope.new_empty(slope.shape if needs_slope else 0)
    if slope.numel() == 0:
        return d_tangents.zero_(), d_slope
    meta = blocks(K, tangents.dtype)
    tiles = triton.cdiv(n, meta["BLOCK_N"])
    is_summed = tangents.shape[1] < slope.shape[0]
    if is_summed:
        d_total = None if d_stat is None else d_stat.sum(0)
        first = rows.abs().argmax(0).int() if statistic == "max_abs" else None
        tangent_activation_shared_backward_kernel[(triton.cdiv(K, meta["BLOCK_K"]) * tiles,)](
            d_out, d_total, rows, slope, first, d_tangents, K, B, n, STATISTIC=statistic, **meta
        )
    if needs_slope or not is_summed:
        tangent_activation_backward_kernel[(tiles * B,)](
            d_out, None if d_stat is None else d_stat.contiguous(), rows, slope, stat,
            None if is_summed else d_tangents, d_slope if needs_slope else None,
            K, B, n, STATISTIC=statistic, **meta,
        )  # fmt: skip
    return d_tangents, d_slope
