"""Sketch, prune, verify: the margin needs the gradient of one neuron, not of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr_fast import norms, sketch
from llr_fast.frozen import Backward, Frozen, freeze
from llr_fast.ops import smallest_bounds

DIRECTIONS = 18  # of the sketch: fewer cost more back-propagations than they save, for all p
CANDIDATES = 64  # neurons that are sorted at a time
LARGE = 32  # samples from which on it pays to leave the decided half of a batch behind


@dataclass
class Nearest:
    """For each sample the neuron whose kink is nearest: distance over norm [B], where it is, and its gradient."""

    value: Tensor
    layer: Tensor
    neuron: Tensor
    gradient: Tensor


def sketched_bounds(
    frozen: Frozen, q: float, failure_probability: float, generator: torch.Generator | None
) -> list[Tensor]:
    """For each layer upper bounds [B, n] of the norms; all hold but with `failure_probability` per sample."""
    statistics = sketch.statistics(frozen, q, DIRECTIONS, generator)
    distances = [layer.distance for layer in frozen.layers]
    return sketch.joint_bounds(statistics, distances, q, DIRECTIONS, failure_probability)


def verify(model: nn.Module, frozen: Frozen, bounds: list[Tensor], q: float, dtype: torch.dtype) -> Nearest:
    """Exact ratios of distance to norm, in the order of their lower bounds, until none can be below the best.

    In each pass every undecided sample back-propagates its own next neuron.
    """
    x, backward = frozen.x, Backward(frozen)
    distances = [layer.distance for layer in frozen.layers]
    best = _nothing(x.to(backward.direction.dtype), distances[0])
    rows = torch.arange(x.size(0), device=x.device)  # the samples that `backward` holds
    while True:
        bound, layer, neuron = (found.t() for found in smallest_bounds(distances, bounds, CANDIDATES))
        for lower, at_layer, at_neuron in zip(bound, layer, neuron, strict=True):
            undecided = (lower < best.value).nonzero().squeeze(1)
            if not undecided.numel():
                return best
            if 2 * undecided.numel() <= rows.numel() and rows.numel() >= LARGE:
                rows, backward = undecided, Backward(freeze(model, x[undecided], dtype))
            gradient = backward.gradient(at_layer[rows], at_neuron[rows])
            norm = norms.norm(gradient, q).to(best.value.dtype)
            ratio = entries(distances, at_layer, at_neuron)[rows] / norm
            found = Nearest(ratio.masked_fill(norm == 0, math.inf), at_layer[rows], at_neuron[rows], gradient)
            _keep_smaller(best, rows, found)
        bounds = [_without(bound, layer == index, neuron) for index, bound in enumerate(bounds)]


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


def _without(bound: Tensor, here: Tensor, neuron: Tensor) -> Tensor:
    """The bounds [B, n] with zero, which never bounds a region, at the neurons [C, B] that are in this layer."""
    candidate, row = here.nonzero(as_tuple=True)
    bound = bound.clone()
    bound[row, neuron[candidate, row]] = 0
    return bound
