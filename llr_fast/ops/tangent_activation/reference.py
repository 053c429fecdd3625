"""tangent_activation in plain torch."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ...norms import Statistic
from ..common.arguments import accumulation_dtype


def reduce_statistic(tangents: Tensor, statistic: str) -> Tensor:
    """A statistic over the first axis."""
    if statistic == Statistic.SUM_SQUARES:
        return tangents.square().sum(0)
    return tangents.abs().sum(0) if statistic == Statistic.SUM_ABS else tangents.abs().amax(0)


def statistic_derivative(tangents: Tensor, statistic: str) -> Tensor:
    """The derivative of a statistic by each tangent."""
    if statistic == Statistic.SUM_SQUARES:
        return 2 * tangents
    if statistic == Statistic.SUM_ABS:
        return tangents.sign()
    first = tangents.abs().argmax(0, keepdim=True)
    return torch.zeros_like(tangents).scatter(0, first, tangents.gather(0, first).sign())


def tangent_activation(tangents: Tensor, slope: Tensor, statistic: str) -> tuple[Tensor, Tensor]:
    stat = reduce_statistic(tangents.to(accumulation_dtype(tangents.dtype)), statistic)
    return (tangents * slope).contiguous(), stat.expand(slope.shape).contiguous()


def tangent_activation_backward(
    d_out: Tensor | None,
    d_stat: Tensor | None,
    tangents: Tensor,
    slope: Tensor,
    stat: Tensor,
    statistic: str,
    needs_slope: bool,
) -> tuple[Tensor, Tensor]:
    wide = tangents.to(stat.dtype)
    terms, d_slope = [], slope.new_empty(0)
    if d_out is not None:
        terms.append(d_out.to(stat.dtype) * slope)
        d_slope = (d_out * wide).sum(0).to(slope.dtype).contiguous() if needs_slope else d_slope
    if d_stat is not None:
        terms.append(d_stat * statistic_derivative(wide, statistic))
    d_tangents = reduce(torch.add, terms).sum_to_size(tangents.shape)
    return d_tangents.to(tangents.dtype).contiguous(), d_slope
