"""Squared gradient norms of all hidden neurons in a training step: exact or estimated, differentiable by parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from llr_fast import cost
from llr_fast.certificates import evaluation
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions, axes
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.linearized.gram import Chain, chain_of
from llr_fast.linearized.layers import Activation, offset
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.linearize import linearize
from llr_fast.linearized.tape import Tape, Taped
from llr_fast.linearized.torch_modes import is_traced
from llr_fast.losses.recompute import leaves_of, recomputed_sum, summed
from llr_fast.norms import Statistic
from llr_fast.ops.common.arguments import accumulation_dtype

T = TypeVar("T")


@dataclass
class Hinges:
    """Of one layer the hinges of Eq. 9, [B, n] or their total, and the number B * n of its neurons."""

    hinge: Tensor
    neurons: int
    samples: Samples


def _hinges(of: Activation, linearization: Linearization) -> tuple[Linearization, Hinges]:
    hinges = of.samples.rows(hinge(of.z, of.kinks))
    return linearization.activated(of.slope), Hinges(hinges, of.z.numel(), of.samples)


def _total_hinges(of: Activation, linearization: Linearization) -> tuple[Linearization, Hinges]:
    """No more than a byte for each neuron stays in memory."""
    return linearization.activated(of.slope), Hinges(hinge(of.z, of.kinks).sum(), of.z.numel(), of.samples)


def hinge(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """max(0, 1 - |z - nearest kink|), of the shape of z; its graph holds a byte for each entry."""
    distance = offset(z, kinks).to(accumulation_dtype(z.dtype))
    with torch.no_grad():
        inside = distance.abs() < 1
        towards_kink = (-distance.sign() * inside).to(torch.int8)
    # A product of z: the gradient of a difference would have the order of its axes in memory, not that of z.
    return distance * towards_kink + inside.to(distance.dtype)


def linearize_hidden(x: Tensor, linearization: Linearization, evaluation: Evaluation[T]) -> tuple[Any, list[T]]:
    """As `linearize`, of a network that has hidden neurons."""
    output, layers = linearize(x, linearization, evaluation)
    if not layers:
        raise ValueError("model: expected hidden neurons, got a network without piecewise-linear functions")
    return output, layers


class TrainingStep:
    """An evaluation of the model in training, whose gradient norms follow from a tape of it, in any of several ways.

    So the model runs once: it draws one mask of dropout and updates its running statistics once. With `total` norms
    and hinges are added up over each layer.
    """

    def __init__(self, model: nn.Module, x: Tensor, total: bool) -> None:
        self.x, self._total = x, total
        self._tape = Tape(x.dtype, x.device.type)
        collector = _total_hinges if total else _hinges
        self.output, self.layers = linearize_hidden(x, Taped(self._tape), Evaluation(model, collector))
        self._tape.finished = True

    @cached_property
    def chain(self) -> Chain | None:
        """The model as a chain of dense layers, if it is one in this step."""
        return chain_of(self._tape, self.x.shape)

    @property
    def exact_passes(self) -> float:
        """The cost of the exact norms, in forward passes for each sample."""
        axes = self.x[0].numel()
        if self.chain is None:
            return axes
        return min(axes, cost.gram(self.chain.weights) / cost.forward(self.chain.weights))

    def exact(self) -> list[Tensor]:
        """From Gram matrices where the model is a chain of dense layers and that costs less, else from all axes."""
        if self.chain is not None and self.exact_passes < self.x[0].numel():
            return [self.chain.total_of_squared_norms()] if self._total else self.chain.squared_norms()
        return self._by_axes()

    def _by_axes(self) -> list[Tensor]:
        """From all input axes; where they are many, one chunk of them is in memory at a time."""
        x, size = self.x, self.x[0].numel()
        if size <= cost.AFFORDABLE_PASSES:
            return self.squares_along(axes(x, 0, size, x.dtype))
        # Unlike a certificate, the backward pass needs the tangents of all layers at once, next to the axes themselves.
        chunk = evaluation.directions_at_once(sum(layer.neurons for layer in self.layers) + size, x.dtype, x.device)

        def squares(start: int) -> list[Tensor]:
            return self.squares_along(axes(x, start, min(start + chunk, size), x.dtype))

        if is_traced():  # the compiler decides what to compute twice
            return summed(squares(start) for start in range(0, size, chunk))
        leaves = leaves_of(layer.hinge for layer in self.layers)
        return recomputed_sum(squares, range(0, size, chunk), leaves)

    def squares_along(self, directions: Directions, scale: float = 1) -> list[Tensor]:
        """For each layer the sums of squares over the directions, [B, n] or their total, times `scale`."""
        if self._total:
            found = self._tape.replay(directions, Directions.activated_and_totalled)
            return [squares * scale for squares in found]
        found = self._tape.replay(directions, lambda d, slope: d.activated_and_measured(slope, Statistic.SUM_SQUARES))
        return [layer.samples.rows(squares * scale) for layer, squares in zip(self.layers, found, strict=True)]


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


Sampled = Literal["rademacher", "axis"]
SAMPLED: dict[Sampled, Callable[..., tuple[Directions, float]]] = {"rademacher": random_signs, "axis": random_axes}
