"""Squared gradient norms of all hidden neurons in a training step: exact or estimated, differentiable by parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from llr_fast import cost
from llr_fast.certificates import evaluation
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions, axes
from llr_fast.linearized.gram import Gram, NotAChainError
from llr_fast.linearized.tape import Noted, Tape
from llr_fast.linearized.tensor import Evaluation, Linearization, LinearizedTensor, linearize, offset
from llr_fast.losses.recompute import leaves_of, recomputed_sum
from llr_fast.ops.common.arguments import accumulation_dtype


@dataclass
class Terms:
    """Of one layer: squared norms and hinges, each [B, n], or their totals; and the number B * n of its neurons."""

    squares: Tensor
    hinge: Tensor
    neurons: int
    samples: Samples


@dataclass
class Brackets(Evaluation):
    """Collects the terms of Eq. 9; of totals, no more than a byte for each neuron stays in memory."""

    statistic: str | None = "sum_squares"

    def collect(
        self, function: str, x: LinearizedTensor, kinks: tuple[float, ...], piece: Tensor, measured: Tensor
    ) -> Terms:
        hinge, rows = _hinge(x.value, kinks), x.samples.rows
        if self.statistic == "total_squares":
            return Terms(measured, hinge.sum(), x.value.numel(), x.samples)
        squares = rows(measured, lead=measured.dim() - x.value.dim())
        return Terms(squares, rows(hinge), x.value.numel(), x.samples)


def _hinge(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """max(0, 1 - |z - nearest kink|), of the shape of z; its graph holds a byte for each entry."""
    distance = offset(z, kinks).to(accumulation_dtype(z.dtype))
    with torch.no_grad():
        inside = distance.abs() < 1
        side = (distance.sign() * inside).to(torch.int8)
    return inside.to(distance.dtype) - distance * side


def evaluate(x: Tensor, linearization: Linearization, evaluation: Evaluation) -> tuple[Any, list[Any]]:
    """The model's output, and what `evaluation` collects of its layers, of which there has to be one."""
    output, layers = linearize(evaluation.model, x, linearization, evaluation)
    if not layers:
        raise ValueError("model: expected hidden neurons, got a network without piecewise-linear functions")
    return output, layers


def along(model: nn.Module, x: Tensor, directions: Directions, scale: float) -> tuple[Any, list[Terms]]:
    """The model's output and totals along directions, at once: where the model is checkpointed, both are."""
    output, layers = evaluate(x, directions, Brackets(model, "total_squares"))
    return output, [replace(layer, squares=layer.squares * scale) for layer in layers]


class Step:
    """An evaluation of the model in training, whose gradient norms follow from a tape of it, in any of several ways.

    So the model runs once: it draws one mask of dropout and updates its running statistics once.
    """

    def __init__(self, model: nn.Module, x: Tensor, total: bool) -> None:
        self.x, self.statistic = x, "total_squares" if total else "sum_squares"
        self.tape = Tape(x.dtype, x.device.type)
        self.output, self.layers = evaluate(x, Noted(self.tape), Brackets(model, self.statistic))
        self.tape.finished = True

    @cached_property
    def gram(self) -> Gram | None:
        """The model as a chain of dense layers, if it is one in this step."""
        try:
            return Gram.of(self.x, self.tape)
        except NotAChainError:
            return None

    @property
    def exact_passes(self) -> float:
        """The cost of the exact norms, in forward passes for each sample."""
        axes = self.x[0].numel()
        return axes if self.gram is None else min(axes, cost.gram(self.gram.weights) / cost.forward(self.gram.weights))

    def exact(self) -> list[Tensor]:
        """From Gram matrices where the model is a chain of dense layers and that costs less, else from all axes."""
        if self.gram is not None and self.exact_passes < self.x[0].numel():
            return self.gram.squared_norms(self.statistic == "total_squares")
        return self._by_axes()

    def _by_axes(self) -> list[Tensor]:
        """From all input axes; where they are many, one chunk of them is in memory at a time."""
        x, size = self.x, self.x[0].numel()
        if size <= cost.AFFORDABLE_PASSES:
            return self.along(axes(x, 0, size, x.dtype))
        # Unlike a certificate, the backward pass needs the tangents of all layers at once, next to the axes themselves.
        chunk = evaluation.directions_at_once(sum(layer.neurons for layer in self.layers) + size, x.dtype)

        def squares(start: int) -> list[Tensor]:
            return self.along(axes(x, start, min(start + chunk, size), x.dtype))

        leaves = leaves_of(layer.hinge for layer in self.layers)
        return recomputed_sum(squares, range(0, size, chunk), leaves)

    def along(self, directions: Directions, scale: float = 1) -> list[Tensor]:
        """For each layer the sums of squares over the directions, [B, n] or their total, times `scale`."""
        found = [squares * scale for squares in self.tape.along(directions, self.statistic)]
        if self.statistic == "total_squares":
            return found
        return [layer.samples.rows(squares) for layer, squares in zip(self.layers, found, strict=True)]


def random_signs(x: Tensor, samples: int, generator: torch.Generator | None) -> tuple[Directions, float]:
    """sum_j (g_j.v)^2 has the mean sum_j ||g_j||^2 for v of independent random signs. Also what to multiply sums by."""
    bits = torch.randint(0, 2, (samples, *x.shape), dtype=torch.int8, device=x.device, generator=generator)
    return Directions(bits.to(x.dtype) * 2 - 1), 1 / samples


def random_axes(x: Tensor, samples: int, generator: torch.Generator | None) -> tuple[Directions, float]:
    """Eq. 10: different axes for every sample, each at most once. Also what to multiply sums by."""
    size = x[0].numel()
    if samples > size:
        raise ValueError(f"samples: expected at most the {size} axes of x, got {samples}")
    chosen = torch.rand(x.size(0), size, device=x.device, generator=generator).topk(samples).indices
    unit = torch.zeros(samples, x.size(0), size, dtype=x.dtype, device=x.device)
    unit.scatter_(2, chosen.t().unsqueeze(-1), 1)
    return Directions(unit.view(samples, *x.shape)), size / samples


SAMPLED: dict[str, Callable[..., tuple[Directions, float]]] = {"rademacher": random_signs, "axis": random_axes}
