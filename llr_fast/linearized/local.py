"""Bounds of the rounding of single operations in float64, for enclosures in real arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = 2.0**-53  # an operation's relative error, rounded to nearest
SMALL = 2.0**-450  # what counts as at least as large does not underflow when two are multiplied, times UNIT either
_LARGEST = torch.finfo(torch.float64).max
SLACK = 1 + 2.0**-20  # for the rounding of the bounds themselves, sums of less than 2**30 terms without cancellation

Absolute = Callable[..., Tensor]


class NoBoundError(Exception):
    """The result of a function for whose rounding no bound is written."""


def gamma(terms: int) -> float:
    """The relative error of a sum of `terms` products in any order, of the sum of their absolute values."""
    if terms >= 2**30:
        raise NoBoundError
    return terms * UNIT / (1 - terms * UNIT)


def raised(t: Tensor) -> Tensor:
    """Of numbers that are not negative: no smaller than they are, 0 where they are, and else no smaller than SMALL."""
    if t.numel() and t.amin() >= SMALL:  # the one pass that most weights need
        return t
    return t.masked_fill((t > 0) & (t < SMALL), SMALL)


def size(constant: Tensor | float, like: Tensor | None = None) -> Tensor:
    """Absolute values, not too small, in float64."""
    device = None if like is None else like.device
    return raised(torch.as_tensor(constant, dtype=torch.float64, device=device).abs())


@dataclass(frozen=True)
class Sums:
    """How an affine function y = S x + c adds up: all that bounds its rounding.

    Attributes:
        operands: the values x.
        terms: roundings that a product S_ij x_j passes through on its way into y_i, at most; 0 of an exact function.
        back: those that S_ij v_i passes through in S^T v, and S_ij t_j in S t where these are more.
        constant: c, broadcast to y.
        once: y is the exact result, rounded to nearest once.
    """

    operands: tuple[Tensor, ...] = ()
    terms: int = 0
    back: int = 0
    constant: Tensor | float = 0.0
    once: bool = False

    def error(self, absolute: Absolute, value: Tensor) -> Tensor | None:
        """A bound of the error of each entry of `value`, given |S|: terms u / (1 - terms u) (|S| |x| + |c|)."""
        if self.terms == 0:
            return None
        if self.once:  # entries of this size stand for dead neurons and padding
            bound = value.abs() * UNIT
            return bound.masked_fill_(~(value.abs() < _LARGEST), 0.0)
        sums = absolute(*[size(x) for x in self.operands])
        if isinstance(self.constant, Tensor) or self.constant != 0:
            sums = sums + size(self.constant, value)
        return (raised(sums) * (gamma(self.terms) * SLACK)).expand(value.shape)


def ratio(value: Tensor, operand: Tensor) -> int:
    """How many entries of a broadcast result are one entry of the operand."""
    return math.ceil(value.numel() / max(1, operand.numel()))
