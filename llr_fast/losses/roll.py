"""RObust Local Linearity: a loss that makes gradients small and keeps neurons away from their kinks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from llr_fast import cost
from llr_fast.checks import (
    Loss,
    check_choice,
    check_count,
    check_generator,
    check_input,
    check_model,
    check_not_distributed,
    check_range,
)
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.torch_modes import refuse_export
from llr_fast.losses import estimators
from llr_fast.losses.clock import Clock
from llr_fast.losses.compiled import evaluated
from llr_fast.losses.estimators import Sampled, TrainingStep
from llr_fast.losses.totals import Summing, totals_along
from llr_fast.ops.common.arguments import accumulation_dtype

Estimator = Literal["exact", "rademacher", "axis", "auto"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


Number = float | Tensor
SCHEDULED = ("lam", "C", "gamma")  # options that may be inputs of a compiled step, which a new value compiles no more


class ROLLLoss(Loss):
    """RObust Local Linearity (Eq. 9 of Lee et al., 2019), around any piecewise-linear model.

    penalty = lam * mean over the batch of the mean over the top `gamma` percent of the hidden neurons of
    ||grad_x z||_2^2 + C max(0, 1 - |z - nearest kink|)

    Args:
        model: a piecewise-linear network; its forward takes x [B, ...].
        lam: weight of the penalty.
        C: weight of the hinge.
        gamma: percent of the neurons of each sample, from 0 (the single top neuron, Eq. 7) to 100 (all of them).
        estimator: of the squared gradient norms. "exact" uses Gram matrices where the model is a chain of dense
            layers and they cost less than all input axes, which it uses elsewhere; "rademacher" uses random signs in
            every direction, "axis" random input axes (Eq. 10): both are unbiased for gamma = 100. "auto" takes "exact"
            where that costs no more than 16 forward passes for each sample asked for, else "rademacher".
        samples: directions for each sample of the batch.
        every: k > 1 computes the penalty in every k-th training step only, the first one among them, and then times k
            ("lazy regularisation"); the others run the plain model, and their penalty is 0. A training step is a
            forward call in training mode with gradients enabled, so of k micro-batches of one optimizer step one has
            the penalty. All other calls compute it, not times k, and do not count.
        generator: of the random directions, on the device of x.

    Attributes:
        steps: the number of training steps so far, an integer; set it where a run is resumed. Compiled steps count
            where `every` is more than 1.

    Raises:
        ValueError: for an option outside its range.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> roll = llr_fast.ROLLLoss(model, lam=0.1, estimator="rademacher")
        >>> output, penalty = roll(torch.randn(5, 4))
        >>> loss = torch.nn.functional.cross_entropy(output, torch.zeros(5, dtype=torch.long)) + penalty
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lam: float = 1.0,
        C: float = 1.0,
        gamma: float = 100.0,
        estimator: Estimator = "auto",
        samples: int = 1,
        every: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_model(model)
        check_generator(generator)
        self.model, self.estimator, self.samples, self.generator = model, estimator, samples, generator
        self._schedule, self._takes_all, self._clock = (
            torch.zeros(3, dtype=torch.float64, device="cpu"),
            True,
            Clock(self),
        )
        self.lam, self.C, self.gamma, self.every = lam, C, gamma, every
        self._exact_passes: float | None = None  # what a first step of "auto" costs exactly
        self._activations: int | None = None  # of the step before
        self._check_schedule()

    def __setattr__(self, name: str, value: Any) -> None:
        is_new = name in SCHEDULED and isinstance(value, Real) and vars(self).get(name) != value
        super().__setattr__(name, value)
        if is_new:
            self._schedule[SCHEDULED.index(name)] = float(value)
            self._takes_all = self._takes_all if name != "gamma" else value == 100
        if name == "every" and isinstance(value, int) and value > 0:
            self._clock.set(self._clock.steps, value)

    @property
    def steps(self) -> int:
        return self._clock.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._clock.set(check_count("steps", steps, 0), self.every)

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """The model's output and the penalty, a scalar already times lam and averaged over the batch.

        Args:
            x: [B, ...], on the model's device.

        Raises:
            NotPiecewiseLinearError: the model applies a function that is not piecewise linear, or unknown.
            ValueError: an empty batch, a wrong dtype or device, more axes than x has.
        """
        if torch.compiler.is_compiling():
            refuse_export("ROLLLoss")
            return self._scheduled(x, functools.partial(evaluated, self, self._clock.key, self._schedule))
        self._check_schedule()  # options may change between steps
        check_not_distributed(self.model)
        check_input(self.model, x)
        return self._scheduled(x, functools.partial(self.penalised, lam=self.lam, C=self.C, gamma=self.gamma))

    def _scheduled(self, x: Tensor, penalised: Callable[[Tensor], tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
        """What `penalised` returns, or in training in the steps without a penalty the plain model's output and 0."""
        compiling = torch.compiler.is_compiling()
        if not (self.training and torch.is_grad_enabled()) or (self.every == 1 and compiling):
            return penalised(x)
        if self._clock.is_due:
            output, penalty = penalised(x)
            penalty = penalty if self.every == 1 else self.every * penalty
        else:
            output, penalty = self.model(x), x.new_zeros((), dtype=accumulation_dtype(x.dtype))
        if compiling:
            penalty = penalty + torch.ops.llr_fast.tick(x.detach(), self._clock.key)
        else:
            self._clock.tick()
        return output, penalty

    def penalised(self, x: Tensor, lam: Number, C: Number, gamma: Number) -> tuple[Any, Tensor]:
        """The model's output and the penalty, with these options; in a trace they are tensors of one entry."""
        sampled = self._sampled()
        if self._takes_all and sampled:
            output, mean = self._mean_of_totals(x, sampled, C)
            return output, lam * mean
        step = TrainingStep(self.model, x, self._takes_all)
        if self.estimator == "auto":
            self._exact_passes = step.exact_passes
            sampled = self._sampled()
        squares = self._squares(step, sampled)
        if self._takes_all:
            total = _total(squares) + C * _total([layer.hinge for layer in step.layers])
            return step.output, lam * total / sum(layer.neurons for layer in step.layers)
        hinge = C * torch.cat([layer.hinge for layer in step.layers], 1)
        with torch.no_grad():  # sampled norms are chosen by other directions than those that score them
            choosing = torch.cat(squares if sampled is None else self._squares(step, sampled), 1) + hinge
        return step.output, lam * _mean_of_top(choosing, torch.cat(squares, 1) + hinge, gamma)

    def extra_repr(self) -> str:
        names = ("lam", "C", "gamma", "estimator", "samples", "every")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _mean_of_totals(self, x: Tensor, sampled: Sampled, C: Number) -> tuple[Any, Tensor]:
        """The model's output, and the mean over all neurons along random directions."""
        directions, scale = self._draw(x, sampled)
        summing = Summing(self._activations)
        output, totals = totals_along(self.model, x, directions, summing)
        self._activations = summing.activations
        squares, hinges = totals.sums.unbind()
        return output, (scale * squares + C * hinges) / totals.neurons

    def _sampled(self) -> Sampled | None:
        """The sampled estimator to use; None for the exact norms, and for "auto" until a step has told their cost."""
        if self.estimator != "auto":
            return None if self.estimator == "exact" else self.estimator
        affordable = cost.AFFORDABLE_PASSES * self.samples
        return "rademacher" if self._exact_passes is not None and self._exact_passes > affordable else None

    def _squares(self, step: TrainingStep, sampled: Sampled | None) -> list[Tensor]:
        return step.exact() if sampled is None else step.squares_along(*self._draw(step.x, sampled))

    def _draw(self, x: Tensor, sampled: Sampled) -> tuple[Directions, float]:
        """Random directions, and what to multiply sums over them by."""
        return estimators.SAMPLED[sampled](x, self.samples, self.generator)

    def _check_schedule(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        for name in ("samples", "every"):
            self._become(name, check_count(name, getattr(self, name)))
        for name, most in (("lam", math.inf), ("C", math.inf), ("gamma", 100)):
            self._become(name, check_range(name, getattr(self, name), 0, most))

    def _become(self, name: str, value: Any) -> None:
        if getattr(self, name) is not value:  # to set an attribute of a module takes long
            setattr(self, name, value)


def _mean_of_top(choosing: Tensor, brackets: Tensor, gamma: Number) -> Tensor:
    """Over all samples and the top gamma percent, by `choosing` [B, N], of their brackets [B, N]."""
    neurons = choosing.size(1)
    if not isinstance(gamma, Tensor):
        count = max(1, math.ceil(neurons * gamma / 100))
        return brackets.gather(1, choosing.topk(count, dim=1).indices).mean()
    # A number of them that is no part of a graph's shapes.
    counted = (neurons * gamma / 100).ceil().clamp_min(1)
    is_top = torch.arange(neurons, device=gamma.device) < counted
    falling = brackets.gather(1, choosing.argsort(dim=1, descending=True))
    return torch.where(is_top, falling, 0.0).sum() / (counted * len(brackets)).to(brackets.dtype)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()
