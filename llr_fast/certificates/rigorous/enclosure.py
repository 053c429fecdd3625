"""The enclosure of a margin: neurons in the order of what they allow, until none can matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llr_fast import norms
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.search import Nearest, entries, without
from llr_fast.linearized.local import gamma
from llr_fast.ops.margin_reduce import smallest_bounds

_WIDE = 8  # neurons of a sample, after the first, that are back-propagated at a time
CANDIDATES = 64  # neurons that are sorted at a time
_DOWN, _UP = 1 - 2.0**-49, 1 + 2.0**-49  # more than a few roundings, those of the distances included
MOST = 1024  # that are back-propagated for one sample; then the bound of the next one is the margin's


class Bounds(Protocol):
    """Of what rounding does: `errors` [B, n] of each layer's values, and more of single neurons."""

    errors: list[Tensor]

    def of_neurons(self, layer: Tensor, neuron: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each sample its neurons' gradients [B, C, ...], and bounds of the errors of their values and gradients.

        All else is [B, C]; the layer is -1 where there is no neuron.
        """


@dataclass
class Enclosure:
    """Of the margins of B samples, [B]: see `Margin`; and the nearest neurons, where these were all found."""

    lower: Tensor
    upper: Tensor
    undecided: Tensor  # [B, 2]: layer and neuron of the first unproven sign; -1 where all are proven
    nearest: Nearest | None


@torch.no_grad()
def enclose(frozen: Frozen, bounds: Bounds, gradient_norms: list[Tensor], q: float, most: int = MOST) -> Enclosure:
    """The margins, once every sign is proven; of samples with one that is not, a kink's distance from above alone.

    `gradient_norms` are upper bounds for each layer, [B, n]. At `most` so many neurons are computed for their signs in
    each layer, and for their distances.
    """
    distances = frozen.distances
    sure = sure_distances(frozen, bounds)
    # A neuron without gradient bounds no region, but its sign may be in doubt.
    open_signs = [(s == 0) & ((n > 0) | (e > 0)) for s, n, e in zip(sure, gradient_norms, bounds.errors, strict=True)]
    found = _Found(frozen, q)
    left = _prove_signs(found, bounds, gradient_norms, distances, open_signs, most)
    wide = max(1, min(_WIDE, frozen.gradients_at_once(torch.float64) // 4))
    at_once = min(CANDIDATES, most)
    for done in range(0, most, at_once):
        lowest, layer, neuron = smallest_bounds(sure, left, at_once)
        first = 0
        while first < lowest.size(1):
            settled = (lowest[:, first] >= found.nearest.value) | (layer[:, first] < 0)
            enough = settled | (found.undecided[:, 0] >= 0) | ((lowest[:, first] >= found.lower) & (done > 0))
            if enough.all():
                return found.enclosure(bool(settled.all()))
            some = slice(first, first + (wide if done + first else 1))
            found.take(bounds, distances, layer[:, some].masked_fill(enough[:, None], -1), neuron[:, some])
            first = some.stop
        left = [without(of_layer, layer == index, neuron) for index, of_layer in enumerate(left)]
    least, layer, _ = (t[:, 0] for t in smallest_bounds(sure, left, 1))
    found.lower = torch.minimum(found.lower, least.masked_fill(layer < 0, math.inf))
    return found.enclosure(bool(((least >= found.nearest.value) | (layer < 0)).all()))


def sure_distances(frozen: Frozen, bounds: Bounds) -> list[Tensor]:
    """For each layer lower bounds [B, n] of the neurons' distances to their kinks; 0 where the side is not proven."""
    return [(d * _DOWN - e).clamp_min(0) for d, e in zip(frozen.distances, bounds.errors, strict=True)]


def _prove_signs(
    found: _Found,
    bounds: Bounds,
    gradient_norms: list[Tensor],
    distances: list[Tensor],
    open_signs: list[Tensor],
    most: int,
) -> list[Tensor]:
    """Computes neurons of open signs one by one, in the order of layers, up to the first that cannot be proven.

    Returns the norms of all neurons that were not computed.
    """
    left = list(gradient_norms)
    for index, signs in enumerate(open_signs):
        signs = signs.clone()
        for _ in range(most):
            rows = signs.any(1) & (found.undecided[:, 0] < 0)
            if not rows.any():
                break
            neuron = signs.int().argmax(1, keepdim=True)
            layer = torch.full_like(neuron, index).masked_fill(~rows[:, None], -1)
            found.take(bounds, distances, layer, neuron)
            signs = signs.scatter(1, neuron, False)
            left[index] = without(left[index], rows[:, None], neuron)
        found.doubt(signs.any(1) & (found.undecided[:, 0] < 0), torch.full_like(found.undecided[:, 0], index), signs)
    return left


class _Found:
    """What is known of the margins so far."""

    def __init__(self, frozen: Frozen, q: float) -> None:
        batch, self._q = len(frozen.x), q
        self._layers = len(frozen.layers)
        infinite = torch.full((batch,), math.inf, dtype=torch.float64, device=frozen.x.device)
        none = torch.full_like(infinite, -1, dtype=torch.long)
        self.lower = infinite.clone()
        self._upper = infinite.repeat(self._layers, 1)  # of the neurons of each layer, [L, B]
        self.undecided = torch.stack([none.clone(), none.clone()], 1)
        zero = torch.zeros_like(frozen.x, dtype=torch.float64)
        self.nearest = Nearest(infinite.clone(), none.clone(), none.clone(), zero)

    def take(self, bounds: Bounds, distances: list[Tensor], layer: Tensor, neuron: Tensor) -> None:
        """Computes neurons [B, C] of each sample, none where the layer is -1, and takes them in."""
        found = (layer, neuron, entries(distances, layer, neuron), *bounds.of_neurons(layer, neuron))
        for one in zip(*(of_all.unbind(1) for of_all in found), strict=True):
            self._take(*one)

    def _take(
        self, layer: Tensor, neuron: Tensor, distance: Tensor, gradient: Tensor, error: Tensor, of_norm: Tensor
    ) -> None:
        """One neuron [B] of each sample."""
        norm = norms.norm(gradient, self._q)
        of_norm = of_norm + norm * gamma(gradient[0].numel() + 8)
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
        first = doubtful & (self.undecided[:, 0] < 0)
        self.undecided[first] = torch.stack([layer, neuron], 1)[first]
        self._keep_nearest(layer, neuron, (distance / norm).masked_fill((norm == 0) | ~some, math.inf), gradient)

    def doubt(self, doubtful: Tensor, layer: Tensor, signs: Tensor) -> None:
        """Names a neuron of open sign in this layer, for samples [B] that have more of them than are computed."""
        self.undecided[doubtful] = torch.stack([layer, signs.int().argmax(1)], 1)[doubtful]
        self.lower[doubtful] = 0.0

    def _keep_nearest(self, layer: Tensor, neuron: Tensor, value: Tensor, gradient: Tensor) -> None:
        best, nearer = self.nearest, value < self.nearest.value
        best.value[nearer], best.gradient[nearer] = value[nearer], gradient[nearer]
        best.layer[nearer], best.neuron[nearer] = layer[nearer], neuron[nearer]

    def enclosure(self, settled: bool) -> Enclosure:
        """What a neuron behind an unproven sign says of the kink's distance from above is not proven."""
        first = self.undecided[:, 0]
        layers = torch.arange(self._layers, device=first.device).unsqueeze(1)
        upper = self._upper.masked_fill((layers > first) & (first >= 0), math.inf).amin(0)
        return Enclosure(self.lower, upper, self.undecided, self.nearest if settled else None)
