"""Bounds by absolute values: what the network with |S| for each of its affine functions S makes of local errors.

They need no randomness and cost two passes, but grow with depth faster than what they bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.sensitivities import Sensitivities, weights_of
from llr_fast.certificates.rigorous.sites import Site
from llr_fast.certificates.search import entries
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import SLACK, gamma, raised
from llr_fast.linearized.operations import Activated, Parts
from llr_fast.linearized.tape import Entry, Tape
from llr_fast.precision import full_precision


class AbsoluteBounds:
    """For each layer, [B, n]: `errors`, bounds of the errors of values; and `paths`, the sums of all |path products|.

    `relative` bounds the rounding of derivatives: along a direction v, and of gradients in any norm, they are wrong by
    at most relative * paths * max |v|, computed forwards or backwards. `paths` is 0 only where no path leads.
    """

    def __init__(self, frozen: Frozen, sites: dict[int, Site]) -> None:
        self._frozen, self._sites = frozen, sites
        self._weights = weights_of([site.errors for site in sites.values()])
        self._sensitivities: Sensitivities | None = None
        self.relative = relative_error(frozen.tape)
        self.errors: list[Tensor] = []
        self.paths: list[Tensor] = []
        both = torch.ones(2, *frozen.x.shape, dtype=torch.float64, device=frozen.x.device)
        both[0] = 0
        with full_precision, torch.autocast(both.device.type, enabled=False), torch.no_grad():
            frozen.tape.walk(Directions(both), self._pass)

    def _pass(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        operation = entry.operation
        if isinstance(operation, Parts):
            return operation.apply(*operands)
        if isinstance(operation, Activated):
            samples = self._frozen.layers[len(self.errors)].samples
            errors, paths = (samples.rows(t) * SLACK for t in operands[0].tangents)
            self.errors.append(errors.nan_to_num(nan=torch.inf, posinf=torch.inf))
            self.paths.append(paths.nan_to_num(nan=torch.inf, posinf=torch.inf))
        errors, paths = operation.absolute(*operands).tangents
        if entry.local.error is not None:
            errors = errors + entry.local.error
        return [Directions(raised(torch.stack([errors, paths])))]

    def of_neurons(self, layer: Tensor, neuron: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Bounds`."""
        if self._sensitivities is None or layer.size(1) > self._sensitivities.width:
            self._sensitivities = Sensitivities.of_ones(self._frozen, self._sites, layer.size(1))
        gradient, sums = self._sensitivities.of_neurons(layer, neuron, self._weights)
        own = sums[..., 0]
        errors, paths = (entries(found, layer, neuron) for found in (self.errors, self.paths))
        return gradient, torch.minimum(errors, own * SLACK + self.relative * errors), self.relative * paths


def relative_error(tape: Tape) -> float:
    """What rounding can do to a product along a path through the network, forwards or backwards, as part of it."""
    noted = tape.up_to_last_activation()
    uses = Counter(number for entry in noted for number in entry.operands)
    product = 1.0
    for entry in noted:
        product *= 1 + gamma(entry.local.terms)
    for count in uses.values():  # gradients that come back on several ways are added up
        product *= 1 + gamma(count - 1)
    return (product - 1 + 2.0**-50) * SLACK
