"""Upper bounds of all gradient norms at once, from a few random directions.

For a gradient g and a random direction v, g.v is one number whose distribution depends on a norm of g alone:
Gaussian with deviation ||g||_2 for Gaussian v, Cauchy with scale ||g||_1 for Cauchy v. Few such numbers, known for
every neuron from few tangents, bound the norm of each with a chosen probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy  # whose parts are imported when they are used
import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.norms import Statistic

_MAGNITUDES = 40  # of distances that are told apart, from the largest one down; the rest count as the least of them


def statistic_over_random(q: float) -> Statistic:
    """What to add up over random directions; ||g||_inf is bounded by ||g||_2."""
    return Statistic.SUM_LOG_ABS if q == 1 else Statistic.SUM_SQUARES


def draw(q: float, shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random directions of `shape` in the dtype and on the device of `like`; no entry is 0, which would say nothing."""
    directions = _drawn(q, torch.empty(*shape, dtype=like.dtype, device=like.device), generator)
    while (none := directions == 0).any():
        again = torch.empty(int(none.sum()), dtype=like.dtype, device=like.device)
        directions[none] = _drawn(q, again, generator)
    return directions


def _drawn(q: float, into: Tensor, generator: torch.Generator | None) -> Tensor:
    return into.cauchy_(generator=generator) if q == 1 else into.normal_(generator=generator)


def statistics(
    frozen: Frozen,
    q: float,
    directions: int,
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.float64,
    scale: float = 1,
) -> list[Tensor]:
    """For each layer the statistic [B, n] over random directions, `scale` times as long, that the samples share."""
    x = frozen.x
    drawn = scale * draw(q, (directions, 1, *x.shape[1:]), torch.empty(0, dtype=dtype, device=x.device), generator)
    return frozen.statistics(frozen.chunks(drawn.expand(-1, *x.shape)), statistic_over_random(q))


def term(tangents: Tensor, q: float) -> Tensor:
    """What one direction adds to the statistic."""
    return tangents.abs().log() if q == 1 else tangents.square()


def joint_bounds(
    statistics: list[Tensor], distances: list[Tensor], q: float, directions: int, failure_probability: float
) -> list[Tensor]:
    """For each layer upper bounds [B, n] of the norms; all of a sample's hold except with `failure_probability`.

    What may fail is shared out by the distances to the kinks, [B, n], which the directions do not depend on: in equal
    parts to the magnitudes of distances (powers of 2), and in each to its neurons. So the few neurons near their kinks,
    among which the margin is decided, get tighter bounds than by equal parts for all: half as many have to be verified.
    """
    quantiles = joint_quantiles(distances, q, directions, failure_probability)
    pairs = zip(statistics, quantiles, strict=True)
    return [upper_bound(s, q, directions, level.to(s.dtype)) for s, level in pairs]


def joint_quantiles(distances: list[Tensor], q: float, directions: int, failure_probability: float) -> list[Tensor]:
    """For each layer [B, n]: what the statistic of a gradient of norm 1 stays above; see `joint_bounds`."""
    exponent = torch.frexp(torch.cat(distances, 1)).exponent
    magnitude = (exponent.max() - exponent).clamp_max(_MAGNITUDES - 1)
    # Of a batch, the sample that has most neurons of a magnitude decides, so that one table serves all.
    most = _counts(magnitude).amax(0).tolist()
    parts = sum(count > 0 for count in most)
    levels = [failure_probability / (parts * max(1, count)) for count in most]
    quantiles = distances[0].new_tensor([quantile(q, directions, level) for level in levels])
    return [quantiles[m] for m in magnitude.split([d.size(1) for d in distances], 1)]


def _counts(magnitude: Tensor) -> Tensor:
    """[B, _MAGNITUDES]: how many of the neurons [B, N] of each sample have each magnitude."""
    row = _MAGNITUDES * torch.arange(len(magnitude), device=magnitude.device, dtype=magnitude.dtype)
    flat = (magnitude + row[:, None]).flatten()
    return flat.bincount(minlength=_MAGNITUDES * len(magnitude)).view(-1, _MAGNITUDES)


def quantile(q: float, directions: int, failure_probability: float) -> float:
    """What the statistic of a gradient of norm 1 stays above except with `failure_probability`.

    q = 2 (and inf): sum (g.v)^2 = ||g||^2 chi2_r, so it is the quantile of chi2_r.
    q = 1: sum ln|g.v| = r ln ||g||_1 + sum ln|C|, and by Chernoff, with E|C|^-s = 1 / cos(pi s / 2) for 0 < s < 1,
    the last sum stays above -deviation except with `failure_probability`.
    """
    if q == 1:
        return -_cauchy_deviation(directions, failure_probability)
    # As scipy.stats.chi2.ppf, whose import takes half a second.
    return 2 * float(scipy.special.gammaincinv(directions / 2, failure_probability))


def upper_bound(statistic: Tensor, q: float, directions: int, quantile: float | Tensor) -> Tensor:
    """The largest l_q norm whose statistic over `directions` is above the quantile."""
    return ((statistic - quantile) / directions).exp() if q == 1 else (statistic / quantile).sqrt()


def _cauchy_deviation(directions: int, failure_probability: float) -> float:
    def deviation(s: float) -> float:
        return (-math.log(failure_probability) - directions * math.log(math.cos(math.pi * s / 2))) / s

    return float(scipy.optimize.minimize_scalar(deviation, bounds=(1e-6, 1 - 1e-6), method="bounded").fun)
