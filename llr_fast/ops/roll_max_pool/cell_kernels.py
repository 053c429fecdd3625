"""The kernel of the gradient of roll_max_pool where windows are small: a pass over cells, after that over windows.

A cell is what a window does not share with the one that begins `stride` further on: each entry is in one cell, and in
windows that begin at its cell or up to SLOTS - 1 cells before, along each axis. Which of them, is known beforehand.
Nothing is added up in memory, so the sums are the same from run to run. Sizes and constants are those of the kernel of
the values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import entry, located, to_loser

ONES, ZEROS = tl.constexpr((1, 1, 1)), tl.constexpr((0, 0, 0))


@triton.constexpr_function
def coordinates(flat, sizes):
    """Of a flat position, along the three axes."""
    return flat // (sizes[1] * sizes[2]), flat // sizes[2] % sizes[1], flat % sizes[2]


@triton.constexpr_function
def before(slot, SLOTS):
    """Where a window begins, in strides from the cell that is `slot` cells after its own."""
    return tuple(-cells for cells in coordinates(slot, SLOTS))


@triton.constexpr_function
def from_cell(slot, place, KERNEL, STRIDE, DILATION, SLOTS):
    """Where one place of a window lies, from the beginning of the cell that is `slot` cells after the window's."""
    axes = zip(coordinates(slot, SLOTS), coordinates(place, KERNEL), STRIDE, DILATION, strict=True)
    return tuple(place * dilation - slot * stride for slot, place, stride, dilation in axes)


@triton.constexpr_function
def place_of(OWN, slot, KERNEL, STRIDE, DILATION, SLOTS):
    """Which place of that window the entry is that lies OWN from the beginning of the cell; -1 for none."""
    places = range(KERNEL[0] * KERNEL[1] * KERNEL[2])
    found = [place for place in places if from_cell(slot, place, KERNEL, STRIDE, DILATION, SLOTS) == tuple(OWN)]
    return found[0] if found else -1


@triton.jit
def entry_of_cell(
    OFFSETS: tl.constexpr, b_d, b_h, b_w, b_i, depth, height, width, inner,
    STRIDE: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Where the entry lies that is so far from the beginning of each cell, and whether it is one and no padding."""
    b_d = b_d * STRIDE[0] + (OFFSETS[0] - PADDING[0])
    b_h = b_h * STRIDE[1] + (OFFSETS[1] - PADDING[1])
    b_w = b_w * STRIDE[2] + (OFFSETS[2] - PADDING[2])
    return entry(b_d, b_h, b_w, b_i, depth, height, width, inner)


@triton.jit
def of_entry(
    OWN: tl.constexpr, p_values, p_to_winners, p_index, wide: tl.constexpr, m_c, b_d, b_h, b_w, b_i,
    depth, height, width, out_depth, out_height, out_width, inner, scale,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    SLOTS: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """The gradient of the entry that is OWN from the beginning of each cell; b_d, b_h, b_w are the cells'."""
    b_own, m_real = entry_of_cell(OWN, b_d, b_h, b_w, b_i, depth, height, width, inner, STRIDE, PADDING)
    b_value = tl.load(p_values + b_own, mask=m_c & m_real, other=0.0).to(wide)
    b_found = tl.zeros(b_d.shape, wide)
    for slot in tl.static_range(SLOTS[0] * SLOTS[1] * SLOTS[2]):
        if place_of(OWN, slot, KERNEL, STRIDE, DILATION, SLOTS) >= 0:
            o_w, m_w = entry_of_cell(
                before(slot, SLOTS), b_d, b_h, b_w, b_i, out_depth, out_height, out_width, inner, ONES, ZEROS
            )
            m_w &= m_c
            b_index = tl.load(p_index + o_w, mask=m_w, other=0)
            b_winning = tl.load(p_values + b_index, mask=m_w, other=0.0).to(wide)
            b_to_winner = tl.load(p_to_winners + o_w, mask=m_w, other=0.0)
            b_to_own = tl.where(b_index == b_own, b_to_winner, to_loser(b_winning - b_value, scale, HINGES))
            b_found += tl.where(m_w, b_to_own, 0.0)
    return b_found


@triton.jit
def of_cells(
    p_gradient, p_values, p_to_winners, p_index, wide: tl.constexpr, m_c, b_n, b_d, b_h, b_w, b_i,
    depth, height, width, out_depth, out_height, out_width, inner, scale,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    SLOTS: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of all entries of cells, after all loads: what they load alike is loaded once."""
    o_sample = b_n * (depth * height * width * inner)
    o_windows = b_n * (out_depth * out_height * out_width * inner)
    b_found = ()
    for own in tl.static_range(STRIDE[0] * STRIDE[1] * STRIDE[2]):
        b_found += (  # type: ignore[assignment]
            of_entry(
                coordinates(own, STRIDE), p_values + o_sample, p_to_winners + o_windows, p_index + o_windows, wide,
                m_c, b_d, b_h, b_w, b_i, depth, height, width, out_depth, out_height, out_width, inner, scale,
                KERNEL, STRIDE, PADDING, DILATION, SLOTS, HINGES,
            ),
        )  # fmt: skip
    for own in tl.static_range(STRIDE[0] * STRIDE[1] * STRIDE[2]):
        b_at, m_real = entry_of_cell(
            coordinates(own, STRIDE), b_d, b_h, b_w, b_i, depth, height, width, inner, STRIDE, PADDING
        )
        tl.store(p_gradient + o_sample + b_at, b_found[own], mask=m_c & m_real)


@triton.jit
def roll_max_pool_cells_kernel(
    p_d_sums, p_z, p_tangents, p_index, p_to_winners, p_d_z, p_d_tangents, K, n, windows, cells,
    depth, height, width, out_depth, out_height, out_width, inner, cells_depth, cells_height, cells_width,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK cells."""
    wide: tl.constexpr = p_d_sums.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    m_c = program * BLOCK + tl.arange(0, BLOCK) < cells
    b_n, b_d, b_h, b_w, b_i = located(program * BLOCK, cells_depth, cells_height, cells_width, inner, BLOCK)
    of_cells(
        p_d_z, p_z, p_to_winners, p_index, wide, m_c, b_n, b_d, b_h, b_w, b_i,
        depth, height, width, out_depth, out_height, out_width, inner, tl.load(p_d_sums + 1),
        KERNEL, STRIDE, PADDING, DILATION, SLOTS, True,
    )  # fmt: skip
    scale = -2 * tl.load(p_d_sums)
    for k in range(0, K):
        o_k = tl.cast(k, tl.int64)
        of_cells(
            p_d_tangents + o_k * n, p_tangents + o_k * n, p_to_winners + (o_k + 1) * windows, p_index, wide,
            m_c, b_n, b_d, b_h, b_w, b_i, depth, height, width, out_depth, out_height, out_width, inner, scale,
            KERNEL, STRIDE, PADDING, DILATION, SLOTS, False,
        )  # fmt: skip
