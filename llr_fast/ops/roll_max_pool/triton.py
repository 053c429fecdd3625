"""roll_max_pool for GPUs: how its kernels are launched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..common.arguments import accumulation_dtype
from ..common.registers import NO_SPILLS
from .cell_kernels import roll_max_pool_cells_kernel
from .kernels import roll_max_pool_kernel
from .window_kernels import roll_max_pool_entries_kernel, roll_max_pool_winners_kernel

BLOCK, WARPS = 128, 4  # an element for each thread: neighbours' windows begin `stride` apart
UNROLLED = 16  # places of a window, or entries of a cell, that are held in registers


def geometry(z: Tensor, windows: Sequence[int]) -> tuple[list[int], dict]:
    """Of z [N, *space, I] and its windows as three axes: the kernels' sizes, and their constants."""
    rank = z.dim() - 2
    kernel, stride, padding, dilation, size = (tuple(windows[i * rank : (i + 1) * rank]) for i in range(5))
    ones = (1,) * (3 - rank)
    places = math.prod(kernel)
    constants = {
        "KERNEL": ones + kernel, "STRIDE": ones + stride, "PADDING": (0,) * (3 - rank) + padding,
        "DILATION": ones + dilation, "PLACES": places, "UNROLL": places if places <= UNROLLED else 1,
        "BLOCK": BLOCK, "num_warps": WARPS, **NO_SPILLS,
    }  # fmt: skip
    return [*ones, *z.shape[1:-1], *ones, *size, z.size(-1)], constants


def slots(constants: dict) -> tuple[int, ...]:
    """In how many windows an entry may lie, along each axis."""
    axes = zip(constants["KERNEL"], constants["STRIDE"], constants["DILATION"], strict=True)
    return tuple(-(-((kernel - 1) * dilation + 1) // stride) for kernel, stride, dilation in axes)


def cells_of(sizes: list[int], constants: dict) -> list[int]:
    """How many cells there are along each axis, up to that of the last entry."""
    axes = zip(sizes[:3], constants["STRIDE"], constants["PADDING"], strict=True)
    return [(length - 1 + padding) // stride + 1 for length, stride, padding in axes]


def launch_roll_max_pool(z: Tensor, tangents: Tensor, windows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, tangents = z.contiguous(), tangents.contiguous()
    sizes, constants = geometry(z, windows)
    shape = (z.size(0), *windows[4 * (z.dim() - 2) :], z.size(-1))
    out, winning = z.new_empty(shape), tangents.new_empty(len(tangents), *shape)
    index = z.new_empty(shape, dtype=torch.int32)
    programs = triton.cdiv(out.numel(), BLOCK)
    parts = z.new_empty((programs, 2), dtype=accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype)))
    if programs:
        roll_max_pool_kernel[(programs,)](
            z, tangents, out, winning, index, parts, len(tangents), z.numel(), out.numel(), *sizes, **constants
        )
    return out, winning, parts.sum(0), index


def launch_roll_max_pool_backward(
    d_out: Tensor, d_winning: Tensor, d_sums: Tensor, z: Tensor, tangents: Tensor, index: Tensor, windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    z, tangents, d_out, d_winning, index = (t.contiguous() for t in (z, tangents, d_out, d_winning, index))
    d_sums = d_sums.to(accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))).contiguous()
    sizes, constants = geometry(z, windows)
    counts = (len(tangents), z.numel(), index.numel())
    d_z, d_tangents = z.new_empty(z.shape), tangents.new_empty(tangents.shape)
    if not z.numel():
        return d_z, d_tangents
    to_winners = d_sums.new_empty(1 + len(tangents), *index.shape)
    roll_max_pool_winners_kernel[(triton.cdiv(index.numel(), BLOCK),)](
        d_out, d_winning, d_sums, z, tangents, index, to_winners, *counts, *sizes, **constants
    )
    given = (d_sums, z, tangents, index, to_winners, d_z, d_tangents, *counts)
    slot, places = slots(constants), constants.pop("PLACES")
    del constants["UNROLL"]
    if places <= UNROLLED and math.prod(constants["STRIDE"]) <= UNROLLED:
        cells = cells_of(sizes, constants)
        total = z.size(0) * math.prod(cells) * z.size(-1)
        roll_max_pool_cells_kernel[(triton.cdiv(total, BLOCK),)](*given, total, *sizes, *cells, SLOTS=slot, **constants)
    else:
        roll_max_pool_entries_kernel[(triton.cdiv(z.numel(), BLOCK),)](
            *given, *sizes, SLOTS=slot, UNROLL_SLOTS=math.prod(slot) if math.prod(slot) <= UNROLLED else 1, **constants
        )
    return d_z, d_tangents
