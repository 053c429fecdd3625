"""How many linear regions a set of points lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llr_fast.certificates import evaluation
from llr_fast.certificates.rounding import Rounding, error, near
from llr_fast.data import stream
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.torch_modes import as_written
from llr_fast.ranks import check_group, gathered
from llr_fast.regions.observed import Observed

_PROJECTIONS = 3  # numbers that are kept of the derivative along one direction
_RESOLUTION = 1e-9  # of relative differences of Jacobians, which float64 resolves to 1e-12 where nothing cancels


@dataclass(frozen=True)
class RegionCount:
    """Bounds of the number of linear regions that hold the `points` counted; see `count_linear_regions`."""

    lower: int
    upper: int
    points: int


@as_written
def count_linear_regions(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    progress: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> RegionCount:
    """Bounds of the number of complete linear regions among the points of a data set (#CLR, Lemma 7).

    The lower bound is the number of distinct Jacobians of the model, the upper bound that of distinct activation
    patterns; for fully connected ReLU networks they mostly coincide. Points of one pattern have one Jacobian, so the
    first of them speaks for all. Of each pattern no more is kept than a hash (128 bits, so that distinct patterns count
    as distinct) and, of its Jacobian, three numbers and their error.

    The numbers are random projections of the derivative J b along a random direction b, in float64, the same for all
    points. Their error is 1e-9 of the norm of J b, or what rounding may do where that is more, as where large terms
    cancel: the network carries noise along that grows as rounding errors do. Jacobians count as one where all three
    numbers agree within their errors, in steps from point to point. So neither rounding nor large terms that cancel
    make Jacobians distinct, nor does a constant factor of the model or its input decide. Points that rounding may have
    put on the other side of a kink, and those whose Jacobian leaves the range of float64, count in the upper bound
    alone. Distinct Jacobians that are closer than their errors are taken for one, so `lower` remains a lower bound.

    Args:
        model: a piecewise-linear network in evaluation mode.
        batches: x [B, ...], or tuples that begin with x, such as a DataLoader yields. They are moved to the model's
            device.
        progress: whether long work shows a progress bar.
        group: processes that count together, each with batches of its own, as from a DistributedSampler; each returns
            the count of all points. `torch.distributed.group.WORLD` for all processes.

    Raises:
        TypeError: a batch is no tensor and begins with none.
        ValueError: there is no batch; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU())
        >>> llr_fast.count_linear_regions(model, [torch.tensor([[-2.0], [-1.0]]), torch.tensor([[3.0]])])
        RegionCount(lower=2, upper=2, points=3)
    """
    check_group(group)
    counter = Counter(model)
    for x, _ in stream(model, batches, "linear regions", progress):
        counter.add(x)
    counter.merge(group)
    return counter.result()


class Counter:
    """Counts the regions of points that come in batches."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._points = 0
        self._jacobians: dict[bytes, Tensor] = {}  # by pattern; the error is infinite of those that are not certain
        self._rounding = Rounding(apart=True)

    def add(self, x: Tensor) -> None:
        """Counts the points x [B, ...] too."""
        evaluation.check(self._model, x, torch.float64)
        for part in x.split(evaluation.samples_at_once(self._model, x, torch.float64)):
            observed = Observed(self._model)
            direction = _random(0, 1, 1, *part.shape[1:]).to(part.device)
            start = Directions(self._rounding.start(direction).tangents.expand(-1, *part.shape))
            layers = evaluation.layers_of(observed, part, start, torch.float64, rounding=self._rounding)
            found = _fingerprints(observed.tangents(part, 3), _in_doubt(layers, part)).cpu()
            for pattern, fingerprint in zip(pattern_hashes(layers, len(part)), found):
                self._keep(pattern, fingerprint)
            self._points += len(part)

    def _keep(self, pattern: bytes, fingerprint: Tensor) -> None:
        known = self._jacobians.get(pattern)
        if known is None or (not known[0].isfinite() and fingerprint[0].isfinite()):
            self._jacobians[pattern] = fingerprint.clone()

    def merge(self, group: distributed.ProcessGroup | None) -> None:
        """Takes over the points of the other processes of the group."""
        parts = gathered((self._points, list(self._jacobians), torch.stack(list(self._jacobians.values()))), group)
        self._points, self._jacobians = 0, {}
        for points, patterns, jacobians in parts:
            self._points += points
            for pattern, jacobian in zip(patterns, jacobians):
                self._keep(pattern, jacobian)

    def result(self) -> RegionCount:
        jacobians = torch.stack(list(self._jacobians.values()))
        certain = jacobians[jacobians[:, 0].isfinite()]
        lower = _distinct(certain[:, 1:], certain[:, :1]) if len(certain) else 1
        return RegionCount(lower, len(jacobians), self._points)


def pattern_hashes(layers: list[Layer], batch: int) -> list[bytes]:
    """128 bits for each of `batch` points, equal where their activation patterns are."""
    rows = [layer.piece.cpu().numpy() for layer in layers]
    layout = repr([(row.dtype.str, row.shape[1]) for row in rows]).encode()
    return [
        hashlib.blake2b(b"".join((layout, *(row[b].tobytes() for row in rows))), digest_size=16).digest()
        for b in range(batch)
    ]


def _in_doubt(layers: list[Layer], x: Tensor) -> Tensor:
    """[B]: which of the points x [B, ...] rounding may have put on the other side of a kink."""
    doubt = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for layer in layers:
        rate, noise, _ = layer.tangents
        moves = rate.abs() > error(noise)
        for kink in layer.kinks:
            doubt |= (near(layer, kink) & moves).any(1)
    return doubt


def _fingerprints(tangents: Tensor, doubt: Tensor) -> Tensor:
    """[B, 1 + projections]: of derivatives the error, infinite where they are in doubt [B], and random projections.

    The tangents [3, B, n] of all outputs are the derivatives and their noise.
    """
    derivatives, noise, _ = tangents
    largest = torch.maximum(_RESOLUTION * _norm(derivatives), _norm(error(noise)))[:, None]
    numbers = derivatives @ _random(1, derivatives.size(1), _PROJECTIONS).to(derivatives.device)
    certain = ~doubt[:, None] & torch.cat([largest, numbers], 1).isfinite().all(1, keepdim=True)
    return torch.cat([largest.masked_fill(~certain, torch.inf), numbers], 1)


def _norm(rows: Tensor) -> Tensor:
    """[B]: the l2 norms of rows [B, n], whose squares float64 may not know."""
    largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    norm: Tensor = (rows / largest).norm(dim=1) * largest[:, 0]
    return norm


def _distinct(numbers: Tensor, error: Tensor) -> int:
    """How many groups remain of rows [N, n] when those that agree within the errors [N, 1] in all numbers are one."""
    group = torch.zeros(len(numbers), dtype=torch.long, device="cpu")
    for low, high in zip((numbers - error).t(), (numbers + error).t()):
        order = low.argsort()
        order = order[group[order].argsort(stable=True)]
        # The highest end so far of each group, by rank: a later group's are all above those of the ones before.
        ends, rank = high.unique(return_inverse=True)
        reached = (group[order] * len(ends) + rank[order]).cummax(0).values % len(ends)
        apart = (group[order].diff() != 0) | (low[order][1:] > ends[reached[:-1]])
        group[order[1:]] = apart.cumsum(0)
        group[order[0]] = 0
    return int(group.max()) + 1


def _random(seed: int, *shape: int) -> Tensor:
    """Gaussian numbers, always the same, so that points of different batches can be compared."""
    return torch.randn(shape, generator=_seeded(seed), dtype=torch.float64, device="cpu")


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
