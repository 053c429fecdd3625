"""How many linear regions a set of points lies in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_leaves

from llr_fast import certify
from llr_fast.batches import stream
from llr_fast.directions import Directions
from llr_fast.linearize import Layer, LinearizedTensor
from llr_fast.ranks import gathered
from llr_fast.samples import Samples

_PROBES = 2  # directions along which Jacobians are compared, and numbers that are kept of what is found along them
_RESOLUTION = 1e-9  # of relative differences of Jacobians; rounding in float64 stays below 1e-12
_NOISE = 1e-13  # of the largest Jacobian; what is below it can be nothing but rounding


@dataclass(frozen=True)
class RegionCount:
    """Bounds of the number of linear regions that hold the `points` counted; see `count_linear_regions`."""

    lower: int
    upper: int
    points: int


def count_linear_regions(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    progress: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> RegionCount:
    """Bounds of the number of complete linear regions among the points of a data set (#CLR, Lemma 7).

    The lower bound is the number of distinct Jacobians of the model, the upper bound that of distinct activation
    patterns; for fully connected ReLU networks they mostly coincide. Of each point no more is kept than a hash of its
    pattern (128 bits, so that distinct patterns count as distinct) and three numbers that stand for its Jacobian.

    These three are the norm of the derivatives J b along random directions b (the same for all points), and two
    random projections of J b divided by that norm; all in float64. Jacobians count as one where each of the three
    differs by less than 1e-9, relative to their own norm, in steps from point to point. Multiplying the model or its
    input by a constant therefore changes nothing, and neither does rounding, which is a thousand times smaller and
    meets no edges of bins. Distinct Jacobians that are closer than that are taken for one, so `lower` remains a lower
    bound. A Jacobian below 1e-13 of the largest one counts as zero.

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
    counter = Counter(model)
    for x, _ in stream(model, batches, "linear regions", progress):
        counter.add(x)
    counter.merge(group)
    return counter.result()


class Counter:
    """Counts the regions of points that come in batches."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._patterns: set[bytes] = set()
        self._jacobians: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Counts the points x [B, ...] too."""
        certify.check(self._model, x, torch.float64)
        for part in x.split(certify.samples_at_once(self._model, x, torch.float64)):
            observed = _Observed(self._model)
            directions = _random(0, _PROBES, 1, *part.shape[1:]).to(part.device).expand(-1, *part.shape)
            # With a statistic the layers do not keep their tangents.
            layers = certify.evaluate(observed, part, Directions(directions), torch.float64, "sum_squares")
            self._patterns.update(pattern_hashes(layers, len(part)))
            self._jacobians.append(_fingerprints(observed.derivatives(part)).cpu())

    def merge(self, group: distributed.ProcessGroup | None) -> None:
        """Takes over the points of the other processes of the group."""
        parts = gathered((self._patterns, self._jacobians), group)
        self._patterns = {pattern for patterns, _ in parts for pattern in patterns}
        self._jacobians = [jacobian for _, jacobians in parts for jacobian in jacobians]

    def result(self) -> RegionCount:
        jacobians = torch.cat(self._jacobians)
        return RegionCount(_distinct(jacobians), len(self._patterns), len(jacobians))


class _Observed(nn.Module):
    """A model that remembers the linearization of its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[tuple[Any, Samples]] = []  # linearizations

    def forward(self, x: Tensor) -> Any:
        output = self.model(x)
        linearized = [leaf for leaf in tree_leaves(output) if isinstance(leaf, LinearizedTensor)]
        self.outputs += [(leaf.linearization, leaf.samples) for leaf in linearized]
        return output

    def derivatives(self, x: Tensor) -> Tensor:
        """[B, K, L]: those of all outputs at x [B, ...] along the K directions."""
        none = torch.empty(_PROBES, x.size(0), 0, dtype=torch.float64, device=x.device)
        one = torch.ones((), dtype=torch.float64, device=x.device)
        rows = (samples.rows(output.activate(one, None)[1], lead=1) for output, samples in self.outputs)
        return torch.cat([none, *rows], 2).transpose(0, 1)


def pattern_hashes(layers: list[Layer], batch: int) -> list[bytes]:
    """128 bits for each of `batch` points, equal where their activation patterns are."""
    rows = [layer.piece.cpu().numpy() for layer in layers]
    return [hashlib.blake2b(b"".join(row[b].tobytes() for row in rows), digest_size=16).digest() for b in range(batch)]


def _fingerprints(derivatives: Tensor) -> Tensor:
    """[B, 1 + probes]: the norm of the derivatives [B, K, L], and random projections of the unit vector."""
    flat = derivatives.flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    unit = (flat / norm).masked_fill(norm == 0, 0.0)
    return torch.cat([norm, unit @ _random(1, flat.size(1), _PROBES).to(flat.device)], 1)


def _distinct(fingerprints: Tensor) -> int:
    """How many groups remain when neighbours closer than the resolution in every number belong together."""
    norm = fingerprints[:, :1]
    zero = norm <= _NOISE * norm.max()
    smallest = math.log(torch.finfo(norm.dtype).tiny) - 1
    keys = torch.cat([norm.log(), fingerprints[:, 1:]], 1).masked_fill(zero, 0.0)
    keys[:, :1].masked_fill_(zero, smallest)
    group = torch.zeros(len(keys), dtype=torch.long)
    for key in keys.t():
        order = key.argsort()
        order = order[group[order].argsort(stable=True)]
        apart = (group[order].diff() != 0) | (key[order].diff() > _RESOLUTION)
        group[order[1:]] = apart.cumsum(0)
        group[order[0]] = 0
    return int(group.max()) + 1


def _random(seed: int, *shape: int) -> Tensor:
    """Gaussian numbers, always the same, so that points of different batches can be compared."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
