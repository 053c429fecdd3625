"""The kernels of the gradient of roll_max_pool: a pass over windows, and where these are large one over entries.

A winner has to know all its losers: they are added up once, not for each of a window's entries. Nothing is added up in
memory, so the sums are the same from run to run. Sizes and constants are those of the kernel of the values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import entry, entry_of_window, first_entries, located, to_loser


@triton.jit
def to_winner(
    p_values, p_arriving, o_sample, o_w, b_winning, mask, b_d, b_h, b_w, b_i, depth, height, width, inner, scale,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, PLACES: tl.constexpr, UNROLL: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """What arrives for the winners of windows o_w, less what their losers get."""
    b_found = tl.load(p_arriving + o_w, mask=mask, other=0.0).to(b_winning.dtype)
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry_of_window(place, b_d, b_h, b_w, b_i, depth, height, width, inner, KERNEL, DILATION)
        b_values = tl.load(p_values + o_sample + b_at, mask=mask & m_real, other=0.0).to(b_winning.dtype)
        b_found -= tl.where(m_real, to_loser(b_winning - b_values, scale, HINGES), 0.0)
    return b_found


@triton.jit
def roll_max_pool_winners_kernel(
    p_d_out, p_d_winning, p_d_sums, p_z, p_tangents, p_index, p_to_winners, K, n, windows,
    depth, height, width, out_depth, out_height, out_width, inner,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PLACES: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """to_winner of every window, for the next kernel: [1 + K, windows], of z and of tangents."""
    wide: tl.constexpr = p_d_sums.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_w = program * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < windows
    o_sample, b_d, b_h, b_w, b_i = first_entries(
        program * BLOCK, depth, height, width, out_depth, out_height, out_width, inner, STRIDE, PADDING, BLOCK
    )
    o_winner = o_sample + tl.load(p_index + o_w, mask=m_w, other=0)
    b_winning = tl.load(p_z + o_winner, mask=m_w, other=0.0).to(wide)
    b_found = to_winner(
        p_z, p_d_out, o_sample, o_w, b_winning, m_w, b_d, b_h, b_w, b_i,
        depth, height, width, inner, tl.load(p_d_sums + 1),
        KERNEL, DILATION, PLACES, UNROLL, True,
    )  # fmt: skip
    tl.store(p_to_winners + o_w, b_found, mask=m_w)
    scale = -2 * tl.load(p_d_sums)
    for k in range(0, K):
        o_k = tl.cast(k, tl.int64)
        b_winning = tl.load(p_tangents + o_k * n + o_winner, mask=m_w, other=0.0).to(wide)
        b_found = to_winner(
            p_tangents + o_k * n, p_d_winning + o_k * windows, o_sample, o_w, b_winning, m_w, b_d, b_h, b_w, b_i,
            depth, height, width, inner, scale, KERNEL, DILATION, PLACES, UNROLL, False,
        )  # fmt: skip
        tl.store(p_to_winners + (o_k + 1) * windows + o_w, b_found, mask=m_w)


@triton.jit
def window(b_x, slot, size, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr):
    """Along one axis the last window but `slot` that begins no later than entries b_x, and whether they are in it."""
    b_w = (b_x + PADDING) // STRIDE - slot
    b_place = b_x + PADDING - b_w * STRIDE
    return b_w, (b_w >= 0) & (b_w < size) & (b_place < KERNEL * DILATION) & (b_place % DILATION == 0)


@triton.jit
def gathered(
    p_values, p_to_winners, p_index, wide: tl.constexpr, m_x, b_n, b_d, b_h, b_w, b_i,
    depth, height, width, out_depth, out_height, out_width, inner, scale,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    SLOTS: tl.constexpr, UNROLL_SLOTS: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """The gradient that entries get from all windows that they are in."""
    o_sample = b_n * (depth * height * width * inner)
    o_windows = b_n * (out_depth * out_height * out_width * inner) + b_i
    b_own, _ = entry(b_d, b_h, b_w, b_i, depth, height, width, inner)
    b_value = tl.load(p_values + o_sample + b_own, mask=m_x, other=0.0).to(wide)
    b_found = tl.zeros_like(b_value)
    for slot in tl.range(0, SLOTS[0] * SLOTS[1] * SLOTS[2], loop_unroll_factor=UNROLL_SLOTS):
        b_wd, m_d = window(b_d, slot // (SLOTS[1] * SLOTS[2]), out_depth, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0])
        b_wh, m_h = window(b_h, slot // SLOTS[2] % SLOTS[1], out_height, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1])
        b_ww, m_w = window(b_w, slot % SLOTS[2], out_width, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2])
        mask = m_x & m_d & m_h & m_w
        o_w = o_windows + ((b_wd * out_height + b_wh) * out_width + b_ww) * inner
        b_index = tl.load(p_index + o_w, mask=mask, other=-1)
        m_wins, m_loses = mask & (b_index == b_own), mask & (b_index != b_own)
        b_winning = tl.load(p_values + o_sample + b_index, mask=m_loses, other=0.0).to(wide)
        b_found += tl.where(m_loses, to_loser(b_winning - b_value, scale, HINGES), 0.0)
        b_to_winner = tl.load(p_to_winners + o_w, mask=m_wins, other=0.0)
        b_found += tl.where(m_wins, b_to_winner, 0.0)
    return b_found


@triton.jit
def roll_max_pool_entries_kernel(
    p_d_sums, p_z, p_tangents, p_index, p_to_winners, p_d_z, p_d_tangents, K, n, windows,
    depth, height, width, out_depth, out_height, out_width, inner,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    SLOTS: tl.constexpr, UNROLL_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK of the n elements of z; they lie in up to SLOTS windows along each axis."""
    wide: tl.constexpr = p_d_sums.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_x = program * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < n
    b_n, b_d, b_h, b_w, b_i = located(program * BLOCK, depth, height, width, inner, BLOCK)
    b_found = gathered(
        p_z, p_to_winners, p_index, wide, m_x, b_n, b_d, b_h, b_w, b_i,
        depth, height, width, out_depth, out_height, out_width, inner, tl.load(p_d_sums + 1),
        KERNEL, STRIDE, PADDING, DILATION, SLOTS, UNROLL_SLOTS, True,
    )  # fmt: skip
    tl.store(p_d_z + o_x, b_found, mask=m_x)
    scale = -2 * tl.load(p_d_sums)
    for k in range(0, K):
        o_k = tl.cast(k, tl.int64)
        b_found = gathered(
            p_tangents + o_k * n, p_to_winners + (o_k + 1) * windows, p_index, wide,
            m_x, b_n, b_d, b_h, b_w, b_i, depth, height, width, out_depth, out_height, out_width, inner, scale,
            KERNEL, STRIDE, PADDING, DILATION, SLOTS, UNROLL_SLOTS, False,
        )  # fmt: skip
        tl.store(p_d_tangents + o_k * n + o_x, b_found, mask=m_x)
