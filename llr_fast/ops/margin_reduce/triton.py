"""margin_reduce for GPUs: how its kernels are launched."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import margin_reduce_blocks_kernel, margin_reduce_kernel, smallest_bounds_kernel
from .reference import locate, ratio_dtype

BLOCK = 1024


def _table(distances: list[Tensor], norms: list[Tensor]) -> tuple[Tensor, int]:
    """The table of layers that the kernels read, and into how many blocks the neurons of all layers fall."""
    rows, neurons, blocks = [], 0, 0
    for distance, norm in zip(distances, norms, strict=True):
        n = distance.shape[1]
        rows.append((distance.data_ptr(), norm.data_ptr(), n, neurons, blocks))
        neurons, blocks = neurons + n, blocks + triton.cdiv(n, BLOCK)
    # From pinned memory the copy does not wait for the kernels before it.
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=distances[0].is_cuda)
    return table.to(distances[0].device, non_blocking=True), blocks


def _element_types(distances: list[Tensor], norms: list[Tensor]) -> dict[str, tl.dtype]:
    """Triton names its types as torch does."""
    types = {"DISTANCE": distances[0].dtype, "NORM": norms[0].dtype}
    return {name: getattr(tl, str(dtype).removeprefix("torch.")) for name, dtype in types.items()}


def launch_margin_reduce(distances: list[Tensor], norms: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    distances, norms = [d.contiguous() for d in distances], [n.contiguous() for n in norms]
    B = len(distances[0])
    table, blocks = _table(distances, norms)
    least = distances[0].new_full((B,), torch.inf, dtype=ratio_dtype(distances[0], norms[0]))
    layer, neuron = table.new_full((B,), -1), table.new_full((B,), -1)
    if B * blocks:
        values, indices = least.new_empty(B, blocks), table.new_empty(B, blocks)
        types = _element_types(distances, norms)
        margin_reduce_kernel[(B * blocks,)](
            table, values, indices, len(table), blocks, **types, BLOCK=BLOCK, num_warps=4
        )
        margin_reduce_blocks_kernel[(B,)](
            table, values, indices, least, layer, neuron, len(table), blocks, BLOCK=BLOCK, num_warps=4
        )
    return least.to(distances[0].dtype), layer, neuron


def launch_smallest_bounds(distances: list[Tensor], norms: list[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    distances, norms = [d.contiguous() for d in distances], [n.contiguous() for n in norms]
    B, widths = len(distances[0]), [d.shape[1] for d in distances]
    table, blocks = _table(distances, norms)
    ratio = distances[0].new_empty((B, sum(widths)), dtype=ratio_dtype(distances[0], norms[0]))
    if B * blocks:
        types = _element_types(distances, norms)
        smallest_bounds_kernel[(B * blocks,)](
            table, ratio, len(widths), blocks, sum(widths), **types, BLOCK=BLOCK, num_warps=4
        )
    value, flat = ratio.topk(min(count, sum(widths)), largest=False)
    return locate(value, flat, widths, distances[0].dtype)
