"""The enclosure of a margin: neurons in the order of what they allow, until none can matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llr_fast import norms
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.search import Nearest, entries
from llr_fast.linearized.local import gamma
from llr_fast.ops.margin_reduce import smallest_bounds

CANDIDATES = 64  # neurons that are sorted at a time
_DOWN, _UP = 1 - 2.0**-49, 1 + 2.0**-49  # more than a few roundings, those of the distances included
MOST = 1024  # that are back-propagated for one sample; then the bound of the next one is the margin's


class Bounds(Protocol):
    """What is proven of every neuron, for each layer [B, n], and of chosen ones."""

    errors: list[Tensor]
    norms: list[Tensor]  # upper bounds

    def of_neurons(self, layer: Tensor, neuron: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each sample its neuron's gradient [B, ...]; bounds of its value's error [B], and of the gradient's."""


@dataclass
class Enclosure:
    """Of the margins of B samples, [B]: see `Margin`; and the neuron that decides each."""

    lower: Tensor
    upper: Tensor
    undecided: Tensor  # [B, 2]: layer and neuron of the first unproven sign; -1 where all are
    nearest: Nearest


@torch.no_grad()
def enclose(frozen: Frozen, bounds: Bounds, q: float) -> Enclosure:
    """All signs that the bounds do not prove, and all neurons that may be the nearest, are computed one by one."""
    distances = frozen.distances
    sure = [(d * _DOWN - e).clamp_min(0) for d, e in zip(distances, bounds.errors, strict=True)]
    # A neuron without gradient bounds no region, but its sign may be in doubt.
    left = [
        n.masked_fill((n == 0) & (s == 0) & (e > 0), torch.finfo(torch.float64).tiny)
        for n, s, e in zip(bounds.norms, sure, bounds.errors, strict=True)
    ]
    found = _Found(frozen, q)
    for _ in range(0, MOST, CANDIDATES):
        lowest, layer, neuron = (t.t() for t in smallest_bounds(sure, left, CANDIDATES))
        for at_least, at_layer, at_neuron in zip(lowest, layer, neuron, strict=True):
            open_ = (at_least < found.lower) & (at_layer >= 0)
            if not open_.any():
                return found.enclosure()
            at_layer = at_layer.masked_fill(~open_, -1)
            found.take(at_layer, at_neuron, distances, *bounds.of_neurons(at_layer, at_neuron))
        left = [_without(of_layer, layer == index, neuron) for index, of_layer in enumerate(left)]
    found.give_up(
        smallest_bounds(sure, left, 1)[0][:, 0], [(s == 0) & (n > 0) for s, n in zip(sure, left, strict=True)]
    )
    return found.enclosure()


class _Found:
    """What is known of the margins so far."""

    def __init__(self, frozen: Frozen, q: float) -> None:
        batch, self._q = len(frozen.x), q
        self._layers = len(frozen.layers)
        infinite = torch.full((batch,), math.inf, dtype=torch.float64, device=frozen.x.device)
        none = torch.full_like(infinite, -1, dtype=torch.long)
        self.lower = infinite.clone()
        self._upper = infinite.repeat(self._layers, 1)  # of the neurons of each layer, [L, B]
        self._undecided = torch.stack([none.clone(), none.clone()], 1)
        zero = torch.zeros_like(frozen.x, dtype=torch.float64)
        self._nearest = Nearest(infinite.clone(), none.clone(), none.clone(), zero)

    def take(
        self, layer: Tensor, neuron: Tensor, distances: list[Tensor], gradient: Tensor, error: Tensor, of_norm: Tensor
    ) -> None:
        """Takes in one neuron [B] of each sample, or none where the layer is -1."""
        norm = norms.norm(gradient, self._q)
        of_norm = of_norm + norm * gamma(gradient[0].numel() + 8)
        distance = entries(distances, layer, neuron)
        some = layer >= 0
        constant = (norm == 0) & (of_norm == 0)
        sure = distance * _DOWN - error
        lower = (sure.clamp_min(0) / (norm + of_norm) * _DOWN).masked_fill(constant, math.inf)
        upper = (distance + error) / (norm - of_norm) * _UP
        upper = upper.masked_fill(~(norm > of_norm), math.inf)
        doubtful = some & ~((sure > 0) | (error == 0))
        lower = lower.masked_fill(doubtful, 0.0).nan_to_num(nan=0.0)
        self.lower = torch.where(some, torch.minimum(self.lower, lower), self.lower)
        place = layer.clamp_min(0).unsqueeze(0)
        upper = torch.minimum(self._upper.gather(0, place)[0], upper.masked_fill(~some, math.inf))
        self._upper.scatter_(0, place, upper.unsqueeze(0))
        self._doubt(doubtful, layer, neuron)
        self._keep_nearest(layer, neuron, (distance / norm).masked_fill((norm == 0) | ~some, math.inf), gradient)

    def give_up(self, lowest: Tensor, unproven: list[Tensor]) -> None:
        """Leaves the rest to its bounds: none allows less than `lowest` [B]; these signs [B, n] are not proven."""
        self.lower = torch.minimum(self.lower, lowest)
        for index, of_layer in enumerate(unproven):
            self._doubt(of_layer.any(1), torch.full_like(self._undecided[:, 0], index), of_layer.int().argmax(1))

    def _doubt(self, doubtful: Tensor, layer: Tensor, neuron: Tensor) -> None:
        first = doubtful & ((self._undecided[:, 0] < 0) | (layer < self._undecided[:, 0]))
        self._undecided[first] = torch.stack([layer, neuron], 1)[first]

    def _keep_nearest(self, layer: Tensor, neuron: Tensor, value: Tensor, gradient: Tensor) -> None:
        best, nearer = self._nearest, value < self._nearest.value
        best.value[nearer], best.gradient[nearer] = value[nearer], gradient[nearer]
        best.layer[nearer], best.neuron[nearer] = layer[nearer], neuron[nearer]

    def enclosure(self) -> Enclosure:
        """What a neuron behind an unproven sign says of the kink's distance from above is not proven."""
        first = self._undecided[:, 0]
        layers = torch.arange(self._layers, device=first.device).unsqueeze(1)
        upper = self._upper.masked_fill((layers > first) & (first >= 0), math.inf).amin(0)
        return Enclosure(self.lower, upper, self._undecided, self._nearest)


def _without(bounds: Tensor, here: Tensor, neuron: Tensor) -> Tensor:
    candidate, row = here.nonzero(as_tuple=True)
    bounds = bounds.clone()
    bounds[row, neuron[candidate, row]] = 0
    return bounds
