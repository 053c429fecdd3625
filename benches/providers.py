"""llr_fast and its alternatives, by name, behind one signature; and the check that they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import llr_fast
from benches import baselines

OURS, REFERENCE, CROSS_ENTROPY = "llr_fast", "reference", "cross_entropy"
Provider = Callable[[], list[Tensor]]  # what is timed; it returns all that has to agree


def roll_penalties(
    model: nn.Module, x: Tensor, gamma: float, alternatives: Iterable[str]
) -> dict[str, Callable[[], Tensor]]:
    """The exact ROLL penalty with lam = C = 1: by the named baselines, and by llr_fast with and without kernels."""

    def of(name: str) -> Tensor:
        return baselines.penalty(*getattr(baselines, name)(model, x), gamma=gamma)

    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")
    ours = {REFERENCE: on_reference(lambda: loss(x)[1]), OURS: lambda: loss(x)[1]}
    return {name: partial(of, name) for name in alternatives} | ours


def cross_entropy(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The loss without a regulariser."""
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return lambda: F.cross_entropy(model(x), target)


def on_reference(function: Callable) -> Callable:
    """The function, with the operators in plain torch."""

    def call():
        with llr_fast.backend(REFERENCE):
            return function()

    return call


def forward(loss: Callable[[], Tensor]) -> Provider:
    @torch.no_grad()
    def call() -> list[Tensor]:
        return [loss()]

    return call


def step(model: nn.Module, loss: Callable[[], Tensor]) -> Provider:
    """Forward and backward; the loss and the gradients of all parameters."""

    def call() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return [value.detach(), *gradients]

    return call


def check_agreement(providers: Mapping[str, Provider], rtol: float) -> None:
    """Raises AssertionError unless each tensor of each result is within `rtol` of the first provider's, by norm."""
    (first, provider), *others = providers.items()
    expected = [tensor.double() for tensor in provider()]
    for name, provider in others:
        for place, (got, want) in enumerate(zip(provider(), expected, strict=True)):
            error, scale = (got.double() - want).norm(), want.norm()
            message = f"{name}, result {place}: off {first}'s by {error:.2e}, whose norm is {scale:.2e}"
            assert error <= rtol * scale, message
