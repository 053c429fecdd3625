"""Directions: a linearization by its tangents, the derivatives along K input directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.convolved import Convolved
from llr_fast.linearized.tensor import identity
from llr_fast.linearized.torch_modes import like
from llr_fast.ops import masked_linear, tangent_activation
from llr_fast.ops.common.arguments import accumulation_dtype


@dataclass(frozen=True)
class Directions:
    """Tangents [K, *value.shape] of a tensor along K input directions.

    Axes along which the tangents are known to be equal have stride 0: all samples share the directions until the
    first activation, so the first layer is computed once for the whole batch.

    Between dense layers an activation's `slope` [B, n] waits for the next product, which multiplies by it and takes the
    statistic of its result along (`measured`).
    """

    tangents: Tensor
    slope: Tensor | None = None
    statistic: str | None = None
    measured: Tensor | None = None
    keeps: ClassVar[bool] = False

    @property
    def dtype(self) -> torch.dtype:
        return self.tangents.dtype

    def pointwise(self, function: Callable[..., Tensor], shape: Sequence[int], *others: Directions) -> Directions:
        """A function of single entries, broadcast to `shape`, such as the sum with other tangents."""
        if function is identity and tuple(shape) == tuple(self.tangents.shape[1:]):
            return self
        operands = [compact(_with_rank(d.settled(), len(shape))) for d in (self, *others)]
        return Directions(function(*operands).expand(-1, *shape))

    def batched(self, function: Callable[[Tensor], Tensor]) -> Directions:
        """A function of tensors [B, ...] that works sample by sample: directions become part of the batch."""
        tangents = compact(self.settled(), dims=(1,))
        out = function(tangents.flatten(0, 1)).unflatten(0, tangents.shape[:2])
        return Directions(out.expand(-1, self.tangents.size(1), *out.shape[2:]))

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Convolved:
        """A convolution with `weight` [O, I, ...], computed when its result is used."""
        trained = weight.requires_grad and weight.is_leaf
        return Convolved(self, function, weight if trained else weight.clone())  # others may change until then

    def times(self, factor: float) -> Directions:
        """All directions `factor` times as long."""
        return self if factor == 1 else Directions(self.tangents * factor)

    @property
    def count(self) -> int:
        return self.tangents.size(0)

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Directions:
        """Multiplied by one factor [C] for each entry of the axis behind that of the batch."""
        tangents = compact(self.settled())
        scaled = tangents * like(factor, tangents).view(-1, *[1] * (tangents.dim() - 3))
        return Directions(scaled.to(self.dtype).expand(-1, *shape))

    def linear(self, weight: Tensor) -> Directions:
        """The product of the last axis with `weight` [O, I]."""
        weight = like(weight, self.tangents)
        tangents = compact(self.tangents, dims=range(1, self.tangents.dim() - 1))
        if self.slope is not None and self.statistic is not None and self.dtype == weight.dtype:
            out, measured = masked_linear(tangents, self.slope, weight, self.statistic)
            return Directions(out, measured=measured)
        out = F.linear(compact(self.settled(), dims=range(1, tangents.dim() - 1)), weight)
        return Directions(out.expand(*self.tangents.shape[:-1], -1))

    def reshaped(self, shape: Sequence[int]) -> Directions:
        return (
            self if tuple(shape) == tuple(self.tangents.shape[1:]) else Directions(self.settled().reshape(-1, *shape))
        )

    def mapped(self, function: Callable[..., Any], *others: Directions) -> Any:
        """Any linear function of tensors without the axis of directions; lists and tuples of results are kept."""
        out = torch.vmap(function)(self.settled(), *(d.settled() for d in others))
        return Directions(out) if isinstance(out, Tensor) else [Directions(t) for t in out]

    def activate(self, slope: Tensor, statistic: str | None) -> tuple[Directions, Tensor]:
        """Multiplies by the slope [*value.shape], which may be a mask.

        Also returns the statistic over K of the incoming tangents, [*value.shape]; without one the tangents, and for
        "total_squares" the sum of all their squares.
        """
        tangents, total = self.settled(), statistic == "total_squares"
        slope = like(slope, tangents)
        if statistic is None:
            return Directions(tangents * slope), tangents
        if statistic == "sum_log_abs":
            return Directions(tangents * slope), _sum_log_abs(tangents)
        if slope.dim() == 2:
            deferred, measured = self._deferred(tangents, slope.to(self.dtype), "sum_squares" if total else statistic)
            return deferred, measured.sum() if total else measured
        if total:  # plain torch remembers the tangents once, and of the slope no more than the mask
            return Directions(tangents * slope), _total_squares(tangents)
        out, measured = tangent_activation(*_flat(tangents, slope.to(self.dtype)), statistic)
        return Directions(out.view(tangents.shape)), measured.view(slope.shape)

    def _deferred(self, tangents: Tensor, slope: Tensor, statistic: str) -> tuple[Directions, Tensor]:
        measured = self.measured
        if measured is None:
            measured = measure(compact(tangents, dims=(1,)), statistic).expand(slope.shape)
        return Directions(tangents, slope, statistic), measured

    def settled(self) -> Tensor:
        """The tangents with the slope multiplied in."""
        return self.tangents if self.slope is None else self.tangents * self.slope


def measure(tangents: Tensor, statistic: str) -> Tensor:
    """The statistic of tangents [K, ...] over K, in float32 or better."""
    tangents = tangents.to(accumulation_dtype(tangents.dtype))
    if statistic == "sum_squares":
        return tangents.square().sum(0)
    return tangents.abs().sum(0) if statistic == "sum_abs" else tangents.abs().amax(0)


def _sum_log_abs(tangents: Tensor) -> Tensor:
    """Of tangents [K, ...] over K; those that rounding may have made 0 count as what it can amount to."""
    size = tangents.abs()
    rounding = torch.finfo(size.dtype).eps * size.flatten(1).amax(1)
    return torch.maximum(size, rounding.view(-1, *[1] * (size.dim() - 1))).log().sum(0)


def _total_squares(tangents: Tensor) -> Tensor:
    distinct = compact(tangents)
    squares = distinct.to(accumulation_dtype(tangents.dtype)).square()
    return squares.sum() * (tangents.numel() // distinct.numel())


def _flat(tangents: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents [K, 1, n] and slope [B, n] where the batch shares the tangents, else both with one row."""
    if slope.dim() > 1 and slope.size(0) > 1 and tangents.stride(1) == 0:
        return tangents[:, :1].flatten(2), slope.flatten(1)
    return tangents.flatten(1).unsqueeze(1), slope.flatten().unsqueeze(0)


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


def _with_rank(tangents: Tensor, rank: int) -> Tensor:
    missing = rank + 1 - tangents.dim()
    return tangents.reshape(tangents.size(0), *[1] * missing, *tangents.shape[1:]) if missing > 0 else tangents
