"""Upper bounds of all gradient norms at once, from a few random directions.

For a gradient g and a random direction v, g.v is one number whose distribution depends on a norm of g alone:
Gaussian with deviation ||g||_2 for Gaussian v, Cauchy with scale ||g||_1 for Cauchy v. Few such numbers, known for
every neuron from few tangents, bound the norm of each with a chosen probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize_scalar
from scipy.stats import chi2
from torch import Tensor


def statistic_for(q: float) -> str:
    """What to add up over the directions; ||g||_inf is bounded by ||g||_2."""
    return "sum_log_abs" if q == 1 else "sum_squares"


def draw(q: float, shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random directions of `shape`, in the dtype and on the device of `like`."""
    directions = torch.empty(*shape, dtype=like.dtype, device=like.device)
    return directions.cauchy_(generator=generator) if q == 1 else directions.normal_(generator=generator)


def upper_bound(statistic: Tensor, q: float, directions: int, failure_probability: float) -> Tensor:
    """A bound that each l_q norm exceeds with at most `failure_probability`, from its statistic over `directions`.

    q = 2 (and inf): sum (g.v)^2 = ||g||^2 chi2_r, divided by the quantile of chi2_r.
    q = 1: sum ln|g.v| = r ln ||g||_1 + sum ln|C|, and by Chernoff, with E|C|^-s = 1 / cos(pi s / 2) for 0 < s < 1,
    the last sum stays above -deviation but with `failure_probability`.
    """
    if q == 1:
        return ((statistic + _cauchy_deviation(directions, failure_probability)) / directions).exp()
    return (statistic / float(chi2.ppf(failure_probability, directions))).sqrt()


def _cauchy_deviation(directions: int, failure_probability: float) -> float:
    def deviation(s: float) -> float:
        return (-math.log(failure_probability) - directions * math.log(math.cos(math.pi * s / 2))) / s

    return float(minimize_scalar(deviation, bounds=(1e-6, 1 - 1e-6), method="bounded").fun)
