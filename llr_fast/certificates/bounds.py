"""Gradient norms of all neurons, or upper bounds of them: they decide the few gradients that have to be computed.

Bounds are found in the model's precision where that pays, with what its rounding can amount to added: a coarse number
may propose a neuron, but never drop one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from llr_fast.certificates import sketch
from llr_fast.certificates.frozen import Backward, Frozen
from llr_fast.linearized.gram import Chain, Topped

FEW = 2**16  # neurons of all samples up to which float64 costs no more than going over things twice
# Of the sketch for each q, the probe's included: fewer cost more back-propagations than they save.
DIRECTIONS = {1: 20, 2: 14, math.inf: 28}
_ERRORS = 64  # times the largest error of a layer along one direction
_FLOOR = {torch.float32: 2.0**-20, torch.float64: 2.0**-40}  # error of a bound, as part of the largest one up to there
_RANGE = {torch.float32: (1e-15, 1e18), torch.float64: (1e-140, 1e150)}  # of numbers whose squares are numbers
_SCALES = (1.0, 2.0**500, 2.0**-500)  # of directions, to bring numbers of float64 into that range
_CANCELLED = 1e-4  # relative rounding from which on norms are computed another way

Measure = Callable[[torch.dtype, float], list[Tensor]]


@dataclass
class Probe:
    """The network's derivatives along one random direction: in float64, and in the coarse dtype where that serves."""

    fine: Backward
    coarse: Backward | None

    @staticmethod
    def fixed(frozen: Frozen) -> Probe:
        """Along a direction that is always the same, for exact methods, which draw no numbers."""
        return Probe.random(frozen, 2, torch.Generator(frozen.x.device).manual_seed(0))

    @staticmethod
    def random(frozen: Frozen, q: float, generator: torch.Generator | None) -> Probe:
        few = sum(layer.z.numel() for layer in frozen.layers) <= FEW
        like = torch.empty(0, dtype=frozen.coarse, device=frozen.x.device)
        direction = sketch.draw(q, frozen.x.shape, like, generator)
        coarse = None if few or frozen.coarse == torch.float64 else Backward(frozen, direction[None])
        return Probe(Backward(frozen, direction.double()[None]), coarse)

    @property
    def still(self) -> list[Tensor]:
        """For each layer the neurons [B, n] that the direction does not move: their gradients are zero."""
        return [tangents == 0 for tangents in self.fine.tangents]

    def attempts(self) -> Iterator[tuple[torch.dtype, float]]:
        """Precisions and scales to measure in, in turn."""
        if self.coarse is not None and _all([tangents.isfinite() for tangents in self.coarse.tangents]):
            yield torch.float32, 1.0
        yield from ((torch.float64, scale) for scale in _SCALES)

    def rounding(self, bounds: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """For each layer what rounding can have taken from its bounds, [B], where they were computed in `dtype`.

        The error along the probe's direction is known; what it misses by chance is small beside the largest bound.
        """
        largest = torch.stack([bound.amax(1) for bound in bounds]).cummax(0).values
        return list((_FLOOR[dtype] * largest + (_ERRORS * self.errors if dtype == torch.float32 else 0)).to(dtype))

    @cached_property
    def errors(self) -> Tensor:
        """[L, B]: the largest error of each layer's coarse tangents."""
        coarse = self.fine if self.coarse is None else self.coarse
        pairs = zip(coarse.tangents, self.fine.tangents, strict=True)
        return torch.stack([(b - a).abs_().amax(1) for a, b in pairs])


@dataclass
class NormBounds:
    """Upper bounds [B, n] of each layer's norms; where a search has many neurons left, `sharpen` makes them smaller."""

    upper: list[Tensor]
    sharper: Callable[[], list[Tensor]] | None = None

    def sharpen(self) -> None:
        """Takes the smaller of the bounds and those from more directions. A second call does nothing."""
        if self.sharper is not None:
            self.upper = [torch.minimum(*both) for both in zip(self.upper, self.sharper(), strict=True)]
            self.sharper = None


@torch.no_grad()
def by_search(
    frozen: Frozen,
    probe: Probe,
    q: float,
    failure_probability: float,
    generator: torch.Generator | None,
    times: int = 1,
) -> list[Tensor]:
    """For each layer upper bounds [B, n] of the norms; all hold except with `failure_probability` per sample.

    From `times` as many directions as serve as a rule.
    """
    distances, directions = frozen.distances, times * DIRECTIONS[q]

    def measure(dtype: torch.dtype, scale: float) -> list[Tensor]:
        drawn = sketch.statistics(frozen, q, directions - 1, generator, dtype, scale)
        statistics = [
            s + sketch.term((scale * t).to(dtype), q) for s, t in zip(drawn, probe.fine.tangents, strict=True)
        ]
        return sketch.joint_bounds(statistics, distances, q, directions, failure_probability)

    bounds = in_range(measure, probe, enlarged=True)
    for layer, norms in frozen.norms_of_weights(q, bounds[0].dtype).items():
        known = norms > torch.finfo(norms.dtype).tiny  # else the dtype may have rounded it away
        bounds[layer] = torch.minimum(bounds[layer], norms * (1 + _CANCELLED)).where(known, bounds[layer])
    return bounds


@torch.no_grad()
def by_gram(chain: Chain | Topped, probe: Probe) -> list[Tensor]:
    """For each layer of a chain of dense layers the l2 norms [B, n], a little enlarged; on top of it more so."""
    return in_range(chain.bounds, probe, enlarged=True)


@torch.no_grad()
def exact_norms(frozen: Frozen, probe: Probe, q: float, chain: Chain | None) -> list[Tensor]:
    """For each layer the norms [B, n] in float64: from Gram matrices where given, else from all axes."""
    if chain is not None:
        still = probe.still
        found, bounds = chain.norms(torch.float64, 1.0)
        if _are_sharp(found, bounds, still):
            return [norms.masked_fill(none, 0) for norms, none in zip(found, still, strict=True)]
    found = in_range(lambda dtype, scale: frozen.over_axes(q, dtype, scale), Probe(probe.fine, None))
    check_gradients(found)
    return found


def _all(conditions: list[Tensor]) -> bool:
    """Whether all entries of all tensors are true, read at once."""
    return bool(torch.stack([condition.all() for condition in conditions]).all())


def _are_sharp(norms: list[Tensor], bounds: list[Tensor], still: list[Tensor]) -> bool:
    """Whether rounding has no part in the norms [B, n] of neurons that are not `still`, or little."""
    layers = zip(norms, bounds, still, strict=True)
    sharp = _all([(bound - norm <= _CANCELLED * norm) | none for norm, bound, none in layers])
    return sharp and all(_have_squares(norms, still, *_RANGE[torch.float64]))


def check_gradients(norms: list[Tensor]) -> None:
    if not _all([of_layer.isfinite() for of_layer in norms]):
        raise ValueError("model: expected gradients within the range of float64, got NaN or infinite ones")


@torch.no_grad()
def in_range(measure: Measure, probe: Probe, enlarged: bool = False) -> list[Tensor]:
    """What `measure` finds for each layer, [B, n], in the first precision and scale in which it has a square.

    It is zero where the probe shows that the gradient is, and infinite where there is no such precision. `enlarged`
    adds what rounding can have taken.
    """
    still = probe.still
    found: dict[int, Tensor] = {}
    for dtype, scale in probe.attempts():
        measured = measure(dtype, scale)
        usable = [i for i, has in enumerate(_have_squares(measured, still, *_RANGE[dtype])) if has]
        if dtype == torch.float32 and len(usable) < len(measured):
            continue
        if enlarged:
            measured = [m.add_(r[:, None]) for m, r in zip(measured, probe.rounding(measured, dtype), strict=True)]
        found = {i: measured[i] if scale == 1 else measured[i] / scale for i in usable} | found
        if len(found) == len(measured):
            break
    for i in set(range(len(still))) - set(found):
        found[i] = torch.full_like(probe.fine.tangents[i], torch.inf)
    return [found[i].masked_fill(none, 0) for i, none in enumerate(still)]


def _have_squares(measured: list[Tensor], still: list[Tensor], low: float, high: float) -> list[bool]:
    """For each layer whether the largest number of neurons [B, n] that are not `still` has a square, in all samples."""

    def within(numbers: list[Tensor]) -> Tensor:
        largest = torch.stack([of_layer.amax(1) for of_layer in numbers])
        return (largest > low) & (largest < high)

    found: list[bool] = within(measured).all(1).tolist()
    if not all(found):
        moving = [of_layer.masked_fill(none, 0) for of_layer, none in zip(measured, still, strict=True)]
        nothing = torch.stack([none.all(1) for none in still])
        found = (within(moving) | nothing).all(1).tolist()
    return found
