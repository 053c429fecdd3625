"""Tangents along random directions with noise at every site: the sums of their squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llr_fast.certificates import sketch
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.noise import Noise
from llr_fast.linearized.directions import Directions, compact
from llr_fast.linearized.operations import Activated
from llr_fast.linearized.tape import Entry
from llr_fast.precision import full_precision

_AT_ONCE = 2**18  # tangents: convolutions in float64 unfold their input, and are faster while that stays in a cache


class Squares:
    """Sums over `count` random directions.

    Attributes:
        of_input: of the entries of the input, [1, ...]: the samples share the directions.
        of_sites: of the shapes of their values.
        of_layers: of the neurons, [B, n].
    """

    @torch.no_grad()
    def __init__(self, frozen: Frozen, noise: Noise, count: int, generator: torch.Generator | None) -> None:
        self._frozen, self._noise = frozen, noise
        self._places = {number: index for index, number in enumerate(noise.sites)}
        self.of_sites: list[Tensor] = []
        self.of_layers: list[Tensor] = []
        x = frozen.x
        directions = sketch.draw(2, (count, 1, *x.shape[1:]), torch.empty(0, dtype=torch.float64), generator)
        seed = torch.randint(2**62, (1,), generator=generator).item()
        self._drawn = np.random.Generator(np.random.SFC64(int(seed)))
        self.of_input = _sum_of_squares(directions)
        widest = max((site.error.numel() for site in noise.sites.values()), default=1)
        with full_precision, torch.autocast(x.device.type, enabled=False):
            for chunk in directions.split(max(1, _AT_ONCE // widest)):
                self._layer = 0
                frozen.tape.walk(Directions(chunk.expand(-1, *x.shape)), self._do)

    def _do(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        if isinstance(entry.operation, Activated):
            self._measure(entry.operands[0], operands[0])
        results = entry.operation.apply(*operands)
        place = self._places.get(entry.results[0])
        if place is None:
            return results
        noisy = self._noise.added(results[0].tangents, place, self._drawn)
        _add(self.of_sites, place, _sum_of_squares(noisy))
        return [Directions(noisy)]

    def _measure(self, number: int, neurons: Directions) -> None:
        samples = self._frozen.layers[self._layer].samples
        if number in self._places:
            found = samples.rows(self.of_sites[self._places[number]])
            self.of_layers[self._layer : self._layer + 1] = [found]
        else:
            _add(self.of_layers, self._layer, samples.rows(_sum_of_squares(neurons.tangents)))
        self._layer += 1


def _add(sums: list[Tensor], place: int, found: Tensor) -> None:
    if place == len(sums):
        sums.append(found)
    else:
        sums[place] += found


def _sum_of_squares(tangents: Tensor) -> Tensor:
    distinct = compact(tangents)
    total = distinct[0].square()
    for along in distinct[1:]:
        total.addcmul_(along, along)
    return total.expand(tangents.shape[1:])
