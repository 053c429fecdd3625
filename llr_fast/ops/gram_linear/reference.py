"""gram_linear in plain torch."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype


def gram_linear(gram: Tensor, slope: Tensor, weight: Tensor, store: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(gram.dtype)
    masked = weight.to(dtype) * slope.unsqueeze(1)  # [B, O, n]
    left = masked @ gram.to(dtype)
    if not store:
        return gram.new_empty(0), (left * masked).sum(2)
    out = left @ masked.mT
    return out.to(gram.dtype), out.diagonal(dim1=1, dim2=2).clone()


def gram_linear_backward(
    d_out: Tensor | None,
    d_diagonal: Tensor | None,
    gram: Tensor,
    slope: Tensor,
    weight: Tensor,
    needs_gram: bool,
    needs_slope: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(gram.dtype)
    wide_slope, wide_weight = slope.to(dtype).unsqueeze(1), weight.to(dtype)
    masked = wide_weight * wide_slope
    terms = []  # of (H + H^T) W D with H = d_out + diag(d_diagonal)
    if d_out is not None:
        terms.append((d_out.to(dtype) + d_out.mT.to(dtype)) @ masked)
    if d_diagonal is not None:
        terms.append(2 * d_diagonal.unsqueeze(2) * masked)
    left = reduce(torch.add, terms)
    d_masked = left @ gram.to(dtype)
    d_gram = (masked.mT @ left / 2).sum_to_size(gram.shape) if needs_gram else gram.new_empty(0)
    d_slope = (d_masked * wide_weight).sum(1) if needs_slope else slope.new_empty(0)
    d_weight = (d_masked * wide_slope).sum(0) if needs_weight else weight.new_empty(0)
    d_gram, d_slope, d_weight = (g.to(gram.dtype).contiguous() for g in (d_gram, d_slope, d_weight))
    return d_gram, d_slope, d_weight
