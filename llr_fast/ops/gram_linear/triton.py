"""gram_linear for GPUs: how its kernels are launched."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from ..common.arguments import accumulation_dtype
from ..common.registers import NO_SPILLS
from ..masked_linear.tiles import alignment, dot_precision, dot_type
from .kernels import (
    gram_linear_backward_gram_kernel,
    gram_linear_backward_left_kernel,
    gram_linear_backward_weight_kernel,
    gram_linear_kernel,
    gram_linear_left_kernel,
)

SCRATCH = 2**24  # bytes of W D G D at a time, so few that the cache of a GPU still holds them when they are read


def blocks(dtype: torch.dtype, align: int = 16) -> dict[str, int]:
    """Square tiles, so that one triangle of them can stand for the other, and the terms summed at a time."""
    meta = {
        2: {"BLOCK": 64, "BLOCK_R": 32, "num_warps": 4 if align >= 4 else 8, "num_stages": 3},
        4: {"BLOCK": 64, "BLOCK_R": 16, "num_warps": 4 if align >= 4 else 8, "num_stages": 3 if align >= 4 else 2},
        8: {"BLOCK": 32, "BLOCK_R": 16, "num_warps": 4, "num_stages": 2},
    }[dtype.itemsize]
    return meta | NO_SPILLS if meta["num_warps"] == 8 else meta


def samples_per_program(batch: int, tiles: int) -> int:
    """How many samples one program sums, so that a sum of few tiles still occupies the device."""
    return triton.cdiv(batch, min(batch, triton.cdiv(512, tiles)))


def groups(batch: int, sample_bytes: int) -> list[slice]:
    """The batch in groups, each of which needs no more scratch memory than SCRATCH.

    Of 16 samples or a multiple, where so many fit: their rows then start where those of the whole batch may, at
    multiples of 16 bytes, and Triton need not compile another variant.
    """
    fit = max(1, SCRATCH // sample_bytes)
    size = fit // 16 * 16 or fit
    return [slice(first, min(first + size, batch)) for first in range(0, batch, size)]


def _of(samples: slice, gram: Tensor) -> Tensor:
    return gram if len(gram) == 1 else gram[samples]


def _stride(gram: Tensor) -> int:
    return gram.shape[1] * gram.shape[2] if gram.shape[0] > 1 else 0


def _constants(gram: Tensor, n: int, O: int) -> dict:
    aligned = {"ALIGN_N": alignment(n), "ALIGN_O": alignment(O)}
    products = {"DOT": dot_type(gram.dtype), "PRECISION": dot_precision(gram.dtype)}
    return {**products, **aligned, **blocks(gram.dtype, alignment(n, O))}


def _tiles(size: int, meta: dict) -> int:
    return triton.cdiv(size, meta["BLOCK"])


def launch_gram_linear(gram: Tensor, slope: Tensor, weight: Tensor, store: bool) -> tuple[Tensor, Tensor]:
    (B, n), O = slope.shape, len(weight)
    wide = accumulation_dtype(gram.dtype)
    out = gram.new_empty((B, O, O) if store else 0)
    if B * n * O == 0:
        return out.zero_(), gram.new_zeros((B, O), dtype=wide)
    gram, slope, weight = gram.contiguous(), slope.contiguous(), weight.contiguous()
    meta = _constants(gram, n, O)
    tiles_n, tiles_o = _tiles(n, meta), _tiles(O, meta)
    if not store:
        diagonals = gram.new_empty((tiles_n, B, O), dtype=wide)
        gram_linear_left_kernel[(B * tiles_o * tiles_n,)](
            gram, slope, weight, None, diagonals, B, n, O, _stride(gram), **meta
        )
        return out, diagonals.sum(0)
    diagonal = gram.new_empty((B, O), dtype=wide)
    transposed = weight.T.contiguous()
    parts = groups(B, O * n * gram.itemsize)
    left = gram.new_empty(parts[0].stop, O, n)
    for part in parts:
        count = len(slope[part])
        gram_linear_left_kernel[(count * tiles_o * tiles_n,)](
            _of(part, gram), slope[part], weight, left, None, count, n, O, _stride(gram), **meta
        )
        gram_linear_kernel[(count * tiles_o * tiles_o,)](left, transposed, out[part], diagonal[part], n, O, **meta)
    return out, diagonal


def launch_gram_linear_backward(
    d_out: Tensor | None,
    d_diagonal: Tensor | None,
    gram: Tensor,
    slope: Tensor,
    weight: Tensor,
    needs_gram: bool,
    needs_slope: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (B, n), O = slope.shape, len(weight)
    wanted = ((gram, needs_gram), (slope, needs_slope), (weight, needs_weight))
    d_gram, d_slope, d_weight = (t.new_empty(t.shape if needed else 0) for t, needed in wanted)
    if B * n * O == 0:
        return d_gram.zero_(), d_slope.zero_(), d_weight.zero_()
    gram, slope, weight = gram.contiguous(), slope.contiguous(), weight.contiguous()
    d_out, d_diagonal = (None if d is None else d.contiguous() for d in (d_out, d_diagonal))
    transposed = weight.T.contiguous() if needs_gram else None
    meta = _constants(gram, n, O)
    parts = [slice(0, B)] if d_out is None else groups(B, O * n * gram.itemsize)
    left = None if d_out is None else gram.new_empty(parts[0].stop, O, n)
    is_shared = len(gram) < B
    gram_sums, weight_sums = [], []
    for part in parts:
        at_diagonal = None if d_diagonal is None else d_diagonal[part]
        if d_out is not None:
            # Not pipelined: the copy in shared memory that pipelining keeps would be read across its rows.
            gram_linear_backward_left_kernel[(len(slope[part]) * _tiles(O, meta) * _tiles(n, meta),)](
                d_out[part], at_diagonal, slope[part], weight, left, n, O, **{**meta, "num_stages": 1}
            )
        if needs_gram:
            into = None if is_shared else d_gram[part]
            gram_sums.append(_gradient_by_gram(left, at_diagonal, slope[part], weight, transposed, into, meta))
        if needs_slope or needs_weight:
            by_weight, by_slope = _gradient_by_weight(
                left, at_diagonal, _of(part, gram), slope[part], weight, needs_slope, meta
            )
            if needs_weight:
                weight_sums.append(by_weight.sum(0))
            if by_slope is not None:
                d_slope[part] = by_slope
    if needs_gram and is_shared:
        d_gram = functools.reduce(torch.add, gram_sums).to(gram.dtype)
    if needs_weight:
        d_weight = functools.reduce(torch.add, weight_sums).to(weight.dtype)
    return d_gram, d_slope, d_weight


def _gradient_by_gram(left, d_diagonal, slope, weight, transposed, into: Tensor | None, meta: dict) -> Tensor:
    """The gradients by the samples' Gram matrices in `into`, or, if that is None, their sum [1, n, n]."""
    (B, n), O = slope.shape, len(weight)
    tiles, samples = _tiles(n, meta), 1
    if into is None:
        samples = samples_per_program(B, tiles * (tiles + 1) // 2)
        sums = weight.new_empty((triton.cdiv(B, samples), n, n), dtype=accumulation_dtype(weight.dtype))
    else:
        sums = into
    gram_linear_backward_gram_kernel[(len(sums) * tiles * tiles,)](
        left, d_diagonal, slope, weight, transposed, sums, B, n, O, samples, **meta
    )
    return sums.sum(0, keepdim=True) if into is None else sums


def _gradient_by_weight(
    left, d_diagonal, gram, slope, weight, needs_slope: bool, meta: dict
) -> tuple[Tensor, Tensor | None]:
    """The gradient by weight in parts that remain to be summed, [parts, O, n], and that by slope."""
    (B, n), O = slope.shape, len(weight)
    wide = accumulation_dtype(weight.dtype)
    tiles_o, tiles_n = _tiles(O, meta), _tiles(n, meta)
    samples = samples_per_program(B, tiles_o * tiles_n)
    sums = weight.new_empty((triton.cdiv(B, samples), O, n), dtype=wide)
    slope_sums = slope.new_empty((tiles_o, B, n), dtype=wide) if needs_slope else None
    gram_linear_backward_weight_kernel[(len(sums) * tiles_o * tiles_n,)](
        left, d_diagonal, gram, slope, weight, slope_sums, sums, B, n, O, _stride(gram), samples,
        **{**meta, "num_warps": 8},  # with 4 it spills in float32
    )  # fmt: skip
    return sums, None if slope_sums is None else slope_sums.sum(0)
