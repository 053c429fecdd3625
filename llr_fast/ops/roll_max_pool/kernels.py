"""The kernels of roll_max_pool: one over windows forward; one over entries backward, which gather from their windows.

Tensors are [N, depth, height, width, inner], of which `inner` lie beside each other, or [K, ...] of them. The constants
KERNEL, STRIDE, PADDING and DILATION have three numbers each, for depth, height and width.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def located(first, depth, height, width, inner, BLOCK: tl.constexpr):
    """Sample, coordinates along the three axes, and place within `inner`, of BLOCK elements from `first` on."""
    # Two divisions of 64 bits for all of them; those of each are of 32.
    size = tl.cast(depth * height * width * inner, tl.int32)
    o_n = (first % size).to(tl.int32) + tl.arange(0, BLOCK)
    b_sample = o_n // size
    o_n -= b_sample * size
    b_w = o_n // inner
    b_i = o_n - b_w * inner
    b_h = b_w // width
    b_w -= b_h * width
    b_d = b_h // height % depth  # which is no work where depth is the constant 1
    return first // size + b_sample, b_d, b_h - b_d * height, b_w, b_i


@triton.jit
def entry(place, b_d, b_h, b_w, depth, height, width, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """Where one place of windows lies in its plane, and whether that is no padding; b_d, b_h, b_w are their first."""
    b_d = b_d + place // (KERNEL[1] * KERNEL[2]) * DILATION[0]
    b_h = b_h + place // KERNEL[2] % KERNEL[1] * DILATION[1]
    b_w = b_w + place % KERNEL[2] * DILATION[2]
    m_real = (b_d >= 0) & (b_d < depth) & (b_h >= 0) & (b_h < height) & (b_w >= 0) & (b_w < width)
    return (b_d * height + b_h) * width + b_w, m_real


@triton.jit
def roll_max_pool_kernel(
    p_z, p_tangents, p_out, p_winning, p_index, p_parts, K, n, windows,
    depth, height, width, out_depth, out_height, out_width, inner,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PLACES: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK of `windows` windows and writes its sums into a row of p_parts; z has n elements."""
    wide: tl.constexpr = p_parts.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_w = program * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < windows
    b_n, b_d, b_h, b_w, b_i = located(program * BLOCK, out_depth, out_height, out_width, inner, BLOCK)
    o_plane = b_n * (depth * height * width * inner) + b_i
    b_d = b_d * STRIDE[0] - PADDING[0]
    b_h = b_h * STRIDE[1] - PADDING[1]
    b_w = b_w * STRIDE[2] - PADDING[2]
    b_out = tl.full([BLOCK], -INFINITY, wide)
    b_index = tl.full([BLOCK], -1, tl.int32)
    # Where all places are unrolled, what is loaded twice is loaded once.
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry(place, b_d, b_h, b_w, depth, height, width, KERNEL, DILATION)
        b_z = tl.load(p_z + o_plane + b_at * inner, mask=m_w & m_real, other=0.0).to(wide)
        # The first of equals, or the first NaN.
        m_wins = (b_index < 0) | (b_z > b_out) | ((b_z != b_z) & (b_out == b_out))
        b_out = tl.where(m_real & m_wins, b_z, b_out)
        b_index = tl.where(m_real & m_wins, b_at, b_index)
    b_hinges = tl.zeros([BLOCK], wide)
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry(place, b_d, b_h, b_w, depth, height, width, KERNEL, DILATION)
        b_z = tl.load(p_z + o_plane + b_at * inner, mask=m_w & m_real, other=0.0).to(wide)
        b_lead = b_out - b_z
        # The difference of equals is NaN for NaN and infinities.
        b_hinge = tl.where(b_lead < 1, 1 - b_lead, b_lead - b_lead)
        b_hinges += tl.where(m_w & m_real & (b_at != b_index), b_hinge, 0.0)
    tl.store(p_out + o_w, b_out, mask=m_w)
    tl.store(p_index + o_w, b_index, mask=m_w)
    b_squares = tl.zeros([BLOCK], wide)
    for k in range(0, K):
        p_row = p_tangents + tl.cast(k, tl.int64) * n
        b_winning = tl.load(p_row + o_plane + b_index * inner, mask=m_w, other=0.0).to(wide)
        for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
            b_at, m_real = entry(place, b_d, b_h, b_w, depth, height, width, KERNEL, DILATION)
            m_loses = m_w & m_real & (b_at != b_index)
            b_tangents = tl.load(p_row + o_plane + b_at * inner, mask=m_w & m_real, other=0.0).to(wide)
            b_lead = tl.where(m_loses, b_winning - b_tangents, 0.0)
            b_squares += b_lead * b_lead
        tl.store(p_winning + tl.cast(k, tl.int64) * windows + o_w, b_winning, mask=m_w)
    tl.store(p_parts + 2 * program, tl.sum(b_squares, 0))
    tl.store(p_parts + 2 * program + 1, tl.sum(b_hinges, 0))


@triton.jit
def to_loser(b_lead, scale, HINGES: tl.constexpr):
    """The gradient that the lead over it gives a loser, of the hinges in z or of the squares in tangents."""
    return tl.where((b_lead > 0) & (b_lead < 1), scale, 0.0) if HINGES else scale * b_lead


@triton.jit
def to_winner(
    p_values, p_arriving, o_plane, o_w, b_winning, mask, b_d, b_h, b_w, depth, height, width, inner, scale,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, PLACES: tl.constexpr, UNROLL: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """What arrives for the winners of windows o_w, less what their losers get."""
    b_found = tl.load(p_arriving + o_w, mask=mask, other=0.0).to(b_winning.dtype)
    for place in tl.range(0, PLACES, loop_unroll_factor=UNROLL):
        b_at, m_real = entry(place, b_d, b_h, b_w, depth, height, width, KERNEL, DILATION)
        b_values = tl.load(p_values + o_plane + b_at * inner, mask=mask & m_real, other=0.0).to(b_winning.dtype)
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
    b_n, b_d, b_h, b_w, b_i = located(program * BLOCK, out_depth, out_height, out_width, inner, BLOCK)
    o_plane = b_n * (depth * height * width * inner) + b_i
    b_d = b_d * STRIDE[0] - PADDING[0]
    b_h = b_h * STRIDE[1] - PADDING[1]
    b_w = b_w * STRIDE[2] - PADDING[2]
    o_winner = o_plane + tl.load(p_index + o_w, mask=m_w, other=0) * inner
    b_winning = tl.load(p_z + o_winner, mask=m_w, other=0.0).to(wide)
    b_found = to_winner(
        p_z, p_d_out, o_plane, o_w, b_winning, m_w, b_d, b_h, b_w, depth, height, width, inner, tl.load(p_d_sums + 1),
        KERNEL, DILATION, PLACES, UNROLL, True,
    )  # fmt: skip
    tl.store(p_to_winners + o_w, b_found, mask=m_w)
    scale = -2 * tl.load(p_d_sums)
    for k in range(0, K):
        o_k = tl.cast(k, tl.int64)
        b_winning = tl.load(p_tangents + o_k * n + o_winner, mask=m_w, other=0.0).to(wide)
        b_found = to_winner(
            p_tangents + o_k * n, p_d_winning + o_k * windows, o_plane, o_w, b_winning, m_w, b_d, b_h, b_w,
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
    p_values, p_arriving, p_to_winners, p_index, wide: tl.constexpr, m_x, b_n, b_d, b_h, b_w, b_i,
    depth, height, width, out_depth, out_height, out_width, inner, scale,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PLACES: tl.constexpr, UNROLL: tl.constexpr, SLOTS: tl.constexpr, UNROLL_SLOTS: tl.constexpr, HINGES: tl.constexpr,
):  # fmt: skip
    """The gradient that entries get from all windows that they are in; p_to_winners is None where it is computed."""
    o_plane = b_n * (depth * height * width * inner) + b_i
    o_windows = b_n * (out_depth * out_height * out_width * inner) + b_i
    b_own = (b_d * height + b_h) * width + b_w
    b_value = tl.load(p_values + o_plane + b_own * inner, mask=m_x, other=0.0).to(wide)
    b_found = tl.zeros_like(b_value)
    for slot in tl.range(0, SLOTS[0] * SLOTS[1] * SLOTS[2], loop_unroll_factor=UNROLL_SLOTS):
        b_wd, m_d = window(b_d, slot // (SLOTS[1] * SLOTS[2]), out_depth, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0])
        b_wh, m_h = window(b_h, slot // SLOTS[2] % SLOTS[1], out_height, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1])
        b_ww, m_w = window(b_w, slot % SLOTS[2], out_width, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2])
        mask = m_x & m_d & m_h & m_w
        o_w = o_windows + ((b_wd * out_height + b_wh) * out_width + b_ww) * inner
        b_index = tl.load(p_index + o_w, mask=mask, other=-1)
        m_wins, m_loses = mask & (b_index == b_own), mask & (b_index != b_own)
        b_winning = tl.load(p_values + o_plane + b_index * inner, mask=m_loses, other=0.0).to(wide)
        b_found += tl.where(m_loses, to_loser(b_winning - b_value, scale, HINGES), 0.0)
        if p_to_winners is None:
            b_to_winner = to_winner(
                p_values, p_arriving, o_plane, o_w, b_value, m_wins,
                b_wd * STRIDE[0] - PADDING[0], b_wh * STRIDE[1] - PADDING[1], b_ww * STRIDE[2] - PADDING[2],
                depth, height, width, inner, scale, KERNEL, DILATION, PLACES, UNROLL, HINGES,
            )  # fmt: skip
        else:
            b_to_winner = tl.load(p_to_winners + o_w, mask=m_wins, other=0.0)
        b_found += tl.where(m_wins, b_to_winner, 0.0)
    return b_found


@triton.jit
def roll_max_pool_backward_kernel(
    p_d_out, p_d_winning, p_d_sums, p_z, p_tangents, p_index, p_to_winners, p_d_z, p_d_tangents, K, n, windows,
    depth, height, width, out_depth, out_height, out_width, inner,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PLACES: tl.constexpr, UNROLL: tl.constexpr, SLOTS: tl.constexpr, UNROLL_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK of the n elements of z; they lie in up to SLOTS windows along each axis."""
    wide: tl.constexpr = p_d_sums.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    o_x = program * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < n
    b_n, b_d, b_h, b_w, b_i = located(program * BLOCK, depth, height, width, inner, BLOCK)
    b_found = gathered(
        p_z, p_d_out, p_to_winners, p_index, wide, m_x, b_n, b_d, b_h, b_w, b_i,
        depth, height, width, out_depth, out_height, out_width, inner, tl.load(p_d_sums + 1),
        KERNEL, STRIDE, PADDING, DILATION, PLACES, UNROLL, SLOTS, UNROLL_SLOTS, True,
    )  # fmt: skip
    tl.store(p_d_z + o_x, b_found, mask=m_x)
    scale = -2 * tl.load(p_d_sums)
    for k in range(0, K):
        o_k = tl.cast(k, tl.int64)
        b_found = gathered(
            p_tangents + o_k * n, p_d_winning + o_k * windows,
            None if p_to_winners is None else p_to_winners + (o_k + 1) * windows, p_index, wide,
            m_x, b_n, b_d, b_h, b_w, b_i, depth, height, width, out_depth, out_height, out_width, inner, scale,
            KERNEL, STRIDE, PADDING, DILATION, PLACES, UNROLL, SLOTS, UNROLL_SLOTS, False,
        )  # fmt: skip
        tl.store(p_d_tangents + o_k * n + o_x, b_found, mask=m_x)
