"""What rounding does to the derivatives themselves, between one site and the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.sites import Site
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import SLACK, gamma, raised
from llr_fast.linearized.operations import Activated, Parts
from llr_fast.linearized.tape import Entry
from llr_fast.precision import full_precision

_NOISE = 3  # roundings of a tangent that takes in noise


class DerivativeRounding:
    """Given bounds of something for the input and all sites, |S| times it and the roundings of S, at the next site.

    S is what is done between the sites, gamma the relative error of products there, forwards or backwards.

    Attributes:
        of_sites: gamma (|S| bounds + bound), for each site [B, n].
        of_layers: gamma |S| bounds of what is done between the sites and the neurons, [B, n].
        sources: for each layer how many sites there are on the way to it.
    """

    @torch.no_grad()
    def __init__(self, frozen: Frozen, sites: dict[int, Site], of_input: Tensor, bounds: list[Tensor]) -> None:
        self._frozen, self._sites, self._bounds = frozen, sites, bounds
        entries = frozen.tape.up_to_last_activation()
        self._uses = Counter(number for entry in entries for number in entry.operands)
        self._terms = {0: 0}
        self._sources: dict[int, int] = {0: 0}  # as bits
        self.of_sites: list[Tensor] = []
        self.of_layers: list[Tensor] = []
        self.sources: list[int] = []
        start = of_input.expand(frozen.x.shape).unsqueeze(0)
        with full_precision, torch.autocast(start.device.type, enabled=False):
            frozen.tape.walk(Directions(start), self._do)

    def _do(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        terms = max(self._terms[number] + self._uses[number] - 1 for number in entry.operands) + entry.local.terms
        sources = 0
        for number in entry.operands:
            sources |= self._sources[number]
        if isinstance(entry.operation, Activated):
            samples = self._frozen.layers[len(self.of_layers)].samples
            rounding = samples.rows(operands[0].tangents[0]) * gamma(self._terms[entry.operands[0]])
            self.of_layers.append(rounding * SLACK)
            self.sources.append(sources.bit_count())
        if isinstance(entry.operation, Parts):
            results = entry.operation.apply(*operands)
        else:
            results = [entry.operation.absolute(*operands)]
        site = self._sites.get(entry.results[0])
        if site is not None:
            place = len(self.of_sites)
            bound, sources, size = self._bounds[place], sources | 1 << place, results[0].tangents[0]
            self.of_sites.append(site.samples.rows(raised(size + bound)) * (gamma(terms + _NOISE) * SLACK))
            results, terms = [Directions(bound.unsqueeze(0))], 0
        for number in entry.results:
            self._terms[number], self._sources[number] = terms, sources
        return results
