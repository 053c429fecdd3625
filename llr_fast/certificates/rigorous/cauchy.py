"""Upper bounds of all l1 norms of gradients, from Cauchy directions whose rounding is bounded by that of the values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llr_fast.certificates import sketch
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.derivative_rounding import DerivativeRounding
from llr_fast.certificates.rigorous.sketched import SketchedBounds
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import SLACK
from llr_fast.linearized.operations import Activated
from llr_fast.linearized.tape import Entry
from llr_fast.precision import full_precision

_COUNT = 20  # directions
_TRIES = 3
_MORE = 4  # times what rounding was found to be


@torch.no_grad()
def norms(
    frozen: Frozen, bounds: SketchedBounds, failure_probability: float, generator: torch.Generator | None
) -> list[Tensor]:
    """For each layer, [B, n]; all of a sample's hold except with `failure_probability`, where `bounds` hold.

    A tangent is wrong by at most kappa sum |J| d where each operation rounds at most kappa d. How much that is shows
    when all directions are known, so that it is guessed, and tried again where it was more.
    """
    like = torch.empty(0, dtype=torch.float64, device=frozen.x.device)
    directions = sketch.draw(1, (_COUNT, 1, *frozen.x.shape[1:]), like, generator)
    kappa = bounds.kappa * _MORE
    for _ in range(_TRIES):
        tangents = _Along(frozen, bounds, directions, kappa)
        if (tangents.kappa <= kappa).all():
            found = sketch.joint_bounds(tangents.logarithms, frozen.distances, 1, _COUNT, failure_probability)
            return [bound * SLACK for bound in found]
        kappa = tangents.kappa * _MORE
    return [torch.full_like(distance, torch.inf) for distance in frozen.distances]


class _Along:
    """Of tangents along `directions` [K, 1, ...] with rounding of `kappa` [B]: sums of logarithms, from above.

    Attributes:
        logarithms: for each layer, [B, n].
        kappa: what rounding was, [B].
    """

    def __init__(self, frozen: Frozen, bounds: SketchedBounds, directions: Tensor, kappa: Tensor) -> None:
        self._frozen, self._bounds, self._guessed = frozen, bounds, kappa
        self.logarithms = [torch.zeros_like(distance) for distance in frozen.distances]
        self._largest = [torch.zeros_like(site.error) for site in bounds.sites.values()]
        self._places = {number: place for place, number in enumerate(bounds.sites)}
        of_input = torch.zeros_like(directions[0])
        with full_precision, torch.autocast(directions.device.type, enabled=False):
            for direction in directions.split(1):
                self._length = float(direction.abs().max())
                of_input = torch.maximum(of_input, direction[0].abs() / self._length)
                self._layers: Iterator[int] = iter(range(len(self.logarithms)))
                frozen.tape.walk(Directions(direction.expand(-1, *frozen.x.shape)), self._do)
        rounding = DerivativeRounding(frozen, bounds.sites, of_input * SLACK, [m * SLACK for m in self._largest])
        self.kappa = bounds.noise.parts(rounding.of_sites)

    def _do(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        if isinstance(entry.operation, Activated):
            layer = next(self._layers)
            size = self._frozen.layers[layer].samples.rows(operands[0].tangents[0].abs())
            rounding = self._length * self._guessed[:, None] * self._bounds.errors[layer]
            self.logarithms[layer] += (size + rounding).log()
        results = entry.operation.apply(*operands)
        place = self._places.get(entry.results[0])
        if place is not None:
            size = results[0].tangents[0].abs() / self._length
            torch.maximum(self._largest[place], size, out=self._largest[place])
        return results
