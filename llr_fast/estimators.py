"""Squared gradient norms of all hidden neurons in a training step: exact or estimated, differentiable by parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llr_fast import certify, cost
from llr_fast.directions import Directions, axes
from llr_fast.gram import Gram, NotAChainError
from llr_fast.linearize import Evaluation, Linearization, LinearizedTensor, Values, linearize, offset
from llr_fast.ops.arguments import accumulation_dtype
from llr_fast.recompute import leaves_of, recomputed_sum


@dataclass
class Terms:
    """Of one layer: squared norms and hinges, each [B, n], or their totals; and the number B * n of its neurons."""

    squares: Tensor
    hinge: Tensor
    neurons: int


@dataclass
class Measured:
    """The model's output and the terms of its layers."""

    output: Any
    layers: list[Terms]


@dataclass
class Brackets(Evaluation):
    """Collects the terms of Eq. 9; of totals, no more than a byte for each neuron stays in memory."""

    statistic: str | None = "sum_squares"

    def collect(
        self, function: str, x: LinearizedTensor, kinks: tuple[float, ...], piece: Tensor, measured: Tensor
    ) -> Terms:
        hinge, rows = _hinge(x.value, kinks), x.samples.rows
        if self.statistic == "total_squares":
            return Terms(measured, hinge.sum(), x.value.numel())
        return Terms(rows(measured, lead=measured.dim() - x.value.dim()), rows(hinge), x.value.numel())


def brackets(step: Step, total: bool) -> Brackets:
    return Brackets(step.model, "total_squares" if total else "sum_squares")


def _hinge(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """max(0, 1 - |z - nearest kink|), of the shape of z; its graph holds a byte for each entry."""
    distance = offset(z, kinks).to(accumulation_dtype(z.dtype))
    with torch.no_grad():
        inside = distance.abs() < 1
        side = (distance.sign() * inside).to(torch.int8)
    return inside.to(distance.dtype) - distance * side


class Step:
    """The evaluations of one training step: the first is the model's forward, later ones repeat it.

    A repetition draws the same random numbers (dropout) and leaves the model's buffers (running statistics, the vectors
    of spectral normalisation) alone, of which it starts from those that the first one met.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.evaluated = model, False
        self.cuda = [device] if device.type == "cuda" else []
        self.random_state = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.cuda]
        self.buffers: dict[str, Tensor] | None = None

    def evaluate(
        self, x: Tensor, linearization: Linearization, evaluation: Evaluation, again: bool = False
    ) -> tuple[Any, list[Any]]:
        """The model's output and what `evaluation` collects of its layers; `again` announces a repetition."""
        if self.evaluated:
            return self.repeat(x, linearization, evaluation)
        self.evaluated = True
        if again:
            self.buffers = _copies(dict(self.model.named_buffers()))
        output, layers = linearize(self.model, x, linearization, evaluation)
        if not layers:
            raise ValueError("model: expected hidden neurons, got a network without piecewise-linear functions")
        return output, layers

    def repeat(self, x: Tensor, linearization: Linearization, evaluation: Evaluation) -> tuple[Any, list[Any]]:
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.random_state[0])
            for device, state in zip(self.cuda, self.random_state[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            buffers = _copies(dict(self.model.named_buffers()) if self.buffers is None else self.buffers)
            return linearize(partial(functional_call, self.model, buffers), x, linearization, evaluation)


def _copies(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}


@torch.no_grad()
def gram_passes(step: Step, x: Tensor) -> float:
    """The cost of `by_gram` in forward passes; inf where the model is no chain of dense layers."""
    gram = Gram.start(x, x.dtype)
    try:
        step.repeat(x, gram, Evaluation(step.model))
    except NotAChainError:
        return math.inf
    if not gram.is_chain():
        return math.inf
    weights = gram.last().weights
    return cost.gram(weights) / cost.forward(weights)


def by_gram(step: Step, x: Tensor, total: bool) -> Measured:
    """Exact, for chains of dense layers."""
    gram = Gram.start(x, x.dtype)
    output, layers = step.evaluate(x, gram, brackets(step, total))
    squares = gram.squared_norms(total)
    return Measured(output, [replace(layer, squares=s) for layer, s in zip(layers, squares, strict=True)])


def by_axes(step: Step, x: Tensor, total: bool) -> Measured:
    """Exact, from all input axes; where they are many, one chunk of them is in memory at a time."""
    size = x[0].numel()
    if size <= cost.AFFORDABLE_PASSES:
        return along(step, x, axes(x, 0, size, x.dtype), 1, total)
    output, layers = step.evaluate(x, Values(), brackets(step, total), again=True)
    # Unlike a certificate, the backward pass needs the tangents of all layers at once, next to the axes themselves.
    chunk = certify.directions_at_once(sum(layer.neurons for layer in layers) + size, x.dtype)

    def squares(start: int) -> list[Tensor]:
        directions = axes(x, start, min(start + chunk, size), x.dtype)
        return [layer.squares for layer in along(step, x, directions, 1, total).layers]

    leaves = leaves_of(layer.hinge for layer in layers)
    sums = recomputed_sum(squares, range(0, size, chunk), leaves)
    return Measured(output, [replace(layer, squares=s) for layer, s in zip(layers, sums, strict=True)])


def by_random_signs(step: Step, x: Tensor, total: bool, samples: int, generator: torch.Generator | None) -> Measured:
    """Unbiased: sum_j (g_j.v)^2 has the mean sum_j ||g_j||^2 for v of independent random signs."""
    bits = torch.randint(0, 2, (samples, *x.shape), dtype=torch.int8, device=x.device, generator=generator)
    return along(step, x, Directions(bits.to(x.dtype) * 2 - 1), 1 / samples, total)


def by_random_axes(step: Step, x: Tensor, total: bool, samples: int, generator: torch.Generator | None) -> Measured:
    """Unbiased (Eq. 10): different axes for every sample, each at most once."""
    size = x[0].numel()
    if samples > size:
        raise ValueError(f"samples: expected at most the {size} axes of x, got {samples}")
    chosen = torch.rand(x.size(0), size, device=x.device, generator=generator).topk(samples).indices
    unit = torch.zeros(samples, x.size(0), size, dtype=x.dtype, device=x.device)
    unit.scatter_(2, chosen.t().unsqueeze(-1), 1)
    return along(step, x, Directions(unit.view(samples, *x.shape)), size / samples, total)


SAMPLED: dict[str, Callable[..., Measured]] = {"rademacher": by_random_signs, "axis": by_random_axes}


def along(step: Step, x: Tensor, directions: Directions, scale: float, total: bool) -> Measured:
    """From sums over the given directions, times `scale`."""
    # Without totals, sampled norms are taken a second time, to choose the top neurons.
    output, layers = step.evaluate(x, directions, brackets(step, total), again=not total)
    return Measured(output, [replace(layer, squares=layer.squares * scale) for layer in layers])
