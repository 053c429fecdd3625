"""The network with its activation pattern frozen: evaluated once, then linear along any direction and backwards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llr_fast import norms
from llr_fast.certificates.evaluation import directions_at_once, gradients_at_once, layers_of, tangent_dtype
from llr_fast.linearized.directions import Directions, axes
from llr_fast.linearized.gram import Chain, Topped, chain_of, topped_chain_of
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.operations import Convolved, Linear, Scaled
from llr_fast.linearized.tape import Activate, Tape, Taped
from llr_fast.norms import Statistic
from llr_fast.precision import full_precision


@dataclass
class Frozen:
    """The layers of neurons of a network at x [B, ...], and the tape from which their derivatives follow.

    Derivatives have the dtype of the directions along which they are asked for; `coarse` is the model's, or float32
    where that is a low precision.
    """

    x: Tensor
    layers: list[Layer]
    tape: Tape
    coarse: torch.dtype

    @property
    def distances(self) -> list[Tensor]:
        """For each layer the distances [B, n] of its neurons to their nearest kinks."""
        return [layer.distance for layer in self.layers]

    def tangents(self, directions: Directions) -> list[Tensor]:
        """For each layer the tangents [K, B, n] along the directions."""
        found = self._replayed(directions, lambda d, slope: (d.activated(slope), d.tangents))
        return [layer.samples.rows(t, lead=1) for layer, t in zip(self.layers, found, strict=True)]

    @torch.no_grad()
    def statistics(self, chunks: Iterable[Directions], statistic: Statistic) -> list[Tensor]:
        """For each layer the statistic [B, n] over the directions of all chunks."""
        combine = torch.maximum if statistic is Statistic.MAX_ABS else torch.add
        total: list[Tensor] = []
        for chunk in chunks:
            measured = self._replayed(chunk, lambda d, slope: d.activated_and_measured(slope, statistic))
            found = [layer.samples.rows(t) for layer, t in zip(self.layers, measured, strict=True)]
            total = [combine(a, b) for a, b in zip(total, found, strict=True)] if total else found
        return total

    def over_axes(self, q: float, dtype: torch.dtype, scale: float) -> list[Tensor]:
        """For each layer the l_q norms [B, n] of its neurons' gradients, times `scale`, from all input axes."""
        size = self.x[0].numel()
        chunk = self._directions_at_once(dtype, entries=size)
        starts = range(0, size, chunk)
        parts = (axes(self.x, start, min(start + chunk, size), dtype).times(scale) for start in starts)
        return [norms.from_axes(found, q) for found in self.statistics(parts, norms.statistic_over_axes(q))]

    def norms_of_weights(self, q: float, dtype: torch.dtype) -> dict[int, Tensor]:
        """For each layer that is a product of the input with weights the l2 norms, for q = 1 the l1 norms, [B, n]."""
        power = torch.abs if q == 1 else torch.square
        found = {}
        for layer, path in self.tape.products():
            norm = torch.ones(1, *self.x.shape[1:], dtype=torch.float64, device=self.x.device)
            for operation in path:
                if isinstance(operation, (Convolved, Linear)):
                    largest = operation.weight.abs().amax().double().clamp_min(torch.finfo(torch.float64).tiny)
                    weight = power(operation.weight.double() / largest)
                    convolve = operation.function if isinstance(operation, Convolved) else F.linear
                    norm = convolve(norm, weight)
                    norm = largest * (norm if q == 1 else norm.sqrt())
                elif isinstance(operation, Scaled):  # behind the root: squares of factors may underflow
                    norm = norm * operation.factor.double().abs().view(-1, *[1] * (norm.dim() - 2))
            found[layer] = norm.to(dtype).expand(len(self.x), *norm.shape[1:]).flatten(1)
        return found

    def chunks(self, directions: Tensor) -> Iterator[Directions]:
        """Directions [K, B, ...], as many at a time as the budget allows."""
        return (Directions(part) for part in directions.split(self._directions_at_once(directions.dtype)))

    def chain(self) -> Chain | None:
        """The network as a chain of dense layers with its slopes at x, if it is one."""
        with full_precision, torch.autocast(self.x.device.type, enabled=False):
            return chain_of(self.tape, self.x.shape)

    def topped_chain(self) -> Topped | None:
        """The same with one more layer, whose neurons' norms it can only bound."""
        with full_precision, torch.autocast(self.x.device.type, enabled=False):
            return topped_chain_of(self.tape, self.x.shape, self.layers[-1].samples)

    def _replayed(self, directions: Directions, activate: Activate[Tensor]) -> list[Tensor]:
        with full_precision, torch.autocast(self.x.device.type, enabled=False):
            return list(self.tape.replay(directions, activate))

    def _directions_at_once(self, dtype: torch.dtype, entries: int = 0) -> int:
        """What keeps the tangents of the widest layer within the budget, with `entries` where directions are made."""
        widest = max((layer.z.numel() for layer in self.layers), default=1)
        return directions_at_once(widest + entries, dtype, self.x.device)

    def gradients_at_once(self, dtype: torch.dtype) -> int:
        """Of how many neurons of each sample a pass back to the input should find the gradients."""
        return gradients_at_once(sum(layer.z.numel() for layer in self.layers), dtype, self.x.device)


@torch.inference_mode(False)
@torch.no_grad()
def freeze(model: nn.Module, x: Tensor, dtype: torch.dtype, compared: bool = True, bounds: bool = False) -> Frozen:
    """The network around x [B, ...], with values in `dtype`; outside of inference mode, so that it has gradients.

    `compared` as in `layers_of`; with `bounds` the tape notes what rounding does to each value.
    """
    x = x.detach().clone()
    tape = Tape(torch.float64)
    layers = layers_of(model, x, Taped(tape), dtype, compared=compared, bounds=bounds)
    tape.finished = True
    return Frozen(x, layers, tape, tangent_dtype(model, x))


class Backward:
    """The network's derivatives along directions [W, B, ...], in their dtype, and gradients of chosen neurons.

    A tangent is linear in its direction, so its derivative by the direction is the neuron's gradient, whatever the
    direction: the backward passes run through the frozen pattern and need no graph of the values. Of each sample one
    pass gives the gradients of up to W neurons.
    """

    def __init__(self, frozen: Frozen, directions: Tensor) -> None:
        self._frozen = frozen
        with torch.inference_mode(False), torch.enable_grad():
            self.directions = directions.clone().requires_grad_()
            self._tangents = frozen.tangents(Directions(self.directions))

    @property
    def width(self) -> int:
        """W."""
        return len(self.directions)

    @property
    def tangents(self) -> list[Tensor]:
        """For each layer the tangents [B, n] along the first directions."""
        return [tangents[0] for tangents in self._tangents]

    def at(self, part: Frozen, rows: Tensor) -> Backward:
        """The same of the network around the samples `rows` alone."""
        return Backward(part, self.directions[:, rows].detach())

    def wider(self, width: int) -> Backward:
        """With up to `width` directions, where so many neurons cost little more than one."""
        width = min(width, self._frozen.gradients_at_once(self.directions.dtype))
        if width <= self.width:
            return self
        return Backward(self._frozen, self.directions[:1].detach().expand(width, *self.directions.shape[1:]))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradients(self, layer: Tensor, neuron: Tensor, layers: Collection[int]) -> Tensor:
        """[B, C, ...]: for each sample the gradients of its neurons `neuron` [B, C] in the layers `layer` [B, C].

        None where the layer is -1; C <= W. `layers` are those that there are, and maybe others.
        """
        total = self.directions.sum() * 0
        layer, neuron = layer.t(), neuron.t()
        for index in sorted(layers):
            if index >= 0:
                here = layer == index
                chosen = self._tangents[index][: len(layer)].gather(2, neuron.where(here, 0).unsqueeze(2)).squeeze(2)
                total = total + chosen.where(here, 0).sum()
        with full_precision, torch.autocast(total.device.type, enabled=False):  # which reach into backward passes too
            found: Tensor = torch.autograd.grad(total, self.directions, retain_graph=True)[0]
        return found[: len(layer)].transpose(0, 1)
