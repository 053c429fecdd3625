"""Directions that may never be needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import Absolute
from llr_fast.linearized.torch_modes import Modes


class Later(Directions):
    """Tangents that are computed only where somebody asks for them, and so is all that is done to them.

    Args:
        compute: returns them.
        like: tangents of their dtype and device.
    """

    def __init__(self, compute: Callable[[], Directions], like: Tensor) -> None:
        self._compute, self._like = compute, like.new_empty(0)
        self._modes = Modes.current(like.device.type)

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def shape(self) -> torch.Size:
        return self.tangents.shape

    @cached_property
    def tangents(self) -> Tensor:
        with self._modes.entered():
            return self._compute().tangents

    def pointwise(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        *others: Directions,
        absolute: Absolute | None = None,
    ) -> Directions:
        return self._later(lambda: super(Later, self).pointwise(function, shape, *others))

    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Directions:
        return self._later(lambda: super(Later, self).batched(function))

    def mapped(
        self, function: Callable[..., Tensor], *others: Directions, absolute: Absolute | None = None
    ) -> Directions:
        return self._later(lambda: super(Later, self).mapped(function, *others))

    def parts(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> list[Directions]:
        found = cache(lambda: super(Later, self).parts(function, count))

        def part(i: int) -> Directions:
            return self._later(lambda: found()[i])

        return [part(i) for i in range(count)]

    def reshaped(self, shape: Sequence[int]) -> Directions:
        return self._later(lambda: super(Later, self).reshaped(shape))

    def linear(self, weight: Tensor) -> Directions:
        return self._later(lambda: super(Later, self).linear(weight))

    def linear_with(self, value: Tensor, weight: Tensor, for_tangents: Tensor) -> None:
        return None

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Directions:
        return self._later(lambda: super(Later, self).convolved(function, weight))

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Directions:
        return self._later(lambda: super(Later, self).scaled(factor, shape))

    def _later(self, compute: Callable[[], Directions]) -> Directions:
        return Later(compute, self._like)
