"""One direction in a graph: a linearization by tangents that have no axis of directions.

A compiler fuses what it can read as one loop, in the order in memory of the convolutions around it. Views that add and
remove an axis would make it write tensors between them, in the order of their axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.directions import Directions
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import Absolute
from llr_fast.linearized.torch_modes import like
from llr_fast.ops.common.arguments import accumulation_dtype


class Single(Directions):
    """The derivative [*value.shape] along one input direction; `tangents` [1, *value.shape] is a view of it."""

    def __init__(self, tangent: Tensor) -> None:
        self.tangent = tangent

    @property
    def tangents(self) -> Tensor:
        return self.tangent.unsqueeze(0)

    @property
    def dtype(self) -> torch.dtype:
        return self.tangent.dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((1, *self.tangent.shape))

    def pointwise(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        *others: Directions,
        absolute: Absolute | None = None,
    ) -> Directions:
        operands = [self, *(other for other in others if isinstance(other, Single))]
        if len(operands) <= len(others):
            return super().pointwise(function, shape, *others)
        if function is identity and tuple(shape) == tuple(self.tangent.shape):
            return self
        return Single(function(*(o.tangent for o in operands)).expand(*shape))

    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Directions:
        return Single(function(self.tangent))

    def reshaped(self, shape: Sequence[int]) -> Directions:
        return self if tuple(shape) == tuple(self.tangent.shape) else Single(self.tangent.reshape(*shape))

    def linear(self, weight: Tensor) -> Directions:
        return Single(F.linear(self.tangent, like(weight, self.tangent)))

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Directions:
        return self.batched(lambda t: function(t, weight))

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Directions:
        scaled = self.tangent * like(factor, self.tangent).view(-1, *[1] * (self.tangent.dim() - 2))
        return Single(scaled.to(self.dtype).expand(*shape))

    def activated(self, slope: Tensor) -> Directions:
        return Single(self.tangent * like(slope, self.tangent))

    def total_squares(self) -> Tensor:
        tangent = self.tangent.to(accumulation_dtype(self.dtype))
        return (tangent * tangent).sum()  # a power's gradient would be kept beside the tangents

    def activated_and_totalled(self, slope: Tensor) -> tuple[Directions, Tensor]:
        return self.activated(slope), self.total_squares()
