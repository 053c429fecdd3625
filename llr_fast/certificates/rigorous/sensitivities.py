"""How single neurons depend on the input, and on what rounding did to each value on the way to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.sites import Site
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import raised
from llr_fast.linearized.operations import Activated
from llr_fast.linearized.tape import Entry
from llr_fast.precision import full_precision


class Sensitivities:
    """One back-propagation through the frozen network gives a neuron's derivatives by the input and by all values.

    They do not depend on the `direction` [B, ...] along which the network is run for it.

    Attributes:
        neurons: for each layer the tangents [B, n] along the direction.
        values: those of the sites, [B, ...].
    """

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(self, frozen: Frozen, sites: dict[int, Site], direction: Tensor | None = None) -> None:
        self._frozen, self._sites = frozen, sites
        self.neurons: list[Tensor] = []
        self.values: list[Tensor] = []
        like = torch.ones_like(frozen.x, dtype=torch.float64) if direction is None else direction.clone()
        self._direction = like.unsqueeze(0).requires_grad_()
        with full_precision, torch.autocast(frozen.x.device.type, enabled=False):
            frozen.tape.walk(Directions(self._direction), self._noted)

    def _noted(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        if isinstance(entry.operation, Activated):
            samples = self._frozen.layers[len(self.neurons)].samples
            self.neurons.append(samples.rows(operands[0].tangents, lead=1)[0])
        results = entry.operation.apply(*operands)
        if entry.results[0] in self._sites:
            tangents = results[0].tangents
            # What stays the same in the linear region does not depend on the direction, but may be rounded.
            self.values.append(tangents if tangents.requires_grad else tangents.requires_grad_())
        return results

    @torch.inference_mode(False)
    def of_neurons(self, layer: Tensor, neuron: Tensor, *weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """For each sample the gradient [B, ...] of its neuron, and sums over all sites of |derivative| * weight, [B].

        `layer` [B] is -1 for samples without. The weights are, for each site, [B, n].
        """
        with torch.enable_grad():
            total = self._direction.sum() * 0
            for index in layer.unique().tolist():
                rows = (layer == index).nonzero().squeeze(1)
                if index >= 0:
                    total = total + self.neurons[index][rows, neuron[rows]].sum()
        with full_precision, torch.autocast(total.device.type, enabled=False):
            gradient, *found = torch.autograd.grad(
                total, [self._direction, *self.values], retain_graph=True, allow_unused=True
            )
        sums = [torch.zeros(len(layer), dtype=torch.float64, device=layer.device) for _ in weights]
        for index, (derivative, site) in enumerate(zip(found, self._sites.values(), strict=True)):
            if derivative is None:
                continue
            size = raised(site.samples.rows(derivative[0].abs()))
            for total_of, of_sites in zip(sums, weights, strict=True):
                # A product that is NaN is one of 0 and an infinite bound, where no path leads.
                total_of += (size * of_sites[index]).nan_to_num(nan=0.0, posinf=torch.inf).sum(1)
        return gradient[0], sums
