"""gram_norms in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def chain_of_grams(weights: list[Tensor], slopes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Each layer's weight with the slopes below it, and the Gram matrix J J^T of the layer below: [B, ...]."""
    masked, grams = [], [weights[0] @ weights[0].T]
    for weight, slope in zip(weights[1:], slopes, strict=True):
        masked.append(weight * slope.unsqueeze(1))
        grams.append(masked[-1] @ grams[-1] @ masked[-1].mT)
    return masked, grams


def gram_norms(weights: list[Tensor], slopes: list[Tensor], total: bool) -> Tensor:
    batch = len(slopes[0]) if slopes else 1
    norms = [gram.diagonal(dim1=-2, dim2=-1).expand(batch, -1) for gram in chain_of_grams(weights, slopes)[1]]
    return torch.stack([n.sum(1) for n in norms], 1) if total else torch.cat(norms, 1)


def gram_norms_backward(
    d_norms: Tensor, weights: list[Tensor], slopes: list[Tensor], total: bool, needs_slopes: bool
) -> tuple[list[Tensor], list[Tensor]]:
    masked, grams = chain_of_grams(weights, slopes)
    widths = [len(weight) for weight in weights]
    if total:
        d_norms = torch.cat([d.unsqueeze(1).expand(-1, width) for d, width in zip(d_norms.unbind(1), widths)], 1)
    d_diagonals = d_norms.split(widths, 1)
    d_weights, d_slopes = [], []
    d_gram = torch.diag_embed(d_diagonals[-1])
    for weight, slope, m, gram, d_diagonal in reversed(
        list(zip(weights[1:], slopes, masked, grams[:-1], d_diagonals[:-1]))
    ):
        d_masked = 2 * d_gram @ m @ gram
        d_weights.append((d_masked * slope.unsqueeze(1)).sum(0))
        d_slopes.append((d_masked * weight).sum(1))
        d_gram = m.mT @ d_gram @ m + torch.diag_embed(d_diagonal)
    d_weights.append(2 * d_gram.sum(0) @ weights[0])
    return d_weights[::-1], d_slopes[::-1] if needs_slopes else []


def gram_norms_total(
    weights: list[Tensor], slopes: list[Tensor], needs_slopes: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    sums = gram_norms(weights, slopes, True)
    return sums.sum(), *gram_norms_backward(torch.ones_like(sums), weights, slopes, True, needs_slopes)


def gram_norms_total_backward(
    d_total: Tensor, weights: list[Tensor], slopes: list[Tensor], d_weights: list[Tensor], d_slopes: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    if torch.is_grad_enabled():  # d_weights and d_slopes are numbers, that depend on nothing
        d_sums = d_total.expand(len(slopes[0]) if slopes else 1, len(weights))
        return gram_norms_backward(d_sums, weights, slopes, True, bool(d_slopes))
    return [d_total * d for d in d_weights], [d_total * d for d in d_slopes]
