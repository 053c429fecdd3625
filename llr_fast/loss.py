"""Losses that enlarge linear regions: modules that wrap the model and return its output and a penalty."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from llr_fast import certify
from llr_fast.checks import check_choice, check_count, check_input, check_model, check_range
from llr_fast.directions import Directions, axes
from llr_fast.gram import Gram, NotAChainError
from llr_fast.linearize import Evaluation, Layer, Linearization, Values, linearize
from llr_fast.margin import margin

_Measured = tuple[Any, list[Layer], list[Tensor]]  # output, layers, and for each the squared gradient norms [B, n]
ESTIMATORS = ("exact", "rademacher", "axis", "auto")


class ROLLLoss(nn.Module):
    """RObust Local Linearity (Eq. 9 of Lee et al., 2019), around any piecewise-linear model.

    penalty = lam * mean over the batch of the mean over the top `gamma` percent of the hidden neurons of
    ||grad_x z||_2^2 + C max(0, 1 - |z - nearest kink|)

    Args:
        model: a piecewise-linear network; its forward takes x [B, ...].
        lam: weight of the penalty.
        C: weight of the hinge.
        gamma: percent of the neurons of each sample, from 0 (the single top neuron, Eq. 7) to 100 (all of them).
        estimator: of the squared gradient norms. "exact" sums over all input axes; "rademacher" uses random signs in
            every direction, "axis" random input axes (Eq. 10): both unbiased for gamma = 100; "auto" takes "exact"
            where that costs no more than a few directions.
        samples: directions for each sample of the batch.
        generator: of the random directions, on the device of x.

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
        estimator: str = "auto",
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_model(model)
        check_choice("estimator", estimator, ESTIMATORS)
        check_count("samples", samples)
        self.model, self.estimator, self.samples, self.generator = model, estimator, samples, generator
        self.lam, self.C, self.gamma = lam, C, gamma
        self._is_chain: bool | None = None  # of dense layers; found out in the first exact step
        self._check_schedule()

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """The model's output and the penalty, a scalar already times lam and averaged over the batch.

        Args:
            x: [B, ...], on the model's device.

        Raises:
            NotPiecewiseLinearError: the model applies a function that is not piecewise linear, or unknown.
            ValueError: an empty batch, a wrong dtype or device, more axes than x has.
        """
        self._check_schedule()  # lam, C and gamma may change between steps
        check_input(self.model, x)
        step = _Step(self.model, x.device)
        measure = self._exact if self._resolved(x) == "exact" else self._sampled
        output, layers, squares = measure(x, step)
        hinges = [torch.relu(1 - layer.distance) for layer in layers]
        if self.gamma == 100:
            total = _total(squares) + self.C * _total(hinges)
            return output, self.lam * total / sum(hinge.numel() for hinge in hinges)
        bracket, hinge = torch.cat(squares, 1), self.C * torch.cat(hinges, 1)
        chosen = self._chosen(x, step, bracket, hinge)
        return output, self.lam * (bracket + hinge).gather(1, chosen).mean()

    def extra_repr(self) -> str:
        return f"lam={self.lam}, C={self.C}, gamma={self.gamma}, estimator={self.estimator!r}, samples={self.samples}"

    def _resolved(self, x: Tensor) -> str:
        if self.estimator != "auto":
            return self.estimator
        return "exact" if x[0].numel() <= 4 * self.samples else "rademacher"

    def _sampled(self, x: Tensor, step: _Step) -> _Measured:
        """Unbiased estimates of the squared gradient norms."""
        draw = _random_signs if self._resolved(x) == "rademacher" else _random_axes
        directions = Directions(draw(x, self.samples, self.generator))
        output, layers = step.evaluate(x, directions, "sum_squares")
        scale = 1 / self.samples if draw is _random_signs else x[0].numel() / self.samples
        return output, layers, [layer.statistic * scale for layer in layers]

    def _exact(self, x: Tensor, step: _Step) -> _Measured:
        if self._is_chain is None:
            self._is_chain = _is_chain(x, step)
        return self._by_gram(x, step) if self._is_chain else self._by_axes(x, step)

    def _by_gram(self, x: Tensor, step: _Step) -> _Measured:
        gram = Gram.start(x, x.dtype)
        output, layers = step.evaluate(x, gram, None)
        return output, layers, gram.squared_norms(total=self.gamma == 100)

    def _by_axes(self, x: Tensor, step: _Step) -> _Measured:
        """One chunk of the input axes is in memory at a time."""
        output, layers = step.evaluate(x, Values(), None)
        dtype, size = layers[0].z.dtype, x[0].numel()
        chunk = certify.chunk_of_directions(layers, dtype)

        def squares(start: int) -> list[Tensor]:
            _, found = step.evaluate(x, axes(x, start, min(start + chunk, size), dtype), "sum_squares")
            return [layer.statistic for layer in found]

        parts = [checkpoint(squares, start, use_reentrant=False) for start in range(0, size, chunk)]
        return output, layers, [sum(same[1:], same[0]) for same in zip(*parts, strict=True)]

    @torch.no_grad()
    def _chosen(self, x: Tensor, step: _Step, squares: Tensor, hinge: Tensor) -> Tensor:
        """[B, k]: the top gamma percent; sampled norms are chosen by other directions than those that score them."""
        if self._resolved(x) != "exact":
            squares = torch.cat(self._sampled(x, step)[2], 1)
        count = max(1, math.ceil(squares.size(1) * self.gamma / 100))
        return (squares + hinge).topk(count, dim=1).indices

    def _check_schedule(self) -> None:
        check_range("lam", self.lam, 0)
        check_range("C", self.C, 0)
        check_range("gamma", self.gamma, 0, 100)


class MarginLoss(nn.Module):
    """Distance regularisation (Eq. 4 of Lee et al., 2019): penalty = -lam * mean over the batch of eps_2(x).

    The margin is found without a graph; then one direction, the unit gradient u of the neuron that bounds the region,
    gives ||grad z||_2 = <grad z, u> with its derivative by the parameters, so no double backward is needed. Samples
    whose margin is infinite contribute nothing.

    Args:
        model: a piecewise-linear network without layers in training mode; its forward takes x [B, ...].
        lam: weight of the penalty.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> output, penalty = llr_fast.MarginLoss(model, lam=0.1)(torch.randn(5, 4))
        >>> penalty.backward()
    """

    def __init__(self, model: nn.Module, *, lam: float = 1.0) -> None:
        super().__init__()
        check_model(model)
        check_range("lam", lam, 0)
        self.model, self.lam = model, lam

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """The model's output and the penalty, a scalar; arguments and errors as in `ROLLLoss` and `margin`."""
        check_range("lam", self.lam, 0)
        check_input(self.model, x)
        found = margin(self.model, x)
        length = found.gradient.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        unit = (found.gradient / length).masked_fill(length == 0, 0).to(x.dtype)
        output, layers = _Step(self.model, x.device).evaluate(x, Directions(unit.unsqueeze(0)), None)
        bounded = []
        for index, layer in enumerate(layers):
            rows = (found.layer == index).nonzero().squeeze(1)
            neuron = found.neuron[rows]
            bounded.append(layer.distance[rows, neuron] / layer.statistic[0][rows, neuron])
        return output, -self.lam * torch.cat(bounded).sum() / x.size(0)

    def extra_repr(self) -> str:
        return f"lam={self.lam}"


class _Step:
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
def _is_chain(x: Tensor, step: _Step) -> bool:
    """Whether the model is a chain of dense layers."""
    gram = Gram.start(x, x.dtype)
    try:
        step.repeat(x, gram, None)
    except NotAChainError:
        return False
    return gram.is_chain()


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()


def _random_signs(x: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    bits = torch.randint(0, 2, (samples, *x.shape), dtype=torch.int8, device=x.device, generator=generator)
    return bits.to(x.dtype) * 2 - 1


def _random_axes(x: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Different axes for every sample, each axis at most once."""
    size = x[0].numel()
    if samples > size:
        raise ValueError(f"samples: expected at most the {size} axes of x, got {samples}")
    chosen = torch.rand(x.size(0), size, device=x.device, generator=generator).topk(samples).indices
    unit = torch.zeros(samples, x.size(0), size, dtype=x.dtype, device=x.device)
    return unit.scatter_(2, chosen.t().unsqueeze(-1), 1).view(samples, *x.shape)
