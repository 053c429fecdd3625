"""The linear regions along a segment between two points."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast import certify
from llr_fast.batches import PATIENCE
from llr_fast.linearize import Layer
from llr_fast.modes import as_written
from llr_fast.neurons import first_kink, stays_on, with_terms
from llr_fast.regions import pattern_hashes

_SHORTEST = 1e-11  # part of the segment; where float64 puts the ends of two neighbouring regions may differ by less


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
    limit is float64: regions shorter than 1e-11 of the segment are not resolved. A second tangent tells the rounding of
    each neuron: one that stays on a kink all along the segment has no side there, and bounds no region.

    Args:
        model: a piecewise-linear network in evaluation mode.
        start, end: [B, ...], finite, of the same shape.
        progress: whether long work shows a progress bar.

    Returns:
        One `Crossings` for each of the B segments.

    Raises:
        As `margin`.

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
    certify.check(model, start, torch.float64, "start")
    certify.check(model, end, torch.float64, "end")
    if end.shape != start.shape or end.device != start.device:
        got = f"{tuple(end.shape)} on {end.device}"
        raise ValueError(f"end: expected the shape and device of start, {tuple(start.shape)}, got {got}")
    chunk = certify.samples_at_once(model, start[:1].expand(2, *start.shape[1:]), torch.float64)
    regions: list[dict[bytes, tuple[float, float]]] = [{} for _ in start]
    gaps = [(segment, 0.0, 1.0) for segment in range(len(start))]
    with tqdm(desc="regions", unit="region", delay=PATIENCE, disable=not progress) as bar:
        while gaps:
            now, gaps = gaps[-chunk:], gaps[:-chunk]
            for (segment, low, high), (pattern, first, last) in zip(
                now, _regions_at(model, start.double(), end.double(), now)
            ):
                known = regions[segment].get(pattern, (1.0, 0.0))
                # A region is convex, so what is found of it twice, at its rounded ends, is one piece.
                regions[segment][pattern] = (min(known[0], first), max(known[1], last))
                sides = ((segment, low, first), (segment, last, high))
                gaps += [side for side in sides if side[2] - side[1] > _SHORTEST]
            bar.update(len(now))
    return [Crossings(a, b, _boundaries(found).to(a.device)) for a, b, found in zip(start, end, regions)]


def _regions_at(
    model: nn.Module, start: Tensor, end: Tensor, gaps: list[tuple[int, float, float]]
) -> list[tuple[bytes, float, float]]:
    """For each gap the region of one point in it: its pattern, and where it begins and ends within the gap."""
    segment = torch.tensor([gap[0] for gap in gaps], device=start.device)
    low, high = start.new_tensor([gap[1:] for gap in gaps]).unbind(1)
    # Not the middle, which symmetric segments have on a kink.
    t = low + 0.47 * (high - low)
    origin, along = start[segment], end[segment] - start[segment]
    x = origin + t.view(-1, *[1] * (origin.dim() - 1)) * along
    directions = with_terms(along, torch.maximum(origin.abs(), end[segment].abs()))
    layers = certify.evaluate(model, x, directions, torch.float64)
    first = torch.maximum(t - _reach(layers, t, -1), low)
    last = torch.minimum(t + _reach(layers, t, 1), high)
    hashes = pattern_hashes([_without_sides(layer) for layer in layers], len(gaps))
    return list(zip(hashes, first.tolist(), last.tolist()))


def _without_sides(layer: Layer) -> Layer:
    """The layer with a piece of its own for neurons that stay on a kink."""
    piece = layer.piece
    for number, kink in enumerate(layer.kinks):
        piece = piece.masked_fill(stays_on(layer, kink), -1 - number)
    return replace(layer, piece=piece)


def _reach(layers: list[Layer], t: Tensor, sign: int) -> Tensor:
    """[G]: the way to the first kink ahead (1) or behind (-1)."""
    steps = [first_kink(replace(layer, statistic=sign * layer.statistic)) for layer in layers]
    return torch.stack([torch.full_like(t, torch.inf), *steps]).amin(0)


def _boundaries(regions: dict[bytes, tuple[float, float]]) -> Tensor:
    """[R + 1], from where regions begin and end: between neighbours the middle of what rounding makes of one point."""
    ends = sorted(end for end in regions.values() if end[1] - end[0] > _SHORTEST)
    between = [(left[1] + right[0]) / 2 for left, right in itertools.pairwise(ends)]
    return torch.tensor([0.0, *between, 1.0], dtype=torch.float64, device="cpu")
