"""Sketch, prune, verify: the margin needs the gradient of one neuron, not of all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates.bounds import NormBounds, Probe, check_gradients
from llr_fast.certificates.frozen import Backward, Frozen, freeze
from llr_fast.ops.margin_reduce import smallest_bounds

CANDIDATES = 64  # neurons that are sorted at a time
MANY = 16  # after so many neurons of a sample, one at a time, so many at a time are back-propagated
LEFT = 512  # neurons of a sample, left after those, to back-propagate which takes longer than to sharpen all bounds
LARGE = 32  # samples from which on it pays to leave the decided half of a batch behind
_COARSE = 1e-3  # relative error, far more than there is, of coarse norms that are not mostly rounding


@dataclass
class Nearest:
    """For each sample the neuron whose kink is nearest: distance over norm [B], where it is, and its gradient."""

    value: Tensor
    layer: Tensor
    neuron: Tensor
    gradient: Tensor


@dataclass
class Computed:
    """Neurons that were back-propagated: the samples [R], and for each of them C layers, neurons and norms [R, C]."""

    rows: Tensor
    layer: Tensor
    neuron: Tensor
    norm: Tensor


@torch.no_grad()
def nearest(
    model: nn.Module, frozen: Frozen, bounds: NormBounds, probe: Probe, q: float, known: Nearest | None = None
) -> Nearest:
    """The neuron that bounds the region, given upper bounds of all norms; everything returned is of float64.

    Where none is nearer than what is `known`, that.

    The coarse pass, where there is one, finds candidates and tightens their bounds; what is left below the best of them
    is decided in float64.
    """
    if probe.coarse is not None:
        computed = _verify(model, frozen, bounds, probe.coarse, q, known)[1]
        bounds = replace(bounds, upper=_tightened(bounds.upper, computed, probe))
    return _verify(model, frozen, bounds, probe.fine, q, known)[0]


def _verify(
    model: nn.Module, frozen: Frozen, bounds: NormBounds, backward: Backward, q: float, known: Nearest | None
) -> tuple[Nearest, list[Computed]]:
    """Ratios of distance to norm, in the order of their lower bounds, until none can be below the best.

    In each pass every undecided sample back-propagates its own next neuron, or its next few. Where after some passes
    many neurons are left, sharper bounds decide most of them.
    """
    x, distances, left = frozen.x, frozen.distances, bounds.upper
    computed: list[Computed] = []
    like = x.to(backward.directions.dtype)
    best = _nothing(like, distances[0]) if known is None else _copied(known, like)
    rows = torch.arange(x.size(0), device=x.device)  # the samples that `backward` holds
    while True:
        lowest, layer, neuron = smallest_bounds(distances, left, CANDIDATES)
        distance, layers = entries(distances, layer, neuron), layer.tolist()
        first = 0
        while first < lowest.size(1):
            undecided = (lowest[:, first] < best.value).nonzero().squeeze(1)
            if not undecided.numel():
                return best, _checked(computed)
            if 2 * undecided.numel() <= rows.numel() and rows.numel() >= LARGE:
                part = freeze(model, x[undecided], distances[0].dtype, compared=False)
                rows, backward = undecided, backward.at(part, torch.searchsorted(rows, undecided))
            if len(computed) == MANY:
                backward = backward.wider(MANY)
                if bounds.sharper is not None and _undecided(distances, left, best.value) > LEFT:
                    bounds.sharpen()
                    left = [torch.minimum(*both) for both in zip(left, bounds.upper, strict=True)]
                    break
            some = slice(first, first + backward.width)
            present = {index for row in layers for index in row[some]}
            gradient = backward.gradients(layer[rows, some], neuron[rows, some], present)
            norm = norms.norm(gradient.flatten(0, 1), q).view(gradient.shape[:2])
            computed.append(Computed(rows, layer[rows, some], neuron[rows, some], norm))
            ratio = (distance[rows, some] / norm.to(best.value.dtype)).where(norm > 0, math.inf)
            _keep_smallest(best, computed[-1], ratio, gradient)
            first += backward.width
        done = slice(0, first)
        left = [without(b, layer[:, done] == index, neuron[:, done]) for index, b in enumerate(left)]


def _undecided(distances: list[Tensor], bounds: list[Tensor], best: Tensor) -> int:
    """How many neurons a sample has at most that may be nearer than the best of it."""
    found = [(d < best[:, None] * b).sum(1) for d, b in zip(distances, bounds, strict=True)]
    return int(torch.stack(found).sum(0).max())


def _checked(computed: list[Computed]) -> list[Computed]:
    """What was back-propagated in float64, if its gradients are numbers."""
    if computed and computed[0].norm.dtype == torch.float64:
        check_gradients([found.norm for found in computed])
    return computed


def _tightened(bounds: list[Tensor], computed: list[Computed], probe: Probe) -> list[Tensor]:
    """The bounds [B, n], with those of neurons whose coarse norms were computed as these, and their rounding, allow."""
    if not computed:
        return bounds
    rounding = torch.stack(probe.rounding(bounds, torch.float32), 1).double()
    row = torch.cat([found.rows[:, None].expand_as(found.layer).flatten() for found in computed])
    layer, neuron, norm = (
        torch.cat([getattr(found, name).flatten() for found in computed]) for name in ("layer", "neuron", "norm")
    )
    bound = (norm.double() * (1 + _COARSE) + rounding[row, layer]).nan_to_num(nan=math.inf)
    tightened = []
    for index, of_layer in enumerate(bounds):
        here = layer == index
        place = (row * of_layer.size(1) + neuron).where(here, 0)
        found = bound.where(here, math.inf).to(of_layer.dtype)
        tightened.append(of_layer.flatten().scatter_reduce(0, place, found, "amin").view_as(of_layer))
    return tightened


def entries(parts: list[Tensor], layer: Tensor, neuron: Tensor) -> Tensor:
    """For each sample its entries `neuron` of the parts [B, n] `layer`, both [B] or [B, C]; zero where that is -1."""
    if layer.dim() == 1:
        return entries(parts, layer[:, None], neuron[:, None])[:, 0]
    chosen = parts[0].new_zeros(layer.shape)
    for index, part in enumerate(parts):
        here = layer == index
        chosen = torch.where(here, part.gather(1, neuron.where(here, 0)), chosen)
    return chosen


def without(bounds: Tensor, here: Tensor, neuron: Tensor) -> Tensor:
    """The bounds [B, n] with zero, which never bounds a region, at the neurons [B, C] that are in this layer."""
    zero = torch.zeros_like(neuron, dtype=bounds.dtype).where(here, math.inf)
    return bounds.scatter_reduce(1, neuron.where(here, 0), zero, "amin")


def _nothing(x: Tensor, like: Tensor) -> Nearest:
    value = torch.full_like(like[:, 0], math.inf)
    layer, neuron = (torch.full_like(value, -1, dtype=torch.long) for _ in range(2))
    return Nearest(value, layer, neuron, torch.zeros_like(x))


def _copied(known: Nearest, like: Tensor) -> Nearest:
    gradient = known.gradient.to(like, copy=True)
    return Nearest(known.value.clone(), known.layer.clone(), known.neuron.clone(), gradient)


def _keep_smallest(best: Nearest, found: Computed, ratio: Tensor, gradient: Tensor) -> None:
    """Takes over the nearest of the neurons that were found, [B, C], where it is nearer."""
    rows, (value, place) = found.rows, ratio.min(1)
    nearer = value < best.value[rows]
    here = torch.arange(rows.numel(), device=rows.device), place
    best.value[rows] = value.where(nearer, best.value[rows])
    best.layer[rows] = found.layer[here].where(nearer, best.layer[rows])
    best.neuron[rows] = found.neuron[here].where(nearer, best.neuron[rows])
    mask = nearer.view(-1, *[1] * (gradient.dim() - 2))
    best.gradient[rows] = gradient[here].where(mask, best.gradient[rows])
