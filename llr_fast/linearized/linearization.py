"""What is known of the derivative of a tensor with respect to the network's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.local import Absolute, Sums

if TYPE_CHECKING:
    from typing_extensions import Self


def identity(t: Tensor) -> Tensor:
    """The linear part of a function that only adds constants."""
    return t


class Linearization(ABC):
    """What every rule does to the derivative of a tensor of shape [B, ...], called its tangent t.

    `function` is always linear in the tangents it takes, which have the shapes of the tensors themselves; `absolute`
    is the same with the absolute values of its coefficients, where some are negative. The last three methods are cases
    of the others that a linearization may know a better way for.
    """

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """That of tangents."""

    @property
    def keeps(self) -> bool:
        """Whether constants are kept for later, and so have to be copies."""
        return False

    @abstractmethod
    def pointwise(
        self, function: Callable[..., Tensor], shape: Sequence[int], *others: Self, absolute: Absolute | None = None
    ) -> Linearization:
        """function(t, *others) entry by entry, with a result that is broadcast to `shape` [B, ...]."""

    @abstractmethod
    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Linearization:
        """function(t) of tensors [B, ...], sample by sample."""

    @abstractmethod
    def mapped(self, function: Callable[..., Tensor], *others: Self, absolute: Absolute | None = None) -> Linearization:
        """function(t, *others), whatever it does to the axes."""

    @abstractmethod
    def parts(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> Sequence[Linearization]:
        """The `count` results of function(t)."""

    @abstractmethod
    def linear(self, weight: Tensor) -> Linearization:
        """The product of the last axis with `weight` [O, I]."""

    def linear_with(self, value: Tensor, weight: Tensor, for_tangents: Tensor) -> tuple[Tensor, Linearization] | None:
        """The products of a value and of its tangent with a weight, where one product of both is cheaper than two."""
        return None

    @abstractmethod
    def activated(self, slope: Tensor) -> Linearization:
        """t * slope, [B, ...], which is a mask or has the dtype of tangents."""

    def bounded(self, value: Tensor, sums: Sums, samples: Samples) -> None:
        """Takes note of how the last result, with this value and these samples, adds up."""
        raise NotImplementedError

    def reshaped(self, shape: Sequence[int]) -> Linearization:
        """t.reshape(shape), [B, ...]."""
        return self.mapped(lambda t: t.reshape(shape))

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Linearization:
        """function(t, weight) of tensors [B, I, ...] with a weight [O, I, ...]: a convolution."""
        return self.batched(lambda t: function(t, weight))

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Linearization:
        """t times one factor [C] for each entry of axis 1; `shape` [B, C, ...] is that of t."""
        return self.pointwise(lambda t: t * factor.view(-1, *[1] * (len(shape) - 2)), shape)


class NoLinearization(Linearization):
    """Computes nothing, where the values alone are asked for."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def pointwise(
        self, function: Callable[..., Tensor], shape: Sequence[int], *others: Self, absolute: Absolute | None = None
    ) -> Self:
        return self

    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Self:
        return self

    def mapped(self, function: Callable[..., Tensor], *others: Self, absolute: Absolute | None = None) -> Self:
        return self

    def parts(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> Sequence[Self]:
        return [self] * count

    def linear(self, weight: Tensor) -> Self:
        return self

    def activated(self, slope: Tensor) -> Self:
        return self
