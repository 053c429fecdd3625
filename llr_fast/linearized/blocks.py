"""Long sums of products in blocks: each product passes through fewer roundings, so that less of it may be lost."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


def in_blocks(product: Product, x: Tensor, weight: Tensor, axis: int, bias: Tensor | None) -> Tensor:
    """`product(x, weight)`, which sums over `axis` of both, and the bias, which is broadcast to it."""
    at_once = _at_once(weight, axis)
    first, *others = zip(x.split(at_once, axis), weight.split(at_once, axis), strict=True)
    total = product(*first)
    for parts in others:
        total += product(*parts)
    return total if bias is None else total + bias


def roundings(weight: Tensor, axis: int) -> int:
    """That a product passes through on its way, at most, without the bias: in its block, then once for each other."""
    at_once = _at_once(weight, axis)
    return min(at_once, weight.size(axis)) * _each(weight, axis) + math.ceil(weight.size(axis) / at_once) - 1


def _at_once(weight: Tensor, axis: int) -> int:
    """About twice what makes the roundings the fewest, for half as many products."""
    return max(1, math.ceil(2 * math.sqrt(weight.size(axis) / max(1, _each(weight, axis)))))


def _each(weight: Tensor, axis: int) -> int:
    """Products for one entry of the result and of the axis: those of a window."""
    return weight[0, 0].numel() if axis == 1 else 1
