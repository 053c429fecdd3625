"""Gram: a linearization of chains of dense layers by their Gram matrices J J^T, for q = 2.

Nothing is computed while the network runs: a chain's weights and slopes are all that its squared gradient norms need,
and once all are known `gram_norms` can leave out every unit that is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.tape import Tape
from llr_fast.linearized.tensor import identity
from llr_fast.ops import gram_norms
from llr_fast.precision import full_precision


class NotAChainError(Exception):
    """The network is not a chain of dense layers, so that another linearization has to be used."""


@dataclass(frozen=True)
class Gram:
    """The weights and slopes between the network's input and a tensor of `shape` [B, n].

    `reported` collects the linearizations of all hidden layers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    reported: list[Gram]
    weights: tuple[Tensor, ...] = ()
    slopes: tuple[Tensor, ...] = ()

    @staticmethod
    def of(x: Tensor, tape: Tape) -> Gram:
        """That of the last hidden layer of the network that a tape noted at x [B, ...].

        Raises:
            NotAChainError: it is no chain of dense layers, or a hidden layer is not on the way to the last one.
        """
        start = Gram(tuple(x.shape), tape.dtype, [])
        for _ in tape.along(start, None):
            pass
        layers = start.reported
        depths = [len(layer.weights) for layer in layers]
        if not layers or depths != list(range(1, len(layers) + 1)):
            raise NotAChainError
        if any(a is not b for layer in layers for a, b in zip(layer.weights, layers[-1].weights)):
            raise NotAChainError
        return layers[-1]

    def pointwise(self, function: Callable[..., Tensor], shape: Sequence[int], *others: Any) -> Gram:
        if function is not identity or tuple(shape) != self.shape:
            raise NotAChainError
        return self

    def batched(self, function: Callable[[Tensor], Tensor]) -> Gram:
        raise NotAChainError

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Gram:
        raise NotAChainError

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Gram:
        raise NotAChainError

    def mapped(self, function: Callable[..., Any], *others: Any) -> Gram:
        raise NotAChainError

    def reshaped(self, shape: Sequence[int]) -> Gram:
        batch = self.shape[0]
        if tuple(shape) != self.shape and (self.weights or tuple(shape) != (batch, math.prod(self.shape[1:]))):
            raise NotAChainError
        return replace(self, shape=tuple(shape))

    def linear(self, weight: Tensor) -> Gram:
        if len(self.shape) != 2:
            raise NotAChainError
        shape = (self.shape[0], weight.size(0))
        if len(self.weights) > len(self.slopes):  # two layers without an activation between them are one
            product = weight.to(self.dtype) @ self.weights[-1].to(self.dtype)
            return replace(self, shape=shape, weights=(*self.weights[:-1], product))
        return replace(self, shape=shape, weights=(*self.weights, weight))

    def activate(self, slope: Tensor, statistic: str | None) -> tuple[Gram, Tensor]:
        if len(self.weights) != len(self.slopes) + 1:  # two activations without a layer between them
            raise NotAChainError
        self.reported.append(self)
        slope = slope.to(self.dtype)
        return replace(self, slopes=(*self.slopes, slope)), slope.new_empty(0, *slope.shape)

    def norms(self, dtype: torch.dtype, scale: float) -> tuple[list[Tensor], list[Tensor]]:
        """For each hidden layer the gradients' l2 norms [B, n] times `scale`, computed in `dtype`, and upper bounds.

        The bounds hold the rounding of a product w G w^T, whose terms add up to (sum_j |w_j| ||g_j||)^2 however much of
        that cancels.
        """
        weights, slopes = ([t.to(dtype) for t in tensors] for tensors in (self.weights, self.slopes))
        weights[0] = weights[0] * scale
        norms: list[Tensor] = []
        bounds: list[Tensor] = []
        with full_precision:
            for i, squares in enumerate(gram_norms(weights, slopes)):
                rounding = 2 * weights[i].size(1) * torch.finfo(dtype).eps
                terms = squares if i == 0 else ((bounds[-1] * slopes[i - 1].abs()) @ weights[i].abs().t()).square()
                exact = squares.clamp_min(0).expand(self.shape[0], -1)
                norms.append(exact.sqrt())
                bounds.append((exact + rounding * terms).sqrt())
        return norms, bounds

    def squared_norms(self, total: bool = False) -> list[Tensor]:
        """[B, n] for each hidden layer; with `total` its sum over the layer, [B]."""
        batch = self.shape[0]
        return [part.expand(batch, *part.shape[1:]) for part in gram_norms(self.weights, self.slopes, total)]
