"""The norms of gradients: dual pairs, and the statistics over directions that add up to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = (1, 2, math.inf)
_STATISTIC = {1: "sum_abs", 2: "sum_squares", math.inf: "max_abs"}


def dual(p: float) -> float:
    """q with 1/p + 1/q = 1."""
    return {1: math.inf, 2: 2, math.inf: 1}[p]


def statistic_of(q: float) -> str:
    """The statistic of the derivatives along all axes that gives the l_q norm of the gradient."""
    return _STATISTIC[q]


def from_statistic(statistic: Tensor, q: float) -> Tensor:
    return statistic.sqrt() if q == 2 else statistic


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
