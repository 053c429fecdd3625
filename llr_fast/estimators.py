"""Squared gradient norms of all hidden neurons in a training step: exact or estimated, differentiable by parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from llr_fast import certify, cost
from llr_fast.directions import Directions, axes
from llr_fast.gram import Gram, NotAChainError
from llr_fast.linearize import Evaluation, Layer, Linearization, Values, linearize


@dataclass
class Measured:
    """The model's output, its layers, and for each layer the squared norms [B, n] (or their sums over n, [B])."""

    output: Any
    layers: list[Layer]
    squares: list[Tensor]


class Step:
    """The evaluations of one training step: the first is the model's forward, later ones repeat it.

    A repetition draws the same random numbers (dropout) and leaves the model's buffers (running statistics) alone.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.evaluated = model, False
        self.cuda = [device] if device.type == "cuda" else []
        self.random_state = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.cuda]

    def evaluate(self, x: Tensor, linearization: Linearization, statistic: str | None) -> tuple[Any, list[Layer]]:
        if self.evaluated:
            return self.repeat(x, linearization, statistic)
        self.evaluated = True
        output, layers = linearize(self.model, x, linearization, Evaluation(self.model, statistic))
        if not layers:
            raise ValueError("model: expected hidden neurons, got a network without piecewise-linear functions")
        return output, layers

    def repeat(self, x: Tensor, linearization: Linearization, statistic: str | None) -> tuple[Any, list[Layer]]:
        evaluation = Evaluation(self.model, statistic, repeated=True)
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.random_state[0])
            for device, state in zip(self.cuda, self.random_state[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            return linearize(partial(functional_call, self.model, buffers), x, linearization, evaluation)


@torch.no_grad()
def gram_passes(step: Step, x: Tensor) -> float:
    """The cost of `by_gram` in forward passes; inf where the model is no chain of dense layers."""
    gram = Gram.start(x, x.dtype)
    try:
        step.repeat(x, gram, None)
    except NotAChainError:
        return math.inf
    if not gram.is_chain():
        return math.inf
    weights = gram.last().weights
    return cost.gram(weights) / cost.forward(weights)


def by_gram(step: Step, x: Tensor, total: bool) -> Measured:
    """Exact, for chains of dense layers; with `total` only the sum over each layer."""
    gram = Gram.start(x, x.dtype)
    output, layers = step.evaluate(x, gram, None)
    return Measured(output, layers, gram.squared_norms(total))


def by_axes(step: Step, x: Tensor) -> Measured:
    """Exact, from all input axes; where they are many, one chunk of them is in memory at a time."""
    size = x[0].numel()
    if size <= cost.AFFORDABLE_PASSES:
        return _along(step, x, axes(x, 0, size, x.dtype), 1)
    output, layers = step.evaluate(x, Values(), None)
    dtype = layers[0].z.dtype
    chunk = certify.chunk_of_directions(layers, dtype)

    def squares(start: int) -> list[Tensor]:
        return _along(step, x, axes(x, start, min(start + chunk, size), dtype), 1).squares

    parts = [checkpoint(squares, start, use_reentrant=False) for start in range(0, size, chunk)]
    return Measured(output, layers, [sum(same[1:], same[0]) for same in zip(*parts, strict=True)])


def by_random_signs(step: Step, x: Tensor, samples: int, generator: torch.Generator | None) -> Measured:
    """Unbiased: sum_j (g_j.v)^2 has the mean sum_j ||g_j||^2 for v of independent random signs."""
    bits = torch.randint(0, 2, (samples, *x.shape), dtype=torch.int8, device=x.device, generator=generator)
    return _along(step, x, Directions(bits.to(x.dtype) * 2 - 1), 1 / samples)


def by_random_axes(step: Step, x: Tensor, samples: int, generator: torch.Generator | None) -> Measured:
    """Unbiased (Eq. 10): different axes for every sample, each at most once."""
    size = x[0].numel()
    if samples > size:
        raise ValueError(f"samples: expected at most the {size} axes of x, got {samples}")
    chosen = torch.rand(x.size(0), size, device=x.device, generator=generator).topk(samples).indices
    unit = torch.zeros(samples, x.size(0), size, dtype=x.dtype, device=x.device)
    unit.scatter_(2, chosen.t().unsqueeze(-1), 1)
    return _along(step, x, Directions(unit.view(samples, *x.shape)), size / samples)


SAMPLED: dict[str, Callable[..., Measured]] = {"rademacher": by_random_signs, "axis": by_random_axes}


def _along(step: Step, x: Tensor, directions: Directions, scale: float) -> Measured:
    output, layers = step.evaluate(x, directions, "sum_squares")
    return Measured(output, layers, [layer.statistic * scale for layer in layers])
