"""Directions: a linearization by its tangents, the derivatives along K input directions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from llr_fast.linearized.linearization import Linearization, identity
from llr_fast.linearized.local import Absolute
from llr_fast.linearized.torch_modes import Modes, checkpoint, is_traced, like
from llr_fast.norms import Statistic
from llr_fast.ops.common.arguments import accumulation_dtype
from llr_fast.ops.masked_linear import masked_linear
from llr_fast.ops.tangent_activation import tangent_activation


class Directions(Linearization):
    """Tangents [K, *value.shape] of a tensor along K input directions.

    Axes along which the tangents are known to be equal have stride 0: all samples share the directions until the
    first activation, so the first layer is computed once for the whole batch.
    """

    def __init__(self, tangents: Tensor) -> None:
        self._tangents = tangents

    @property
    def tangents(self) -> Tensor:
        return self._tangents

    @property
    def dtype(self) -> torch.dtype:
        return self._tangents.dtype

    @property
    def shape(self) -> torch.Size:
        """That of the tangents."""
        return self._tangents.shape

    def pointwise(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        *others: Directions,
        absolute: Absolute | None = None,
    ) -> Directions:
        if function is identity and tuple(shape) == tuple(self.shape[1:]):
            return self
        operands = [compact(_with_rank(d.tangents, len(shape))) for d in (self, *others)]
        return Directions(function(*operands).expand(-1, *shape))

    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Directions:
        """Directions become part of the batch."""
        tangents = compact(self.tangents, dims=(1,))
        out = function(tangents.flatten(0, 1)).unflatten(0, tangents.shape[:2])
        return Directions(out.expand(-1, self.tangents.size(1), *out.shape[2:]))

    def mapped(
        self, function: Callable[..., Tensor], *others: Directions, absolute: Absolute | None = None
    ) -> Directions:
        return Directions(torch.vmap(function)(self.tangents, *(d.tangents for d in others)))

    def parts(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> list[Directions]:
        return [Directions(t) for t in torch.vmap(function)(self.tangents)]

    def reshaped(self, shape: Sequence[int]) -> Directions:
        return self if tuple(shape) == tuple(self.shape[1:]) else Directions(self.tangents.reshape(-1, *shape))

    def linear(self, weight: Tensor) -> Directions:
        weight = like(weight, self.tangents)
        out = F.linear(compact(self.tangents, dims=range(1, self.tangents.dim() - 1)), weight)
        return Directions(out.expand(*self.tangents.shape[:-1], -1))

    def linear_with(self, value: Tensor, weight: Tensor, for_tangents: Tensor) -> tuple[Tensor, Directions] | None:
        tangents = self.tangents
        alike = weight is for_tangents and value.dtype == tangents.dtype
        if not (alike and weight.requires_grad and value.dim() == 2 and tangents.is_contiguous()):
            return None
        both = F.linear(torch.cat([value, tangents.flatten(0, 1)]), weight)
        product, of_tangents = both.split([len(value), len(both) - len(value)])
        return product, Directions(of_tangents.unflatten(0, tangents.shape[:2]))

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Directions:
        trained = weight.requires_grad and weight.is_leaf
        return _Convolved(self, function, weight if trained else weight.clone())  # others may change until it is used

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Directions:
        if torch.is_grad_enabled() and not is_traced() and self.shape[1:] == torch.Size(shape):
            return Scaled(self, factor)
        tangents = compact(self.tangents)
        scaled = tangents * like(factor, tangents).view(-1, *[1] * (tangents.dim() - 3))
        return Directions(scaled.to(tangents.dtype).expand(-1, *shape))

    def times(self, factor: float) -> Directions:
        """All directions `factor` times as long."""
        return self if factor == 1 else Directions(self.tangents * factor)

    def activated(self, slope: Tensor) -> Directions:
        return Directions(self.tangents * like(slope, self.tangents))

    def measured(self, statistic: Statistic) -> Tensor:
        """The statistic of the tangents over K, [*value.shape], in float32 or better."""
        tangents = compact(self.tangents, dims=(1,))
        if statistic is Statistic.SUM_LOG_ABS:
            return _sum_log_abs(tangents).expand(self.tangents.shape[1:])
        tangents = tangents.to(accumulation_dtype(tangents.dtype))
        if statistic is Statistic.SUM_SQUARES:
            found = tangents.square().sum(0)
        else:
            found = tangents.abs().sum(0) if statistic is Statistic.SUM_ABS else tangents.abs().amax(0)
        return found.expand(self.tangents.shape[1:])

    def total_squares(self) -> Tensor:
        """The sum of the squares of all tangents, a scalar; in training nothing is kept for it but the tangents."""
        distinct = compact(self.tangents)
        squares = distinct.to(accumulation_dtype(distinct.dtype)).square()
        return squares.sum() * (self.tangents.numel() // distinct.numel())

    def activated_and_measured(self, slope: Tensor, statistic: Statistic) -> tuple[Directions, Tensor]:
        """Both in one pass over the tangents where there is an operator for it.

        Between dense layers the slope [B, n] waits for the next product, which takes the statistic of its result along.
        """
        if statistic is Statistic.SUM_LOG_ABS:
            return self.activated(slope), self.measured(statistic)
        tangents = self.tangents
        slope = slope.to(tangents.dtype)
        if slope.dim() == 2:
            return _Masked(tangents, slope, statistic), self.measured(statistic)
        out, measured = tangent_activation(*_flat(tangents, slope), statistic)
        return Directions(out.view(tangents.shape)), measured.view(slope.shape)

    def activated_and_totalled(self, slope: Tensor) -> tuple[Directions, Tensor]:
        """As `activated` and `total_squares`, between dense layers fused as above."""
        if slope.dim() == 2:
            activated, squares = self.activated_and_measured(slope, Statistic.SUM_SQUARES)
            return activated, squares.sum()
        return self.activated(slope), self.total_squares()


class _Masked(Directions):
    """Tangents behind an activation of a dense layer: the multiplication by its slope [B, n] joins the next product."""

    def __init__(self, tangents: Tensor, slope: Tensor, statistic: Statistic) -> None:
        super().__init__(tangents)
        self._slope, self._statistic = slope, statistic

    @property
    def tangents(self) -> Tensor:
        # Not kept: where it is used in a checkpoint, that computes it again.
        return self._tangents * self._slope

    def linear(self, weight: Tensor) -> Directions:
        weight = like(weight, self._tangents)
        if self.dtype != weight.dtype:
            return super().linear(weight)
        tangents = compact(self._tangents, dims=(1,))
        return _Measured(*masked_linear(tangents, self._slope, weight, self._statistic), self._statistic)


class _Measured(Directions):
    """Tangents behind a product that measured them."""

    def __init__(self, tangents: Tensor, found: Tensor, statistic: Statistic) -> None:
        super().__init__(tangents)
        self._found, self._statistic = found, statistic

    def measured(self, statistic: Statistic) -> Tensor:
        return self._found if statistic is self._statistic else super().measured(statistic)


class _Deferred(Directions):
    """Tangents that are computed at the first use, in the modes in which they were asked for."""

    def __init__(self, inputs: Directions, device: torch.device) -> None:
        self.inputs = inputs
        self._modes, self._hooks = Modes.current(device.type), checkpoint()

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    @property
    def is_computed(self) -> bool:
        return "tangents" in vars(self)

    @cached_property
    def tangents(self) -> Tensor:
        # Kept, so a checkpoint that uses it has no part in it, and does not compute it again.
        apart = self._hooks != checkpoint()
        with self._modes.entered(), saved_tensors_hooks(identity, identity) if apart else nullcontext():
            return self._compute()

    @abstractmethod
    def _compute(self) -> Tensor: ...


class Scaled(_Deferred):
    """`inputs` times one factor [C] for each entry of axis 1: a product that may join the activation behind it."""

    def __init__(self, inputs: Directions, factor: Tensor) -> None:
        super().__init__(inputs, factor.device)
        self.factor = factor

    @property
    def shape(self) -> torch.Size:
        return self.inputs.shape

    def _compute(self) -> Tensor:
        tangents = compact(self.inputs.tangents)
        scaled: Tensor = tangents * like(self.factor, tangents).view(-1, *[1] * (tangents.dim() - 3))
        return scaled.to(tangents.dtype).expand(self.shape)


class _Convolved(_Deferred):
    """The tangents `function(inputs, weight)`.

    Scaled by channel before, as by a batch-norm, they are those of a scaled weight where that is the smaller of the
    two: that spares a pass over the tangents and, in training, keeping them twice.
    """

    def __init__(self, inputs: Directions, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> None:
        super().__init__(inputs, weight.device)
        self._function, self._weight = function, weight

    @property
    def shape(self) -> torch.Size:
        return self.tangents.shape

    def _compute(self) -> Tensor:
        return self.inputs.batched(lambda t: self._function(t, self._weight)).tangents

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Directions:
        apart = self._modes != Modes.current(self._weight.device.type)  # where only one of the two records gradients
        if apart or self.is_computed or self._weight.numel() > self.inputs.shape[0] * math.prod(shape):
            return super().scaled(factor, shape)
        unscaled = like(self._weight, self.inputs.tangents)
        weight = unscaled * factor.view(-1, *[1] * (self._weight.dim() - 1))
        return _Convolved(self.inputs, self._function, weight.to(unscaled.dtype))


def axes(x: Tensor, start: int, stop: int, dtype: torch.dtype) -> Directions:
    """Unit directions along input axes `start` to `stop` - 1, shared by the samples of `x` [B, ...]."""
    unit = torch.zeros(stop - start, x[0].numel(), dtype=dtype, device=x.device)
    unit.diagonal(start)[:] = 1
    return Directions(unit.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape))


def compact(tangents: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Cuts axes of stride 0, whose entries are all equal, down to size 1."""
    for dim in range(1, tangents.dim()) if dims is None else dims:
        if tangents.size(dim) > 1 and tangents.stride(dim) == 0:
            tangents = tangents.narrow(dim, 0, 1)
    return tangents


def _sum_log_abs(tangents: Tensor) -> Tensor:
    """Of tangents [K, ...] over K; those that rounding may have made 0 count as what it can amount to."""
    size = tangents.abs()
    rounding = torch.finfo(size.dtype).eps * size.flatten(1).amax(1)
    return torch.maximum(size, rounding.view(-1, *[1] * (size.dim() - 1))).log().sum(0)


def _flat(tangents: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents [K, 1, n] and slope [B, n] where the batch shares the tangents, else both with one row."""
    if slope.dim() > 1 and slope.size(0) > 1 and tangents.stride(1) == 0:
        return tangents[:, :1].flatten(2), slope.flatten(1)
    return tangents.flatten(1).unsqueeze(1), slope.flatten().unsqueeze(0)


def _with_rank(tangents: Tensor, rank: int) -> Tensor:
    missing = rank + 1 - tangents.dim()
    return tangents.reshape(tangents.size(0), *[1] * missing, *tangents.shape[1:]) if missing > 0 else tangents
