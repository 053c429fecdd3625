"""The l_p margin: how far every input can move before the network's linear piece changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr_fast import certify, norms, sketch
from llr_fast.checks import check_choice, check_range
from llr_fast.linearize import Layer

METHODS = ("exact", "search", "auto")
_DIRECTIONS = 20  # of the sketch: its bounds are then 8 to 10 times the true norms at a failure probability of 1e-10
_CANDIDATES = 64  # neurons that the search sorts at a time


@dataclass(frozen=True)
class Margin:
    """The margins of a batch of B samples; see `margin`.

    Attributes:
        value: [B], the margin; +inf where no neuron bounds the region.
        layer: [B], index into `layer_names` of the neuron that bounds the region; -1 where none does.
        neuron: [B], flat index of that neuron among those of its layer; -1 where there is none.
        offset: [B], that neuron's value minus its nearest kink.
        gradient: [B, *x.shape[1:]], gradient of that neuron with respect to x; zero where there is none.
        layer_names: path of the module and name of the function, for each call of a piecewise-linear function.
        exact: [B] bool; False where a probability of failure remains (method "search").
        p: the norm.
    """

    value: Tensor
    layer: Tensor
    neuron: Tensor
    offset: Tensor
    gradient: Tensor
    layer_names: list[str]
    exact: Tensor
    p: float

    def boundary_point(self, x: Tensor) -> Tensor:
        """The point nearest to `x` in l_p on the boundary of its linear region.

        Args:
            x: [B, ...], the points that the margins belong to.

        Returns:
            [B, ...] in the dtype of the margins; NaN where the margin is infinite.

        Example:
            >>> import torch, llr_fast
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
            >>> x = torch.randn(5, 2)
            >>> margin = llr_fast.margin(model, x, p=1)
            >>> distance = (margin.boundary_point(x) - x).abs().sum(1)
            >>> torch.allclose(distance, margin.value)
            True
        """
        if x.shape != self.gradient.shape:
            raise ValueError(f"x: expected the shape of the batch, {tuple(self.gradient.shape)}, got {tuple(x.shape)}")
        gradient = self.gradient.flatten(1).to(self.value.dtype)
        if self.p == 2:
            step = gradient / gradient.square().sum(1, keepdim=True)
        elif self.p == math.inf:
            step = gradient.sign() / gradient.abs().sum(1, keepdim=True)
        else:
            steepest = gradient.abs().argmax(1, keepdim=True)
            step = torch.zeros_like(gradient).scatter(1, steepest, 1 / gradient.gather(1, steepest))
        moved = x.flatten(1) - self.offset[:, None] * step
        return moved.masked_fill(self.value.isinf()[:, None], math.nan).view(x.shape)


def margin(
    model: nn.Module,
    x: Tensor,
    p: float = 2,
    *,
    method: str = "auto",
    failure_probability: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> Margin:
    """The l_p margin of every sample: the radius of the largest l_p ball around it on which `model` is affine.

    eps_p(x) = min over hidden neurons of |z - nearest kink| / ||grad_x z||_q with 1/p + 1/q = 1 (Eq. 3 of Lee et al.,
    2019, in closed form). The model is run as it is and is not changed.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite; any shape of sample.
        p: 1, 2 or inf.
        method: "exact" computes the gradient norms of all neurons from all input axes. "search" bounds all norms from
            20 random directions and computes exactly those that can decide the minimum; the result is the exact
            margin but with probability `failure_probability` per sample. "auto" takes the one with fewer passes.
        failure_probability: of the search, for each sample.
        dtype: of the values that decide on which side of a kink a point is; gradients have the model's dtype.
        generator: of the search's random directions.

    Raises:
        NotPiecewiseLinearError: the model applies a function that is not piecewise linear, or unknown.
        ValueError: unknown p or method, empty or non-finite x, a layer in training mode, samples that mix.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> _ = torch.nn.init.constant_(model[0].weight, 2.0), torch.nn.init.constant_(model[0].bias, -1.0)
        >>> llr_fast.margin(model, torch.tensor([[2.0]])).value  # |2 * 2 - 1| / 2
        tensor([1.5000], dtype=torch.float64)
    """
    check_choice("p", p, norms.NORMS)
    check_choice("method", method, METHODS)
    check_range("failure_probability", failure_probability, 1e-300, 0.5)
    certify.check(model, x, dtype)
    parts = []
    exact = method == "exact" or (method == "auto" and x[0].numel() <= 4 * _DIRECTIONS)
    for part in x.split(certify.samples_at_once(model, x, dtype)):
        backward = certify.Backward(model, part, dtype)
        if not backward.layers:
            parts.append(_unbounded(part, p, dtype))
        elif exact:
            parts.append(_exact(model, part, p, dtype, backward))
        else:
            parts.append(_search(model, part, p, failure_probability, dtype, backward, generator))
    return _joined(parts)


def _exact(model: nn.Module, x: Tensor, p: float, dtype: torch.dtype, backward: certify.Backward) -> Margin:
    layers = backward.layers
    measured = certify.gradient_norms(model, x, layers, norms.dual(p), dtype)
    distances = torch.cat([layer.distance for layer in layers], 1)
    value, flat = _ratio(distances, torch.cat(measured, 1).to(dtype)).min(1)
    layer, neuron = _located(layers, flat, value)
    return _margin(layers, value, layer, neuron, backward.gradient(layer, neuron), p, exact=True)


def _search(
    model: nn.Module,
    x: Tensor,
    p: float,
    failure_probability: float,
    dtype: torch.dtype,
    backward: certify.Backward,
    generator: torch.Generator | None,
) -> Margin:
    """Sketch, prune, verify."""
    layers, q = backward.layers, norms.dual(p)
    distances = torch.cat([layer.distance for layer in layers], 1)
    bound = _bounds(model, x, layers, q, failure_probability / distances.size(1), dtype, generator)
    lower = _ratio(distances, bound)
    best = torch.full_like(distances[:, 0], math.inf)
    winner = torch.zeros_like(best, dtype=torch.long)
    gradient = torch.zeros_like(backward.direction[0])
    while True:
        bounds, candidates = lower.topk(min(_CANDIDATES, lower.size(1)), largest=False)
        for bound, candidate in zip(bounds.t(), candidates.t().contiguous(), strict=True):
            if not (bound < best).any():
                return _margin(layers, best, *_located(layers, winner, best), gradient, p, exact=False)
            layer, neuron = _located(layers, candidate, bound)
            found = backward.gradient(layer, neuron)
            value = _ratio(distances.gather(1, candidate[:, None]), norms.norm(found, q).to(dtype)[:, None]).squeeze(1)
            better = value < best
            best, winner = torch.where(better, value, best), torch.where(better, candidate, winner)
            gradient = torch.where(better.view(-1, *[1] * (x.dim() - 1)), found, gradient)
        lower = lower.scatter(1, candidates, math.inf)


def _bounds(
    model: nn.Module,
    x: Tensor,
    layers: list[Layer],
    q: float,
    failure_probability: float,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> Tensor:
    """[B, N]: upper bounds of the norms of all neurons; the samples share the random directions."""
    like = torch.empty(0, dtype=certify.tangent_dtype(model, x), device=x.device)
    directions = sketch.draw(q, (_DIRECTIONS, 1, *x.shape[1:]), like, generator).expand(-1, *x.shape)
    chunk = certify.chunk_of_directions(layers, like.dtype)
    chunks = (certify.Directions(part) for part in directions.split(chunk))
    statistics = certify.statistics(model, x, chunks, sketch.statistic_for(q), dtype)
    return sketch.upper_bound(torch.cat(statistics, 1).to(dtype), q, _DIRECTIONS, failure_probability)


def _ratio(distance: Tensor, norm: Tensor) -> Tensor:
    """Distance over norm; a neuron whose gradient is zero never bounds the region."""
    return (distance / norm).masked_fill(norm == 0, math.inf)


def _located(layers: list[Layer], flat: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Layer and index within it of neurons given by their index among all; -1 where `value` is infinite."""
    ends = torch.tensor([layer.z.size(1) for layer in layers], device=flat.device).cumsum(0)
    layer = torch.searchsorted(ends, flat, right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    neuron = flat - starts[layer]
    return layer.masked_fill(value.isinf(), -1), neuron.masked_fill(value.isinf(), -1)


def _margin(
    layers: list[Layer], value: Tensor, layer: Tensor, neuron: Tensor, gradient: Tensor, p: float, exact: bool
) -> Margin:
    offset = torch.zeros_like(value)
    for index, here in enumerate(layers):
        rows = (layer == index).nonzero().squeeze(1)
        offset[rows] = here.offset[rows, neuron[rows]]
    names = [here.name for here in layers]
    sure = torch.full_like(value, exact, dtype=torch.bool)
    return Margin(value, layer, neuron, offset, gradient, names, sure, p)


def _unbounded(x: Tensor, p: float, dtype: torch.dtype) -> Margin:
    """The margins of a network without hidden neurons."""
    infinite = torch.full_like(x.flatten(1)[:, 0], math.inf, dtype=dtype)
    none = torch.full_like(infinite, -1, dtype=torch.long)
    return _margin([], infinite, none, none, torch.zeros_like(x), p, exact=True)


def _joined(parts: list[Margin]) -> Margin:
    names = ("value", "layer", "neuron", "offset", "gradient", "exact")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Margin(**joined, layer_names=parts[0].layer_names, p=parts[0].p)
