"""masked_linear in plain torch."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype
from ..tangent_activation.reference import reduce_statistic, statistic_derivative


def masked_linear(
    tangents: Tensor, slope: Tensor, weight: Tensor, statistic: str, store: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(tangents.dtype)
    wide = (tangents.to(dtype) * slope) @ weight.to(dtype).T
    out = wide.to(tangents.dtype).contiguous() if store else tangents.new_empty(0)
    return out, reduce_statistic(wide, statistic).contiguous()


def masked_linear_backward(
    d_out: Tensor | None,
    d_stat: Tensor | None,
    out: Tensor | None,
    tangents: Tensor,
    slope: Tensor,
    weight: Tensor,
    statistic: str,
    needs_slope: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(tangents.dtype)
    masked, wide_weight = tangents.to(dtype) * slope, weight.to(dtype)
    terms = [] if d_out is None else [d_out.to(dtype)]
    if d_stat is not None:
        wide = masked @ wide_weight.T if out is None else out.to(dtype)
        terms.append(d_stat * statistic_derivative(wide, statistic))
    gradient = reduce(torch.add, terms)
    d_masked = gradient @ wide_weight
    d_tangents = (d_masked * slope).sum_to_size(tangents.shape)
    d_slope = (d_masked * tangents).sum(0) if needs_slope else slope.new_empty(0)
    d_weight = gradient.flatten(0, 1).T @ masked.flatten(0, 1) if needs_weight else weight.new_empty(0)
    d_tangents, d_slope, d_weight = (g.to(tangents.dtype).contiguous() for g in (d_tangents, d_slope, d_weight))
    return d_tangents, d_slope, d_weight
