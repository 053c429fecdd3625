"""The kernels of margin_reduce: one pass over all layers, found through a table of addresses, one over its results."""

from __future__ import annotations

import triton
import triton.language as tl

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
