"""Tangents behind a convolution that is yet to be computed, so that the scale of a batch-norm can join its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llr_fast.linearized.torch_modes import Modes, like

if TYPE_CHECKING:
    from llr_fast.linearized.directions import Directions


class Convolved:
    """The tangents `function(tangents, weight)`, computed at the first use in the modes in which they were asked for.

    Scaled by channel afterwards, they are those of a scaled weight where that is the smaller of the two: that spares a
    pass over the tangents and, in training, keeping them twice.

    Args:
        inputs: the tangents that are convolved.
        function: a convolution of tensors [B, I, ...] with a weight, without bias.
        weight: [O, I, ...].
    """

    def __init__(self, inputs: Directions, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> None:
        self.inputs, self.function, self.weight = inputs, function, weight
        self.modes = Modes.current(weight.device.type)

    keeps = False

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    @cached_property
    def result(self) -> Directions:
        with self.modes.entered():
            return self.inputs.batched(lambda t: self.function(t, self.weight))

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Any:
        """Multiplied by one factor for each channel, [O]; `shape` [B, O, ...] is that of one tangent."""
        apart = self.modes != Modes.current(self.weight.device.type)  # where only one of the two records gradients
        if apart or "result" in vars(self) or self.weight.numel() > self.inputs.count * math.prod(shape):
            return self.result.scaled(factor, shape)
        unscaled = like(self.weight, self.inputs.tangents)
        weight = unscaled * factor.view(-1, *[1] * (self.weight.dim() - 1))
        return Convolved(self.inputs, self.function, weight.to(unscaled.dtype))

    def settled(self) -> Tensor:
        return self.result.settled()

    def pointwise(self, function: Callable[..., Tensor], shape: Sequence[int], *others: Any) -> Any:
        return self.result.pointwise(function, shape, *others)

    def batched(self, function: Callable[[Tensor], Tensor]) -> Any:
        return self.result.batched(function)

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Any:
        return self.result.convolved(function, weight)

    def linear(self, weight: Tensor) -> Any:
        return self.result.linear(weight)

    def reshaped(self, shape: Sequence[int]) -> Any:
        return self.result.reshaped(shape)

    def mapped(self, function: Callable[..., Any], *others: Any) -> Any:
        return self.result.mapped(function, *others)

    def activate(self, slope: Tensor, statistic: str | None) -> Any:
        return self.result.activate(slope, statistic)
