"""The linear regions along a segment between two points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast.certificates import evaluation
from llr_fast.certificates.neurons import Step, first_kink
from llr_fast.certificates.rounding import Rounding, without_sides
from llr_fast.data import PATIENCE
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.torch_modes import as_written
from llr_fast.regions.count import pattern_hashes

_SHORTEST = 1e-11  # part of the segment; where float64 puts the ends of two neighbouring regions may differ by less
_MOST_POINTS = 64  # evaluated for each region; 40 halve a gap down to the shortest


@dataclass(frozen=True)
class Crossings:
    """The R regions along the segment from `start` to `end`, both [...]; see `regions_along`.

    Attributes:
        start, end: the ends of the segment.
        t: [R + 1] float64, rising from 0 to 1. Region i reaches from start + t[i] (end - start) to the next entry.
    """

    start: Tensor
    end: Tensor
    t: Tensor

    def __len__(self) -> int:
        """The number R of regions."""
        return len(self.t) - 1

    @property
    def lengths(self) -> Tensor:
        """[R]: the part of the segment that lies in each region; adds up to 1."""
        return self.t.diff()

    @property
    def points(self) -> Tensor:
        """[R + 1, ...] float64: start, the crossing points, and end."""
        return self._at(self.t)

    @property
    def midpoints(self) -> Tensor:
        """[R, ...] float64: a point inside each region."""
        return self._at((self.t[1:] + self.t[:-1]) / 2)

    def _at(self, t: Tensor) -> Tensor:
        return torch.lerp(self.start.double(), self.end.double(), t.view(-1, *[1] * self.start.dim()))


@as_written
def regions_along(model: nn.Module, start: Tensor, end: Tensor, *, progress: bool = True) -> list[Crossings]:
    """All linear regions that the segments from `start` to `end` cross, and where they cross their boundaries.

    A point's directional margins forwards and backwards (Prop. 4), found by one tangent, are the ends of its region on
    the segment. Starting from a point of the segment, every part that is left over gets a point in the next round,
    until nothing is left: one point for each region, many of them in one evaluation, and none is stepped over. The
    limit is float64. Regions shorter than 1e-11 of the segment are not resolved. Further tangents estimate the rounding
    of each neuron: what is shorter than rounding may move the kinks at its ends is no region, and a neuron that stays
    on a kink all along the segment has no side there.

    Args:
        model: a piecewise-linear network in evaluation mode.
        start, end: [B, ...], finite, of the same shape.
        progress: whether long work shows a progress bar.

    Returns:
        One `Crossings` for each of the B segments.

    Raises:
        ValueError: there are so many shorter regions that 64 points for each longer one do not suffice; and as
            `margin`.

    Example:
        Integrated gradients (Sundararajan et al., 2017), exactly: the gradient is constant in each region.

        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 50), torch.nn.ReLU(), torch.nn.Linear(50, 1)).double()
        >>> start, end = torch.zeros(1, 4).double(), torch.ones(1, 4).double()
        >>> (crossings,) = llr_fast.regions_along(model, start, end)
        >>> inside = crossings.midpoints.requires_grad_()
        >>> (gradients,) = torch.autograd.grad(model(inside).sum(), inside)
        >>> attribution = (end - start)[0] * (crossings.lengths @ gradients)
        >>> torch.allclose(attribution.sum(), model(end) - model(start))
        True
    """
    evaluation.check(model, start, torch.float64, "start")
    evaluation.check(model, end, torch.float64, "end")
    if end.shape != start.shape or end.device != start.device:
        got = f"{tuple(end.shape)} on {end.device}"
        raise ValueError(f"end: expected the shape and device of start, {tuple(start.shape)}, got {got}")
    chunk = evaluation.samples_at_once(model, start[:1].expand(2, *start.shape[1:]), torch.float64)
    found = [_Found() for _ in start]
    gaps = [(segment, 0.0, 1.0) for segment in range(len(start))]
    with tqdm(desc="regions", unit="region", delay=PATIENCE, disable=not progress) as bar:
        while gaps:
            now, gaps = gaps[-chunk:], gaps[:-chunk]
            parts = _parts_at(model, start.double(), end.double(), now)
            for (segment, low, high), part in zip(now, parts, strict=True):
                gaps += [(segment, *gap) for gap in found[segment].add(low, high, part)]
            for segment in {gap[0] for gap in now}:
                found[segment].check()
            bar.update(len(now))
    return [Crossings(a, b, regions.boundaries().to(a.device)) for a, b, regions in zip(start, end, found)]


class _Part(NamedTuple):
    """What is known of a region on a segment: where it begins and ends; what is shorter may be made by rounding."""

    pattern: bytes
    begin: float
    end: float
    shortest: float

    @property
    def resolved(self) -> bool:
        return self.end - self.begin > self.shortest

    def joined(self, other: _Part) -> _Part:
        """Both and what lies between them."""
        begin, end = min(self.begin, other.begin), max(self.end, other.end)
        return _Part(self.pattern, begin, end, min(self.shortest, other.shortest))


class _Found:
    """What is known of the regions along one segment, by pattern."""

    def __init__(self) -> None:
        self._regions: dict[bytes, _Part] = {}
        self._points = 0

    def add(self, low: float, high: float, part: _Part) -> list[tuple[float, float]]:
        """Takes in what a point in the gap from `low` to `high` tells; the gaps that are left of this one.

        A region is convex: what lies between two of its parts belongs to it, too, whatever rounding makes of it. So
        only a new region leaves more than one gap.
        """
        region = self._regions[part.pattern] = part.joined(self._regions.get(part.pattern, part))
        self._points += 1
        gaps = (low, region.begin), (region.end, high)
        return [gap for gap in gaps if gap[1] - gap[0] > part.shortest]

    def check(self) -> None:
        """Raises where most points find regions that are too short to be resolved."""
        resolved = len(self._resolved()) if self._points > _MOST_POINTS else 0
        if self._points > _MOST_POINTS * (1 + resolved):
            raise ValueError(
                f"model: expected regions longer than {_SHORTEST:g} of the segment, got {resolved} of these "
                f"and {len(self._regions) - resolved} shorter ones at {self._points} points"
            )

    def boundaries(self) -> Tensor:
        """[R + 1]: between neighbours the middle of what rounding makes of one point."""
        between = [(left.end + right.begin) / 2 for left, right in itertools.pairwise(self._resolved())]
        return torch.tensor([0.0, *between, 1.0], dtype=torch.float64, device="cpu")

    def _resolved(self) -> list[_Part]:
        """In order along the segment; none lies within another, as rounding may make it look."""
        found: list[_Part] = []
        for region in sorted(self._regions.values(), key=lambda region: (region.begin, region.end)):
            if region.resolved and (not found or region.end > found[-1].end):
                found.append(region)
        return found


def _parts_at(model: nn.Module, start: Tensor, end: Tensor, gaps: list[tuple[int, float, float]]) -> Iterator[_Part]:
    """For each gap the part in it of the region of one of its points."""
    segment = torch.tensor([gap[0] for gap in gaps], device=start.device)
    low, high = start.new_tensor([gap[1:] for gap in gaps]).unbind(1)
    # Not the middle, which symmetric segments have on a kink.
    t = low + 0.47 * (high - low)
    origin, along = start[segment], end[segment] - start[segment]
    x = origin + t.view(-1, *[1] * (origin.dim() - 1)) * along
    rounding = Rounding()
    directions = rounding.start(along[None], torch.maximum(origin.abs(), end[segment].abs()))
    layers = evaluation.layers_of(model, x, directions, torch.float64, rounding=rounding)
    behind, ahead = _reach(layers, t, -1), _reach(layers, t, 1)
    first, last = torch.maximum(t - behind.step, low), torch.minimum(t + ahead.step, high)
    errors = behind.error.where(first > low, 0.0), ahead.error.where(last < high, 0.0)  # of kinks within the gap
    shortest = torch.maximum(*errors).clamp_min(_SHORTEST)
    hashes = pattern_hashes([without_sides(layer) for layer in layers], len(gaps))
    return itertools.starmap(_Part, zip(hashes, first.tolist(), last.tolist(), shortest.tolist(), strict=True))


def _reach(layers: list[Layer], t: Tensor, sign: int) -> Step:
    """[G]: the way to the first kink ahead (1) or behind (-1)."""
    none = Step(torch.full_like(t, torch.inf), torch.zeros_like(t))
    steps = [none, *(first_kink(replace(layer, tangents=sign * layer.tangents)) for layer in layers)]
    step, layer = torch.stack([each.step for each in steps]).min(0)
    return Step(step, torch.stack([each.error for each in steps]).gather(0, layer[None])[0])
