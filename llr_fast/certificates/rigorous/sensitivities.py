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

_INFINITE = 1e300  # no product with a derivative that is not 0 is then a bound that proves anything


class Sensitivities:
    """One back-propagation through the frozen network gives neurons' derivatives by the input and by all values.

    They do not depend on the `directions` [W, B, ...] along which the network is run for it. Of each sample one pass
    serves up to W neurons.

    Attributes:
        neurons: for each layer the tangents [W, B, n] along the directions.
        values: those of the sites, [W, B, ...].
    """

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(self, frozen: Frozen, sites: dict[int, Site], directions: Tensor) -> None:
        self._frozen, self._sites = frozen, sites
        self.neurons: list[Tensor] = []
        self.values: list[Tensor] = []
        self._directions = directions.clone().requires_grad_()
        with full_precision, torch.autocast(frozen.x.device.type, enabled=False):
            frozen.tape.walk(Directions(self._directions), self._noted)

    @property
    def width(self) -> int:
        """W."""
        return len(self._directions)

    @staticmethod
    def of_ones(frozen: Frozen, sites: dict[int, Site], width: int) -> Sensitivities:
        """For up to so many neurons, without random directions."""
        return Sensitivities(frozen, sites, torch.ones(width, *frozen.x.shape, dtype=torch.float64))

    def _noted(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        if isinstance(entry.operation, Activated):
            samples = self._frozen.layers[len(self.neurons)].samples
            self.neurons.append(samples.rows(operands[0].tangents, lead=1))
        results = entry.operation.apply(*operands)
        if entry.results[0] in self._sites:
            tangents = results[0].tangents
            # What stays the same in the linear region does not depend on the direction, but may be rounded.
            self.values.append(tangents if tangents.requires_grad else tangents.requires_grad_())
        return results

    @torch.inference_mode(False)
    def of_neurons(self, layer: Tensor, neuron: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """For each sample the gradients [B, C, ...] of its neurons; and sums of |derivatives| * weights, [B, C, M].

        `layer` and `neuron` are [B, C]; the layer is -1 where there is no neuron, and C <= W. The weights are those of
        all entries of all sites, see `weights_of`.
        """
        layer, neuron = layer.t(), neuron.t()
        with torch.enable_grad():
            total = self._directions.sum() * 0
            for index in layer.unique().tolist():
                if index >= 0:
                    at, rows = (layer == index).nonzero(as_tuple=True)
                    total = total + self.neurons[index][at, rows, neuron[at, rows]].sum()
        values = [self._directions, *self.values]
        with full_precision, torch.autocast(total.device.type, enabled=False):
            gradient, *found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
        sums = total.new_zeros(*layer.shape, weights.size(2))
        if found:
            derivatives = [torch.zeros_like(v) if d is None else d for d, v in zip(found, self.values, strict=True)]
            pairs = zip(derivatives, self._sites.values(), strict=True)
            sizes = torch.cat([site.samples.rows(d[: len(layer)].abs(), lead=1) for d, site in pairs], 2)
            sums = torch.einsum("cbn,bnm->cbm", raised(sizes), weights)
        return gradient[: len(layer)].transpose(0, 1), sums.transpose(0, 1)


def weights_of(*bounds: list[Tensor]) -> Tensor:
    """[B, N, M], from M bounds for each site, [B, n].

    Where no path leads a derivative is 0, and so should its product with an infinite bound be.
    """
    whole = [torch.cat(of_sites, 1) for of_sites in bounds if of_sites]
    return torch.stack(whole, 2).nan_to_num(nan=_INFINITE).clamp_max(_INFINITE) if whole else torch.zeros(1, 0, 0)
