"""The scaled Cayley orthogonal recurrent network of Helfrich, Willmott and Ye (ICML 2018), with LeakyReLU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


class ScoRNN(nn.Module):
    """h_t = LeakyReLU(U x_t + W h_{t-1} + b) from h_0 = 0, with W orthogonal; the last state goes to a linear layer.

    Args:
        inputs, hidden, classes: sizes; `hidden` is even.
        rho: the part of the entries of D that are -1.
        slope: of the LeakyReLU, for negative inputs.

    U and the last layer start from Glorot's uniform distribution with zero biases, W from `rotations`.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, *, rho: float = 0.5, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = slope
        self.input, self.output = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)
        for layer in (self.input, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            self.recurrent.weight.copy_(rotations(hidden))
        parametrize.register_parametrization(self.recurrent, "weight", Skew())
        parametrize.register_parametrization(self.recurrent, "weight", ScaledCayley(hidden, rho))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, inputs] -> logits [B, classes]."""
        weight = self.recurrent.weight  # computed here, once for all steps
        first, *others = x.unbind(1)
        state = F.leaky_relu(self.input(first), self.slope)
        for step in others:
            state = F.leaky_relu(self.input(step) + F.linear(state, weight), self.slope)
        output: Tensor = self.output(state)
        return output

    @contextmanager
    def one_weight(self) -> Iterator[None]:
        """Within it, W is computed once for all forward passes, and for what checkpoints compute again."""
        with parametrize.cached():
            self.recurrent.weight  # noqa: B018  (now: the first forward pass may be one without gradients)
            yield


class Skew(nn.Module):
    """A = S - S^T for the strictly upper triangle S of a square matrix."""

    def forward(self, square: Tensor) -> Tensor:
        upper = square.triu(1)
        return upper - upper.t()

    def right_inverse(self, skew: Tensor) -> Tensor:
        return skew.triu(1)


class ScaledCayley(nn.Module):
    """W = (I + A)^-1 (I - A) D for skew-symmetric A: orthogonal, because both factors are.

    Without D, a diagonal of signs, matrices with the eigenvalue -1 would be out of reach.
    """

    signs: Tensor

    def __init__(self, size: int, rho: float) -> None:
        super().__init__()
        self.register_buffer("signs", torch.ones(size))
        self.signs[: round(rho * size)] = -1

    def forward(self, skew: Tensor) -> Tensor:
        identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        orthogonal: Tensor = torch.linalg.solve(identity + skew, identity - skew) * self.signs
        return orthogonal


def rotations(size: int) -> Tensor:
    """[size, size], skew-symmetric: blocks [[0, s], [-s, 0]] whose Cayley transforms rotate by t ~ U(0, pi / 2).

    s = sqrt((1 - cos t) / (1 + cos t)) = tan(t / 2), the initialisation of Helfrich et al.
    """
    if size % 2:
        raise ValueError(f"hidden: expected an even number, got {size}")
    angle = torch.rand(size // 2) * math.pi / 2
    block = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    blocks: Tensor = torch.block_diag(*(angle / 2).tan().view(-1, 1, 1) * block)
    return blocks
