"""The nearest input of another class, by a walk over linear regions in the order of their distances.

This is GeoCert's algorithm (Jordan, Lewis and Dimakis, 2019). The regions tile the space, so that the straight way to
any input leads from region to region across facets that are no farther than that input. So as long as the nearest facet
that has not been crossed is at distance d, every input of another class within d lies in a region already visited.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.regions import polytope
from llr_fast.regions.polytope import Polytope
from llr_fast.regions.region import region_at

_STEPS = (1e-4, 1e-6, 1e-8, 1e-10)  # across a facet, of the size of what is looked at
_AGREE = 1e-7  # relative difference up to which a bound and a point's distance are one number


@dataclass(eq=False)
class _Visited:
    """A region in coordinates u = v - x, and the halfspaces in it that other classes take over."""

    polytope: Polytope
    others: Polytope
    crossed: set[int] = field(default_factory=set)


@dataclass(order=True)
class _Open:
    """A facet to be crossed, or a decision to be looked at, no nearer than `bound`.

    The bound is that of its plane first, then that of the facet itself, which is `refined`.
    """

    bound: float
    number: int
    region: _Visited = field(compare=False)
    row: int = field(compare=False)
    decision: bool = field(compare=False)
    point: np.ndarray | None = field(default=None, compare=False)
    refined: bool = field(default=False, compare=False)


class Walk:
    """From x [1, ...] of class `label`; `model` returns logits [1, C], or [1, 1] of one logit."""

    def __init__(self, model: nn.Module, x: Tensor, label: int, p: float) -> None:
        self._model, self._x, self._label, self._p = model, x.detach().double(), label, p
        self._size = max(1.0, float(x.abs().max()))
        self._heap: list[_Open] = []
        self._numbers = itertools.count()
        self._seen: set[bytes] = set()
        self._stuck = math.inf  # bound of the nearest facet that could not be crossed
        self.upper = math.inf
        self.nearest: np.ndarray | None = None

    @property
    def lower(self) -> float:
        """No input of another class is nearer."""
        return min(self._heap[0].bound if self._heap else math.inf, self._stuck, self.upper)

    @property
    def visited(self) -> int:
        return len(self._seen)

    def run(self, regions: int | None, until: float, report: Callable[[], object]) -> bool:
        """Visits up to so many regions, and calls `report` at each; whether the nearest input was found.

        It also ends once it is known whether another class is as near as `until`.
        """
        self._start(report)
        while self._heap and self._heap[0].bound < self.upper * (1 - _AGREE):
            first = self._heap[0]
            if first.refined and not first.decision and regions is not None and self.visited >= regions:
                return False
            if first.bound > until or self.upper <= until < math.inf:
                return False
            entry = heapq.heappop(self._heap)
            if not entry.refined:
                self._refine(entry)
            elif entry.decision:  # no point was found at this bound
                self._stuck = min(self._stuck, entry.bound)
            elif entry.row not in entry.region.crossed:
                self._cross(entry, report)
        return self._stuck >= self.upper * (1 - _AGREE)

    def _start(self, report: Callable[[], object]) -> None:
        """Visits the region of x; where that is flat, as on several kinks, one that it touches."""
        origin = np.zeros(self._x[0].numel())
        region = self._at(origin)
        generator = np.random.default_rng(0)
        for step in (0.0, *_STEPS[::-1], *_STEPS[::-1]):
            if step:
                region = self._at(step * self._size * generator.standard_normal(origin.size) / math.sqrt(origin.size))
            inner = polytope.chebyshev(region[0].polytope)[1] > polytope.THIN * self._size
            if inner and region[0].polytope.offsets.min(initial=0.0) >= -2 * max(step, 1e-12) * self._size:
                break
        self._enter(*region, report)

    def _at(self, u: np.ndarray) -> tuple[_Visited, bytes]:
        point = self._x + torch.from_numpy(u).to(self._x.device).view(self._x.shape)
        found = region_at(self._model, point, compared=False)
        seen = found.around().polytope
        rows = Polytope(seen.normals, seen.offsets + seen.normals @ u)
        return _Visited(rows, self._others(found.weight.numpy(), found.bias.numpy())), found.pattern

    def _others(self, weight: np.ndarray, bias: np.ndarray) -> Polytope:
        """One halfspace for each other class: where it has the larger logit."""
        origin = self._x.flatten().cpu().numpy()
        if len(weight) == 1:  # of one logit the class is its sign
            lead, of_origin = (weight, weight @ origin + bias) if self._label else (-weight, -(weight @ origin + bias))
        else:
            lead = np.delete(weight[self._label] - weight, self._label, 0)
            of_origin = lead @ origin + np.delete(bias[self._label] - bias, self._label)
        norm = np.linalg.norm(lead, axis=1)
        norm[norm <= 1e-14 * np.abs(weight).max(initial=0.0)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            offsets = np.where(norm > 0, -of_origin / norm, np.where(of_origin > 0, -math.inf, math.inf))
            return Polytope(np.where(norm[:, None] > 0, lead / norm[:, None], 0.0), offsets)

    def _enter(self, region: _Visited, pattern: bytes, report: Callable[[], object]) -> None:
        self._seen.add(pattern)
        report()
        rows = region.polytope
        outside = self._in_norm(rows.normals, np.maximum(-rows.offsets, 0.0)).max(initial=0.0)
        for j, bound in enumerate(self._in_norm(region.others.normals, np.maximum(-region.others.offsets, 0.0))):
            self._push(max(bound, outside), region, j, decision=True)
        for i, bound in enumerate(self._in_norm(rows.normals, np.abs(rows.offsets))):
            if i not in region.crossed:
                self._push(max(bound, outside), region, i, decision=False)

    def _in_norm(self, normals: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """The l_p distances of planes whose l2 distances these are."""
        norm = np.linalg.norm(normals, norms.dual(self._p), axis=1)
        found: np.ndarray = np.where(distances > 0, math.inf, 0.0)
        np.divide(distances, norm, out=found, where=norm > 0)
        return found

    def _push(self, bound: float, region: _Visited, row: int, decision: bool) -> None:
        if bound < self.upper:
            heapq.heappush(self._heap, _Open(float(bound), next(self._numbers), region, row, decision))

    def _refine(self, entry: _Open) -> None:
        """Measures the facet itself, or the part of the region that another class has."""
        rows = entry.region.polytope
        if entry.decision:
            normal, offset = entry.region.others.normals[entry.row], entry.region.others.offsets[entry.row]
            if not normal.any():
                face = rows  # the other class has all of the region
            else:
                face = Polytope(np.vstack([rows.normals, normal]), np.append(rows.offsets, offset))
        else:
            face = rows.with_plane(entry.row)
        if self.upper < math.inf:  # what is farther than that plays no part
            near = self._in_norm(face.normals, np.abs(face.offsets)) <= self.upper
            face = Polytope(face.normals[near], face.offsets[near])
        found = polytope.nearest(face, self._p)
        entry.bound, entry.point, entry.refined = max(entry.bound, found.bound), found.point, True
        if entry.decision and found.point is not None:
            distance = polytope.length(found.point, self._p)
            if distance < self.upper:
                self.upper, self.nearest = distance, found.point
            if found.bound >= distance * (1 - _AGREE):
                return  # nothing nearer is left in the region
        if entry.bound < self.upper:
            heapq.heappush(self._heap, entry)

    def _cross(self, entry: _Open, report: Callable[[], object]) -> None:
        region, i = entry.region, entry.row
        near = np.zeros(region.polytope.normals.shape[1]) if entry.point is None else entry.point
        on = polytope.inside_of_facet(region.polytope, i, near, self._size)
        if on is None:
            return
        room = region.polytope.offsets - region.polytope.normals @ on
        region.crossed |= set(np.flatnonzero(np.abs(room) <= polytope.THIN * self._size).tolist())
        for step in _STEPS:
            beyond, pattern = self._at(on + step * self._size * region.polytope.normals[i])
            room = beyond.polytope.offsets - beyond.polytope.normals @ on
            if room.min(initial=0.0) >= -polytope.THIN * self._size:  # no region lies between
                if pattern not in self._seen:
                    beyond.crossed |= set(np.flatnonzero(room <= polytope.THIN * self._size).tolist())
                    self._enter(beyond, pattern, report)
                return
        self._stuck = min(self._stuck, entry.bound)
