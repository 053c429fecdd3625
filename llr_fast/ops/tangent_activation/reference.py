"""tangent_activation in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import accumulation_dtype


def reduce_statistic(tangents: Tensor, statistic: str) -> Tensor:
    """A statistic over the first axis."""
    if statistic == "sum_squares":
        return tangents.square().sum(0)
    return tangents.abs().sum(0) if statistic == "sum_abs" else tangents.abs().amax(0)


def statistic_derivative(tangents: Tensor, statistic: str) -> Tensor:
    """The derivative of a statistic by each tangent."""
    if statistic == "sum_squares":
        return 2 * tangents
    if statistic == "sum_abs":
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
    d_tangents = 0 if d_out is None else d_out.to(stat.dtype) * slope
    if d_stat is not None:
        d_tangents = d_tangents + d_stat * statistic_derivative(wide, statistic)
    d_slope = (d_out * wide).sum(0).to(slope.dtype) if needs_slope else slope.new_empty(0)
    return d_tangents.sum_to_size(tangents.shape).to(tangents.dtype).contiguous(), d_slope.contiguous()
