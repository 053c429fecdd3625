"""The kernels of gram_linear: W D G D and its product with W^T, of which one triangle of tiles is mirrored."""

from __future__ import annotations

import triton
import triton.language as tl

from ..masked_linear.tiles import add_product, aligned, load_wide
from ..tangent_activation.kernels import rounded


@triton.jit
def store_mirrored(p_matrix, b_tile, tile_row, tile_column, size, BLOCK: tl.constexpr):
    """Store a tile on or below the diagonal of a symmetric [size, size] matrix, and its mirror image."""
    o_row = (tile_row * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_column = (tile_column * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    if tile_row == tile_column:
        # The two halves of a tile on the diagonal are rounded differently; one stands for both.
        b_tile = tl.where(o_row[:, None] >= o_column[None, :], b_tile, tl.trans(b_tile))
    else:
        m_mirror = (o_column < size)[:, None] & (o_row < size)[None, :]
        tl.store(p_matrix + o_column[:, None] * size + o_row[None, :], tl.trans(b_tile), mask=m_mirror)
    m_tile = (o_row < size)[:, None] & (o_column < size)[None, :]
    tl.store(p_matrix + o_row[:, None] * size + o_column[None, :], b_tile, mask=m_tile)


@triton.jit
def load_left(p_left, p_d_diagonal, p_weight, p_slope, o_b, o_o, o_n, O, n, like):
    """A tile of (H + H^T) W D with H = d loss / d out: read, or computed where only the diagonal has a gradient."""
    m_tile = (o_o < O)[:, None] & (o_n < n)[None, :]
    o_o = o_o.to(tl.int64)
    if p_left is not None:
        b_left = load_wide(p_left + ((o_b * O + o_o) * n)[:, None] + o_n[None, :], m_tile, like)
    else:
        b_d_diagonal = 2 * load_wide(p_d_diagonal + o_b * O + o_o, o_o < O, like)
        b_slope = load_wide(p_slope + o_b * n + o_n, o_n < n, like)
        b_left = load_wide(p_weight + (o_o * n)[:, None] + o_n[None, :], m_tile, like)
        b_left *= b_d_diagonal[:, None] * b_slope[None, :]
    return b_left


@triton.jit
def gram_linear_left_kernel(
    p_gram, p_slope, p_weight, p_left, p_diagonal, B, n, O, stride_b,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of W D G D for one sample, and stores it in p_left [B, O, n].

    Without p_left it multiplies the tile by that of W D and stores the row sums, in p_diagonal [tiles of n, B, O]:
    the diagonal of W D G D W^T, for which symmetry lets each tile above G's diagonal stand for that below.
    """
    n, O = aligned(n, ALIGN_N), aligned(O, ALIGN_O)
    tiles_o, tiles_n = tl.cdiv(O, BLOCK), tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    o_b = (program // tiles_o // tiles_n).to(tl.int64)
    tile_j = (program // tiles_o) % tiles_n
    o_o = ((program % tiles_o) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_j = tile_j * BLOCK + tl.arange(0, BLOCK)
    m_o, m_j = o_o < O, o_j < n
    p_weights = p_weight + (o_o * n)[:, None]
    p_grams = p_gram + o_b * aligned(stride_b, ALIGN_N) + o_j[None, :]
    b_left = tl.zeros([BLOCK, BLOCK], tl.float64 if p_gram.dtype.element_ty == tl.float64 else tl.float32)
    last = n if p_left is not None else tl.minimum(n, (tile_j + 1) * BLOCK)
    for first in range(0, last, BLOCK_R):
        o_i = first + tl.arange(0, BLOCK_R)
        m_i = o_i < n
        b_slope = load_wide(p_slope + o_b * n + o_i, m_i, b_left)
        if p_left is None:
            b_slope *= tl.where(o_i < tile_j * BLOCK, 2.0, 1.0)
        b_masked = load_wide(p_weights + o_i[None, :], m_o[:, None] & m_i[None, :], b_left) * b_slope[None, :]
        p_tile = p_grams + o_i[:, None].to(tl.int64) * n
        b_gram = tl.load(p_tile, mask=m_i[:, None] & m_j[None, :], other=0.0)
        b_left = add_product(b_left, b_masked, b_gram, DOT, PRECISION)
    b_left *= load_wide(p_slope + o_b * n + o_j, m_j, b_left)[None, :]
    m_tile = m_o[:, None] & m_j[None, :]
    if p_left is not None:
        tl.store(p_left + ((o_b * O + o_o) * n)[:, None] + o_j[None, :], b_left, mask=m_tile)
    else:
        b_product = rounded(b_left * load_wide(p_weights + o_j[None, :], m_tile, b_left), m_tile)
        tl.store(p_diagonal + (tl.cast(tile_j, tl.int64) * B + o_b) * O + o_o, tl.sum(b_product, 1), mask=m_o)


@triton.jit
def gram_linear_kernel(
    p_left, p_transposed, p_out, p_diagonal, n, O,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of left W^T for one sample, from p_transposed = W^T [n, O]."""
    n, O = aligned(n, ALIGN_N), aligned(O, ALIGN_O)
    tiles = tl.cdiv(O, BLOCK)
    program = tl.program_id(0)
    o_b = (program // tiles // tiles).to(tl.int64)
    tile_o, tile_p = (program // tiles) % tiles, program % tiles
    if tile_o < tile_p:
        return
    o_o = (tile_o * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_p = tile_p * BLOCK + tl.arange(0, BLOCK)
    m_o, m_p = o_o < O, o_p < O
    b_out = tl.zeros([BLOCK, BLOCK], p_diagonal.dtype.element_ty)
    for first in range(0, n, BLOCK_R):
        o_j = first + tl.arange(0, BLOCK_R)
        m_j = o_j < n
        p_tile = p_left + ((o_b * O + o_o) * n)[:, None] + o_j[None, :]
        b_left = tl.load(p_tile, mask=m_o[:, None] & m_j[None, :], other=0.0)
        p_tile = p_transposed + o_j[:, None].to(tl.int64) * O + o_p[None, :]
        b_weight = tl.load(p_tile, mask=m_j[:, None] & m_p[None, :], other=0.0)
        b_out = add_product(b_out, b_left, b_weight, DOT, PRECISION)
    store_mirrored(p_out + o_b * O * O, b_out, tile_o, tile_p, O, BLOCK)
    if tile_o == tile_p:
        b_diagonal = tl.sum(tl.where(o_o[:, None] == o_p[None, :], b_out, 0.0), 1)
        tl.store(p_diagonal + o_b * O + o_o, b_diagonal, mask=m_o)


@triton.jit
def gram_linear_backward_left_kernel(
    p_d_out, p_d_diagonal, p_slope, p_weight, p_left, n, O,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of p_left [B, O, n] = (H + H^T) W D, where H is d_out + diag(d_diagonal)."""
    n, O = aligned(n, ALIGN_N), aligned(O, ALIGN_O)
    tiles_o, tiles_n = tl.cdiv(O, BLOCK), tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    o_b = (program // tiles_o // tiles_n).to(tl.int64)
    o_o = (((program // tiles_n) % tiles_o) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_i = (program % tiles_n) * BLOCK + tl.arange(0, BLOCK)
    m_o, m_i = o_o < O, o_i < n
    b_left = tl.zeros([BLOCK, BLOCK], tl.float64 if p_d_out.dtype.element_ty == tl.float64 else tl.float32)
    p_sample = p_d_out + o_b * O * O
    for first in range(0, O, BLOCK_R):
        o_p = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        m_p = o_p < O
        b_lower = load_wide(p_sample + (o_o * O)[:, None] + o_p[None, :], m_o[:, None] & m_p[None, :], b_left)
        b_upper = load_wide(p_sample + (o_p * O)[:, None] + o_o[None, :], m_p[:, None] & m_o[None, :], b_left)
        b_weight = tl.load(p_weight + (o_p * n)[:, None] + o_i[None, :], mask=m_p[:, None] & m_i[None, :], other=0.0)
        b_left = add_product(b_left, b_lower + tl.trans(b_upper), b_weight, DOT, PRECISION)
    m_tile = m_o[:, None] & m_i[None, :]
    if p_d_diagonal is not None:
        b_weight = load_wide(p_weight + (o_o * n)[:, None] + o_i[None, :], m_tile, b_left)
        b_left += 2 * load_wide(p_d_diagonal + o_b * O + o_o, m_o, b_left)[:, None] * b_weight
    b_left *= load_wide(p_slope + o_b * n + o_i, m_i, b_left)[None, :]
    tl.store(p_left + ((o_b * O + o_o) * n)[:, None] + o_i[None, :], b_left, mask=m_tile)


@triton.jit
def gram_linear_backward_gram_kernel(
    p_left, p_d_diagonal, p_slope, p_weight, p_transposed, p_d_gram, B, n, O, samples,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program computes a tile of d loss / d gram = D W^T left / 2, summed over `samples` samples: [parts, n, n]."""
    n, O = aligned(n, ALIGN_N), aligned(O, ALIGN_O)
    tiles = tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    part = (program // tiles // tiles).to(tl.int64)
    tile_i, tile_j = (program // tiles) % tiles, program % tiles
    if tile_i < tile_j:
        return
    o_i = (tile_i * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_j = tile_j * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < n
    b_d_gram = tl.zeros([BLOCK, BLOCK], tl.float64 if p_weight.dtype.element_ty == tl.float64 else tl.float32)
    for o_b in range(part * samples, tl.minimum((part + 1) * samples, B)):
        b_slope = load_wide(p_slope + o_b * n + o_i, m_i, b_d_gram) * 0.5
        for first in range(0, O, BLOCK_R):
            o_o = first + tl.arange(0, BLOCK_R)
            p_tile = p_transposed + (o_i * O)[:, None] + o_o[None, :]
            b_masked = load_wide(p_tile, m_i[:, None] & (o_o < O)[None, :], b_d_gram) * b_slope[:, None]
            b_left = load_left(p_left, p_d_diagonal, p_weight, p_slope, o_b, o_o, o_j, O, n, b_d_gram)
            b_d_gram = add_product(b_d_gram, b_masked, b_left, DOT, PRECISION)
    store_mirrored(p_d_gram + part * n * n, b_d_gram, tile_i, tile_j, n, BLOCK)


@triton.jit
def gram_linear_backward_weight_kernel(
    p_left, p_d_diagonal, p_gram, p_slope, p_weight, p_d_slope, p_d_weight, B, n, O, stride_b, samples,
    DOT: tl.constexpr, PRECISION: tl.constexpr, ALIGN_N: tl.constexpr, ALIGN_O: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """From d loss / d (W D) = left G: p_d_weight [parts, O, n], and p_d_slope [tiles of O, B, n] or None."""
    n, O = aligned(n, ALIGN_N), aligned(O, ALIGN_O)
    tiles_o, tiles_n = tl.cdiv(O, BLOCK), tl.cdiv(n, BLOCK)
    program = tl.program_id(0)
    part = (program // tiles_o // tiles_n).to(tl.int64)
    tile_o = ((program // tiles_n) % tiles_o).to(tl.int64)
    o_o = tile_o * BLOCK + tl.arange(0, BLOCK)
    o_i = (program % tiles_n) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < n
    m_tile = (o_o < O)[:, None] & m_i[None, :]
    b_d_weight = tl.zeros([BLOCK, BLOCK], p_d_weight.dtype.element_ty)
    for o_b in range(part * samples, tl.minimum((part + 1) * samples, B)):
        b_d_masked = tl.zeros([BLOCK, BLOCK], b_d_weight.dtype)
        for first in range(0, n, BLOCK_R):
            o_j = first + tl.arange(0, BLOCK_R)
            b_left = load_left(p_left, p_d_diagonal, p_weight, p_slope, o_b, o_o, o_j, O, n, b_d_weight)
            p_tile = p_gram + o_b * aligned(stride_b, ALIGN_N) + o_j[:, None].to(tl.int64) * n + o_i[None, :]
            b_gram = tl.load(p_tile, mask=(o_j < n)[:, None] & m_i[None, :], other=0.0)
            b_d_masked = add_product(b_d_masked, b_left, b_gram, DOT, PRECISION)
        if p_d_slope is not None:
            b_weight = load_wide(p_weight + (o_o * n)[:, None] + o_i[None, :], m_tile, b_d_masked)
            b_d_slope = tl.sum(rounded(b_d_masked * b_weight, m_tile), 0)
            tl.store(p_d_slope + (tile_o * B + o_b) * n + o_i, b_d_slope, mask=m_i)
        b_d_weight += b_d_masked * load_wide(p_slope + o_b * n + o_i, m_i, b_d_masked)[None, :]
    tl.store(p_d_weight + ((part * O + o_o) * n)[:, None] + o_i[None, :], b_d_weight, mask=m_tile)
