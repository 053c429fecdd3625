"""gram_norms on GPUs: layer by layer with the kernels of gram_linear."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gram_linear.triton import launch_gram_linear, launch_gram_linear_backward


def _grams(weights: list[Tensor], slopes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The Gram matrices of all layers but the last, the first shared by the batch, and the diagonals of all."""
    grams = [(weights[0] @ weights[0].T).unsqueeze(0)]
    diagonals = [grams[0].diagonal(dim1=-2, dim2=-1)]
    for depth, (slope, weight) in enumerate(zip(slopes, weights[1:], strict=True), start=1):
        gram, diagonal = launch_gram_linear(grams[-1], slope, weight, depth < len(slopes))
        grams.append(gram)
        diagonals.append(diagonal)
    return grams, diagonals


def launch_gram_norms(weights: list[Tensor], slopes: list[Tensor], total: bool) -> Tensor:
    batch = len(slopes[0]) if slopes else 1
    norms = [diagonal.expand(batch, -1) for diagonal in _grams(weights, slopes)[1]]
    return torch.stack([n.sum(1) for n in norms], 1) if total else torch.cat(norms, 1)


def launch_gram_norms_backward(
    d_norms: Tensor, weights: list[Tensor], slopes: list[Tensor], total: bool, needs_slopes: bool
) -> tuple[list[Tensor], list[Tensor]]:
    widths = [len(weight) for weight in weights]
    parts = d_norms.unsqueeze(2).unbind(1) if total else d_norms.split(widths, 1)
    d_diagonals = [part.expand(len(d_norms), width) for part, width in zip(parts, widths, strict=True)]
    return _gradients(d_diagonals, _grams(weights, slopes)[0], weights, slopes, needs_slopes)


def _gradients(
    d_diagonals: list[Tensor], grams: list[Tensor], weights: list[Tensor], slopes: list[Tensor], needs_slopes: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """From those by the diagonals [B, n] of all layers' Gram matrices."""
    d_weights, d_slopes = [], []
    d_gram: Tensor | None = None
    for depth in range(len(slopes), 0, -1):
        d_gram, d_slope, d_weight = launch_gram_linear_backward(
            d_gram, d_diagonals[depth], grams[depth - 1], slopes[depth - 1], weights[depth], True, needs_slopes, True
        )
        d_weights.append(d_weight)
        d_slopes.append(d_slope)
    d_first = torch.diag(d_diagonals[0].sum(0))
    d_first = d_first if d_gram is None else d_first + d_gram[0]
    d_weights.append((d_first + d_first.T) @ weights[0])
    return d_weights[::-1], d_slopes[::-1] if needs_slopes else []


def launch_gram_norms_total(
    weights: list[Tensor], slopes: list[Tensor], needs_slopes: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One chain of Gram matrices serves the norms and their gradients; nothing is read back from the device."""
    grams, diagonals = _grams(weights, slopes)
    batch = len(slopes[0]) if slopes else 1
    diagonals = [diagonal.expand(batch, -1) for diagonal in diagonals]
    total = torch.stack([diagonal.sum() for diagonal in diagonals]).sum()
    ones = [total.new_ones(()).expand(diagonal.shape) for diagonal in diagonals]
    return total, *_gradients(ones, grams, weights, slopes, needs_slopes)


def launch_gram_norms_total_backward(
    d_total: Tensor, weights: list[Tensor], slopes: list[Tensor], d_weights: list[Tensor], d_slopes: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    return [d_total * d for d in d_weights], [d_total * d for d in d_slopes]
