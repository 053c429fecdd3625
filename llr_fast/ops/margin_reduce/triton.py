"""margin_reduce for GPUs: one pass over all layers, found through a table of addresses, and one over its results."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import locate, ratio_dtype

TABLE_COLUMNS = tl.constexpr(5)  # addresses of distances and norms, neurons, first neuron and first block of a layer


@triton.jit
def load_ratios(
    p_table, o_b, block, layers, DISTANCE: tl.constexpr, NORM: tl.constexpr, dtype: tl.constexpr, BLOCK: tl.constexpr
):
    """Ratios of one block of neurons, their mask, and their indices among the neurons of all layers."""
    layer = 0
    for i in range(1, layers):
        layer += (block >= tl.load(p_table + i * TABLE_COLUMNS + 4)).to(tl.int32)
    p_entry = p_table + layer * TABLE_COLUMNS
    p_distance = tl.load(p_entry).to(tl.pointer_type(DISTANCE))
    p_norm = tl.load(p_entry + 1).to(tl.pointer_type(NORM))
    n, first_neuron, first_block = tl.load(p_entry + 2), tl.load(p_entry + 3), tl.load(p_entry + 4)
    o_n = (block - first_block) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < n
    b_distance = tl.load(p_distance + o_b * n + o_n, mask=m_n, other=0.0).to(dtype)
    b_norm = tl.load(p_norm + o_b * n + o_n, mask=m_n, other=0.0).to(dtype)
    b_divisor = tl.where(b_norm == 0, 1.0, b_norm)
    if dtype == tl.float64:
        b_ratio = b_distance / b_divisor
    else:
        b_ratio = tl.div_rn(b_distance, b_divisor)
    b_ratio = tl.where(b_norm == 0, float("inf"), b_ratio)
    return tl.where(b_ratio == b_ratio, b_ratio, float("-inf")), m_n, first_neuron + o_n


@triton.jit
def first_of_least(b_value, b_index):
    """The least value and the lowest index that has it."""
    least = tl.min(b_value, 0)
    return least, tl.min(tl.where(b_value == least, b_index, 0x7FFFFFFFFFFFFFFF), 0)


@triton.jit
def margin_reduce_kernel(
    p_table, p_value, p_index, layers, blocks,
    DISTANCE: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The least ratio of each block of neurons: p_value and p_index [B, blocks]."""
    program = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = p_value.dtype.element_ty
    o_b = program // blocks
    b_ratio, _, b_index = load_ratios(p_table, o_b, program % blocks, layers, DISTANCE, NORM, dtype, BLOCK)
    least, index = first_of_least(b_ratio, b_index)
    tl.store(p_value + program, least)
    tl.store(p_index + program, index)


@triton.jit
def margin_reduce_blocks_kernel(
    p_table, p_value, p_index, p_least, p_layer, p_neuron, layers, blocks, BLOCK: tl.constexpr
):
    """The least of each row of p_value [B, blocks], and the layer and neuron that has it: all [B]."""
    o_b = tl.program_id(0).to(tl.int64)
    b_least = tl.full([BLOCK], float("inf"), p_value.dtype.element_ty)
    b_flat = tl.full([BLOCK], 0x7FFFFFFFFFFFFFFF, tl.int64)
    for first in range(0, blocks, BLOCK):
        o_block = first + tl.arange(0, BLOCK)
        b_value = tl.load(p_value + o_b * blocks + o_block, mask=o_block < blocks, other=float("inf"))
        b_index = tl.load(p_index + o_b * blocks + o_block, mask=o_block < blocks, other=0)
        # Later blocks hold higher indices, so an equal value does not replace an earlier one.
        b_flat = tl.where(b_value < b_least, b_index, b_flat)
        b_least = tl.minimum(b_least, b_value)
    least, flat = first_of_least(b_least, b_flat)
    layer, start = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    for i in range(1, layers):
        first_neuron = tl.load(p_table + i * TABLE_COLUMNS + 3)
        layer += (flat >= first_neuron).to(tl.int64)
        start = tl.where(flat >= first_neuron, first_neuron, start)
    is_none = least == float("inf")
    tl.store(p_least + o_b, tl.where(least == float("-inf"), float("nan"), least))
    tl.store(p_layer + o_b, tl.where(is_none, -1, layer))
    tl.store(p_neuron + o_b, tl.where(is_none, -1, flat - start))


@triton.jit
def smallest_bounds_kernel(
    p_table, p_ratio, layers, blocks, neurons, DISTANCE: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """All ratios, p_ratio [B, N]."""
    program = tl.program_id(0).to(tl.int64)
    o_b = program // blocks
    dtype: tl.constexpr = p_ratio.dtype.element_ty
    b_ratio, m_n, b_index = load_ratios(p_table, o_b, program % blocks, layers, DISTANCE, NORM, dtype, BLOCK)
    tl.store(p_ratio + o_b * neurons + b_index, b_ratio, mask=m_n)


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
