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


def roll_penalties(
    model: nn.Module, x: Tensor, gamma: float, alternatives: Iterable[str]
) -> dict[str, Callable[[], Tensor]]:
    """The exact ROLL penalty with lam = C = 1, computed by the named baselines and by this library's two sides."""

    def of(name: str) -> Tensor:
        return baselines.penalty(*getattr(baselines, name)(model, x), gamma=gamma)

    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")
    ours = {OURS: lambda: loss(x)[1], REFERENCE: on_reference(lambda: loss(x)[1])}
    return {name: partial(of, name) for name in alternatives} | ours


def cross_entropy(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """What training costs without a regulariser."""
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return lambda: F.cross_entropy(model(x), target)


def on_reference(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The function, with the operators in plain torch."""

    def call() -> Tensor:
        with llr_fast.backend(REFERENCE):
            return function()

    return call


def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Forward and backward; returns the loss and all parameters' gradients as one vector."""

    def call() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
        return torch.cat([value.detach().view(1), *(g.flatten() for g in gradients)])

    return call


def forward(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(loss)


def check_agreement(providers: Mapping[str, Callable[[], Tensor]], rtol: float) -> None:
    """Raises AssertionError unless all results are within `rtol` of the first, relative to its norm."""
    (first, provider), *others = providers.items()
    expected = provider().double()
    for name, provider in others:
        error = (provider().double() - expected).norm() / expected.norm()
        assert error <= rtol, f"{name} and {first} differ by {error:.1e} of the norm, more than {rtol}"
