"""How single neurons depend on the input, and on what rounding did to each value on the way to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.operations import Activated
from llr_fast.linearized.tape import Entry, Local
from llr_fast.precision import full_precision


class Sensitivities:
    """One back-propagation through the frozen network gives a neuron's derivatives by the input and by all values."""

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        self._neurons: list[Tensor] = []
        self._rounded: list[tuple[Tensor, Local]] = []
        self._direction = torch.ones(1, *frozen.x.shape, dtype=torch.float64, device=frozen.x.device).requires_grad_()
        with full_precision, torch.autocast(frozen.x.device.type, enabled=False):
            frozen.tape.walk(Directions(self._direction), self._noted)

    def _noted(self, entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
        if isinstance(entry.operation, Activated):
            samples = self._frozen.layers[len(self._neurons)].samples
            self._neurons.append(samples.rows(operands[0].tangents, lead=1)[0])
        results = entry.operation.apply(*operands)
        if entry.local.error is not None:
            self._rounded.append((results[0].tangents, entry.local))
        return results

    @torch.inference_mode(False)
    def of_neurons(self, layer: Tensor, neuron: Tensor) -> tuple[Tensor, Tensor]:
        """For each sample the gradient [B, ...] of its neuron, and the sum of |derivative by a value| * its error, [B].

        `layer` [B] is -1 for samples without.
        """
        with torch.enable_grad():
            total = self._direction.sum() * 0
            for index in layer.unique().tolist():
                rows = (layer == index).nonzero().squeeze(1)
                if index >= 0:
                    total = total + self._neurons[index][rows, neuron[rows]].sum()
        values = [self._direction, *(tangents for tangents, _ in self._rounded)]
        with full_precision, torch.autocast(total.device.type, enabled=False):
            gradient, *found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
        errors = torch.zeros(len(layer), dtype=torch.float64, device=layer.device)
        for derivative, (_, local) in zip(found, self._rounded, strict=True):
            if derivative is not None and local.error is not None and local.samples is not None:
                # A product that is NaN is one of 0 and an infinite bound, where no path leads.
                errors += local.samples.rows((derivative[0].abs() * local.error).nan_to_num(nan=0.0)).sum(1)
        return gradient[0], errors
