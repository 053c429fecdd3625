"""Sketch, prune, verify: the margin needs the gradient of one neuron, not of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates.bounds import Probe, check_gradients
from llr_fast.certificates.frozen import Backward, Frozen, freeze
from llr_fast.ops.margin_reduce import smallest_bounds

CANDIDATES = 64  # neurons that are sorted at a time
LARGE = 32  # samples from which on it pays to leave the decided half of a batch behind
Computed = list[tuple[Tensor, Tensor, Tensor, Tensor]]  # rows, layer, neuron and norm of what was back-propagated
_COARSE = 1e-3  # relative error, far more than there is, of coarse norms that are not mostly rounding


@dataclass
class Nearest:
    """For each sample the neuron whose kink is nearest: distance over norm [B], where it is, and its gradient."""

    value: Tensor
    layer: Tensor
    neuron: Tensor
    gradient: Tensor


@torch.no_grad()
def nearest(model: nn.Module, frozen: Frozen, bounds: list[Tensor], probe: Probe, q: float) -> Nearest:
    """The neuron that bounds the region, given upper bounds of all norms; everything returned is of float64.

    The coarse pass, where there is one, finds candidates and tightens their bounds; what is left below the best of them
    is decided in float64.
    """
    if probe.coarse is not None:
        bounds = _tightened(bounds, _verify(model, frozen, bounds, probe.coarse, q)[1], probe)
    return _verify(model, frozen, bounds, probe.fine, q)[0]


def _verify(
    model: nn.Module, frozen: Frozen, bounds: list[Tensor], backward: Backward, q: float
) -> tuple[Nearest, Computed]:
    """Ratios of distance to norm, in the order of their lower bounds, until none can be below the best.

    In each pass every undecided sample back-propagates its own next neuron.
    """
    x, distances = frozen.x, frozen.distances
    computed: Computed = []
    best = _nothing(x.to(backward.direction.dtype), distances[0])
    rows = torch.arange(x.size(0), device=x.device)  # the samples that `backward` holds
    while True:
        lowest, layer, neuron = (found.t() for found in smallest_bounds(distances, bounds, CANDIDATES))
        for ratio_at_least, at_layer, at_neuron in zip(lowest, layer, neuron, strict=True):
            undecided = (ratio_at_least < best.value).nonzero().squeeze(1)
            if not undecided.numel():
                return best, computed
            if 2 * undecided.numel() <= rows.numel() and rows.numel() >= LARGE:
                part = freeze(model, x[undecided], distances[0].dtype, compared=False)
                rows, backward = undecided, Backward(part, backward.direction[0, _places(rows, undecided)].detach())
            gradient = backward.gradient(at_layer[rows], at_neuron[rows])
            norm = norms.norm(gradient, q)
            if norm.dtype == torch.float64:
                check_gradients(norm)
            ratio = entries(distances, at_layer, at_neuron)[rows] / norm.to(best.value.dtype)
            found = Nearest(ratio.masked_fill(norm == 0, math.inf), at_layer[rows], at_neuron[rows], gradient)
            _keep_smaller(best, rows, found)
            computed.append((rows, found.layer, found.neuron, norm))
        bounds = [_without(of_layer, layer == index, neuron) for index, of_layer in enumerate(bounds)]


def _places(rows: Tensor, part: Tensor) -> Tensor:
    """Where the rising numbers `part` are among the rising numbers `rows`."""
    return torch.searchsorted(rows, part)


def _tightened(bounds: list[Tensor], computed: Computed, probe: Probe) -> list[Tensor]:
    """The bounds [B, n], with those of neurons whose coarse norms were computed as these, and their rounding, allow."""
    rounding = torch.stack(probe.rounding(bounds, torch.float32), 1).double()
    for rows, layer, neuron, norm in computed:
        bound = (norm.double() * (1 + _COARSE) + rounding[rows, layer]).nan_to_num(nan=math.inf)
        for index in layer.unique().tolist():
            here = layer == index
            bounds[index][rows[here], neuron[here]] = bound[here].to(bounds[index].dtype)
    return bounds


def entries(parts: list[Tensor], layer: Tensor, neuron: Tensor) -> Tensor:
    """[B]: for each sample the entry `neuron` [B] of part `layer` [B], zero where the layer is -1."""
    chosen = torch.zeros_like(parts[0][:, 0])
    for index, part in enumerate(parts):
        rows = (layer == index).nonzero().squeeze(1)
        chosen[rows] = part[rows, neuron[rows]]
    return chosen


def _nothing(x: Tensor, like: Tensor) -> Nearest:
    value = torch.full_like(like[:, 0], math.inf)
    layer, neuron = (torch.full_like(value, -1, dtype=torch.long) for _ in range(2))
    return Nearest(value, layer, neuron, torch.zeros_like(x))


def _keep_smaller(best: Nearest, rows: Tensor, found: Nearest) -> None:
    """Takes over what was found for the samples `rows` where it is nearer."""
    nearer = found.value < best.value[rows]
    rows = rows[nearer]
    best.value[rows], best.gradient[rows] = found.value[nearer], found.gradient[nearer]
    best.layer[rows], best.neuron[rows] = found.layer[nearer], found.neuron[nearer]


def _without(bounds: Tensor, here: Tensor, neuron: Tensor) -> Tensor:
    """The bounds [B, n] with zero, which never bounds a region, at the neurons [C, B] that are in this layer."""
    candidate, row = here.nonzero(as_tuple=True)
    bounds = bounds.clone()
    bounds[row, neuron[candidate, row]] = 0
    return bounds
