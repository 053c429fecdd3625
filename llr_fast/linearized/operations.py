"""What a tape holds: each operation does to directions what a rule did to a linearization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llr_fast.linearized.directions import Directions
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import Absolute, size


class Operation(ABC):
    @abstractmethod
    def apply(self, *operands: Directions) -> Sequence[Directions]:
        """Its results, of which there mostly is one."""

    def absolute(self, *operands: Directions) -> Directions:
        """Its one result with the absolute values of its coefficients, along directions that are not negative."""
        (result,) = self.apply(*operands)
        return result


@dataclass(frozen=True)
class Pointwise(Operation):
    function: Callable[..., Tensor]
    shape: tuple[int, ...]
    of_sizes: Absolute | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it does no more than to broadcast."""
        return self.function is identity

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].pointwise(self.function, self.shape, *operands[1:])]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].pointwise(self.of_sizes or self.function, self.shape, *operands[1:])


@dataclass(frozen=True)
class Batched(Operation):
    function: Callable[[Tensor], Tensor]
    of_sizes: Absolute | None = None

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].batched(self.function)]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].batched(self.of_sizes or self.function)


@dataclass(frozen=True)
class Mapped(Operation):
    function: Callable[..., Tensor]
    of_sizes: Absolute | None = None

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].mapped(self.function, *operands[1:])]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].mapped(self.of_sizes or self.function, *operands[1:])


@dataclass(frozen=True)
class Parts(Operation):
    function: Callable[[Tensor], Sequence[Tensor]]
    count: int

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return operands[0].parts(self.function, self.count)


@dataclass(frozen=True)
class Reshaped(Operation):
    shape: tuple[int, ...]

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].reshaped(self.shape)]


@dataclass(frozen=True)
class Linear(Operation):
    weight: Tensor

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].linear(self.weight)]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].linear(size(self.weight))


@dataclass(frozen=True)
class Convolved(Operation):
    function: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].convolved(self.function, self.weight)]

    def absolute(self, *operands: Directions) -> Directions:
        weight = size(self.weight)
        return operands[0].batched(lambda t: self.function(t, weight))


@dataclass(frozen=True)
class Scaled(Operation):
    factor: Tensor
    shape: tuple[int, ...]

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].scaled(self.factor, self.shape)]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].scaled(size(self.factor), self.shape)


@dataclass(frozen=True)
class Activated:
    """An activation; what is measured there is up to whoever replays the tape."""

    slope: Tensor

    def apply(self, *operands: Directions) -> Sequence[Directions]:
        return [operands[0].activated(self.slope)]

    def absolute(self, *operands: Directions) -> Directions:
        return operands[0].activated(self.slope if self.slope.dtype == torch.bool else size(self.slope))
