"""How many linear regions a set of points lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from llr_fast import certify
from llr_fast.batches import stream
from llr_fast.directions import Directions, _compact
from llr_fast.linearize import Layer, LinearizedTensor
from llr_fast.modes import as_written
from llr_fast.outputs import tensors_of
from llr_fast.ranks import check_group, gathered
from llr_fast.samples import Samples

_PROBES = 2  # directions along which Jacobians are compared
_PROJECTIONS = 3  # numbers that are kept of what is found along them
_RESOLUTION = 1e-9  # of relative differences of Jacobians, which float64 resolves to 1e-12 where nothing cancels
_SHAKE = 2.0**-30  # relative change of every intermediate result that shows how far rounding errors grow
_SHIFTS = 65537  # prime
_ROUNDING = 2.0**-41  # relative rounding error of every intermediate result, a few thousand times that of one sum


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

    The numbers are random projections of the derivatives J b along two random directions b, in float64, the same for
    all points. Their error is 1e-9 of the norm of J b, or what rounding may do where that is more: one of the
    directions is followed once more while every intermediate result is changed at random by 1e-9 of itself, and what
    this does to J b shows how much larger the terms are that J b is a sum of. Jacobians count as one where all three
    numbers agree within their errors, in steps from point to point. So neither rounding nor large terms that cancel
    make Jacobians distinct, nor does a constant factor of the model or its input decide. Distinct Jacobians that are
    closer than that are taken for one, so `lower` remains a lower bound.

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
        self._jacobians: dict[bytes, Tensor] = {}  # by pattern
        self._shaking = _Shaking()

    def add(self, x: Tensor) -> None:
        """Counts the points x [B, ...] too."""
        certify.check(self._model, x, torch.float64)
        for part in x.split(certify.samples_at_once(self._model, x, torch.float64)):
            observed = _Observed(self._model)
            directions = _random(0, _PROBES, 1, *part.shape[1:]).to(part.device).expand(-1, *part.shape)
            start = Shaken(Directions(directions), Directions(directions[:1]), self._shaking)
            # With a statistic the layers do not keep their tangents.
            layers = certify.evaluate(observed, part, start, torch.float64, "sum_squares")
            found = _fingerprints(*observed.derivatives(part)).cpu()
            for pattern, fingerprint in zip(pattern_hashes(layers, len(part)), found):
                if pattern not in self._jacobians:
                    self._jacobians[pattern] = fingerprint.clone()
            self._points += len(part)

    def merge(self, group: distributed.ProcessGroup | None) -> None:
        """Takes over the points of the other processes of the group."""
        parts = gathered((self._points, list(self._jacobians), torch.stack(list(self._jacobians.values()))), group)
        self._points, self._jacobians = 0, {}
        for points, patterns, jacobians in parts:
            self._points += points
            for pattern, jacobian in zip(patterns, jacobians):
                self._jacobians.setdefault(pattern, jacobian)

    def result(self) -> RegionCount:
        jacobians = torch.stack(list(self._jacobians.values()))
        return RegionCount(_distinct(jacobians[:, 1:], jacobians[:, :1]), len(jacobians), self._points)


def _on_both(method: str) -> Callable[..., Any]:
    def apply(self: Shaken, *arguments: Any) -> Any:
        exact = getattr(self.exact, method)(*(a.exact if isinstance(a, Shaken) else a for a in arguments))
        shaken = getattr(self.shaken, method)(*(a.shaken if isinstance(a, Shaken) else a for a in arguments))
        if isinstance(exact, list):
            return [self.of(*both) for both in zip(exact, shaken, strict=True)]
        return self.of(exact, shaken)

    return apply


@dataclass(frozen=True)
class Shaken:
    """Tangents, and the first of them once more, of which every intermediate result was changed at random."""

    exact: Any
    shaken: Any
    shaking: _Shaking
    keeps: ClassVar[bool] = False

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.exact.dtype
        return dtype

    def of(self, exact: Any, shaken: Any) -> Shaken:
        return Shaken(exact, shaken if shaken is self.shaken else self.shaking(shaken), self.shaking)

    pointwise = _on_both("pointwise")
    batched = _on_both("batched")
    convolved = _on_both("convolved")
    scaled = _on_both("scaled")
    linear = _on_both("linear")
    mapped = _on_both("mapped")

    def reshaped(self, shape: Sequence[int]) -> Shaken:
        return Shaken(self.exact.reshaped(shape), self.shaken.reshaped(shape), self.shaking)

    def activate(self, slope: Tensor, statistic: str | None) -> tuple[Shaken, Tensor]:
        exact, measured = self.exact.activate(slope, statistic)
        return Shaken(exact, Directions(self.shaken.settled() * slope), self.shaking), measured


class _Shaking:
    """Changes every entry of a linearization at random by up to `_SHAKE` of itself."""

    def __init__(self) -> None:
        self._factors = torch.empty(0, device="cpu")
        self._calls = 0

    def __call__(self, linearization: Any) -> Directions:
        settled = linearization.settled()
        tangents = _compact(settled)
        # A stretch of the same random numbers, another one for each call.
        self._calls += 1
        first, size = 7919 * self._calls % _SHIFTS, tangents.numel()
        if len(self._factors) < _SHIFTS + size or self._factors.device != tangents.device:
            uniform = torch.rand(_SHIFTS + size, generator=_seeded(2), dtype=torch.float64, device="cpu")
            self._factors = (1 + _SHAKE * (2 * uniform - 1)).to(tangents.device)
        factors = self._factors[first : first + size].view(tangents.shape)
        return Directions((tangents * factors).expand(settled.shape))


class _Observed(nn.Module):
    """A model that remembers the linearizations of its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[tuple[Samples, Shaken]] = []

    def forward(self, x: Tensor) -> Any:
        output = self.model(x)
        leaves = [leaf for leaf in tensors_of(output) if isinstance(leaf, LinearizedTensor)]
        # Of the first evaluation: further ones compare values alone.
        self.outputs = self.outputs or [(leaf.samples, leaf.linearization) for leaf in leaves]
        return output

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, K, L]: those of all outputs at x [B, ...] along the K directions; and [B, 1, L], what shaking does."""
        exact = [samples.rows(both.exact.settled(), lead=1) for samples, both in self.outputs]
        shaken = [samples.rows(both.shaken.settled(), lead=1) for samples, both in self.outputs]
        none = torch.empty(1, x.size(0), 0, dtype=torch.float64, device=x.device)
        derivatives = torch.cat([none.expand(_PROBES, -1, -1), *exact], 2).transpose(0, 1)
        change = torch.cat([none, *shaken], 2).transpose(0, 1) - derivatives[:, :1]
        return derivatives, change


def pattern_hashes(layers: list[Layer], batch: int) -> list[bytes]:
    """128 bits for each of `batch` points, equal where their activation patterns are."""
    rows = [layer.piece.cpu().numpy() for layer in layers]
    layout = repr([(row.dtype.str, row.shape[1]) for row in rows]).encode()
    return [
        hashlib.blake2b(b"".join((layout, *(row[b].tobytes() for row in rows))), digest_size=16).digest()
        for b in range(batch)
    ]


def _fingerprints(derivatives: Tensor, change: Tensor) -> Tensor:
    """[B, 1 + projections]: of the derivatives [B, K, L] the error, and random projections."""
    flat = derivatives.flatten(1)
    error = torch.maximum(_RESOLUTION * flat.norm(dim=1), _ROUNDING / _SHAKE * change.flatten(1).norm(dim=1))
    return torch.cat([error[:, None], flat @ _random(1, flat.size(1), _PROJECTIONS).to(flat.device)], 1)


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
