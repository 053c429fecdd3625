"""Upper bounds of all gradient norms that hold in real arithmetic: what was measured, and what rounding took of it."""

from __future__ import annotations

import torch
from torch import Tensor

from llr_fast.certificates import bounds, sketch
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.absolute import AbsoluteBounds
from llr_fast.linearized.gram import Chain
from llr_fast.linearized.local import SLACK
from llr_fast.norms import Statistic


@torch.no_grad()
def by_gram(chain: Chain, absolute: AbsoluteBounds) -> list[Tensor]:
    """For each layer the l2 norms [B, n], from Gram matrices, each entry a sum over pairs of paths."""
    relative = (1 + absolute.relative) ** 3 - 1
    pairs = zip(chain.norms(torch.float64, 1.0)[0], absolute.paths, strict=True)
    return [(norms.square() * SLACK + relative * paths.square()).sqrt() * SLACK for norms, paths in pairs]


@torch.no_grad()
def over_axes(frozen: Frozen, q: float, absolute: AbsoluteBounds) -> list[Tensor]:
    """For each layer the norms [B, n], from all axes."""
    pairs = zip(frozen.over_axes(q, torch.float64, 1.0), absolute.paths, strict=True)
    return [(norms + absolute.relative * paths) * SLACK for norms, paths in pairs]


@torch.no_grad()
def by_sketch(
    frozen: Frozen, q: float, absolute: AbsoluteBounds, failure_probability: float, generator: torch.Generator | None
) -> list[Tensor]:
    """For each layer upper bounds [B, n] of the norms; all of a sample's hold but with `failure_probability`."""
    x, count = frozen.x, bounds.DIRECTIONS[q]
    like = torch.empty(0, dtype=torch.float64, device=x.device)
    drawn = sketch.draw(q, (count, 1, *x.shape[1:]), like, generator)
    longest = drawn.flatten(1).abs().amax(1)
    rounding = [absolute.relative * paths for paths in absolute.paths]
    if q == 1:
        statistics = [torch.zeros_like(r) for r in rounding]
        for direction, length in zip(drawn.split(1), longest, strict=True):
            (chunk,) = frozen.chunks(direction.expand(-1, *x.shape))
            for s, t, r in zip(statistics, frozen.tangents(chunk), rounding, strict=True):
                s += (t[0].abs() + length * r).log()
    else:
        measured = frozen.statistics(frozen.chunks(drawn.expand(-1, *x.shape)), Statistic.SUM_SQUARES)
        error = longest.square().sum().sqrt()
        statistics = [(m.sqrt() * SLACK + error * r).square() for m, r in zip(measured, rounding, strict=True)]
    found = sketch.joint_bounds(statistics, frozen.distances, q, count, failure_probability)
    return [bound * SLACK for bound in found]
