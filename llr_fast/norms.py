"""The norms of gradients: dual pairs, and the statistics over directions that add up to them."""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor

NORMS = (1, 2, math.inf)


class Statistic(str, Enum):
    """What is found of the derivatives of one neuron along several directions; operators take the name too."""

    SUM_SQUARES = "sum_squares"
    SUM_ABS = "sum_abs"
    MAX_ABS = "max_abs"
    SUM_LOG_ABS = "sum_log_abs"


_OVER_AXES = {1: Statistic.SUM_ABS, 2: Statistic.SUM_SQUARES, math.inf: Statistic.MAX_ABS}


def dual(p: float) -> float:
    """q with 1/p + 1/q = 1."""
    return {1: math.inf, 2: 2, math.inf: 1}[p]


def statistic_over_axes(q: float) -> Statistic:
    """The statistic of the derivatives along all axes that gives the l_q norm of the gradient."""
    return _OVER_AXES[q]


def from_axes(found: Tensor, q: float) -> Tensor:
    """The l_q norm, from that statistic."""
    return found.sqrt() if q == 2 else found


def norm(gradient: Tensor, q: float) -> Tensor:
    """l_q norm of each sample of [B, ...]; squares neither overflow nor underflow."""
    flat = gradient.flatten(1)
    if q == 1:
        return flat.abs().sum(1)
    largest = flat.abs().amax(1)
    if q == math.inf:
        return largest
    unit = flat / largest.clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
    return largest * unit.square().sum(1).sqrt()
