"""Affine functions of single entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import SMALL, Absolute, NoBoundError, Sums, ratio, size
from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse
from llr_fast.linearized.torch_modes import like


def constants(x: LinearizedTensor, *tensors: Any) -> tuple[list[Any], list[Any]]:
    """The given constants once to meet values and once to meet linearizations, in whose dtype they are not yet.

    What stays the same all over the linear region is one, but not where it is rounded and that has to be bounded.
    """
    if any(t.rounded for t in linearized_of(*tensors)):
        raise NoBoundError
    tensors = tuple(t.value if isinstance(t, LinearizedTensor) else t for t in tensors)
    keep = x.evaluation.settings.constant
    certificate = x.evaluation.settings.certificate
    kept = [t.detach() if certificate and isinstance(t, Tensor) else t for t in tensors]
    return [keep(t, x.value.dtype) for t in tensors], kept


def moves(operand: Any) -> bool:
    """Whether it is a tensor that changes with the input within a linear region."""
    return isinstance(operand, LinearizedTensor) and not operand.frozen


def linearized_of(*operands: Any) -> list[LinearizedTensor]:
    return [operand for operand in operands if isinstance(operand, LinearizedTensor)]


def in_order(a: Any, b: Any) -> tuple[LinearizedTensor, Any]:
    """Both operands, first the one that changes with the input, if any."""
    return (a, b) if moves(a) or not (moves(b) or not isinstance(a, LinearizedTensor)) else (b, a)


def require_constant(function: Any, *tensors: Any) -> None:
    """Refuses weights that depend on the network's input."""
    for tensor in tensors:
        if isinstance(tensor, LinearizedTensor):
            raise refuse(tensor, function, "a weight that depends on the network's input makes a product")


def broadcast_samples(value: Tensor, function: str, *operands: LinearizedTensor) -> Samples:
    """The batch axis after broadcasting `operands` to the shape of `value`."""
    places = {x.samples.shifted(value.dim() - x.value.dim()) for x in operands}
    if len(places) > 1 and operands[0].samples.count > 1:
        raise MixedSamplesError(f"{function} combines tensors whose samples lie along different axes")
    return places.pop()


def pointwise(
    x: LinearizedTensor,
    value: Tensor,
    function: Callable[..., Tensor],
    absolute: Absolute | None = None,
    constant_of: Any = None,
    **roundings: Any,
) -> LinearizedTensor:
    """A function of single entries of `x`, with the broadcast `value` it takes; exact but for `roundings`, see Sums.

    `constant_of` is the constant in it, if any, which may be one of the linear region alone.
    """
    samples = broadcast_samples(value, "broadcasting", x, *linearized_of(constant_of))
    linearization = x.linearization.pointwise(function, value.shape, absolute=absolute)
    return x.replaced(value, linearization, samples, sums=_sums_of(value, roundings, x))


def total(
    function: Any,
    a: LinearizedTensor,
    b: LinearizedTensor,
    combine: Callable[..., Tensor],
    absolute: Absolute | None = None,
    constant_of: Any = None,
    **roundings: Any,
) -> LinearizedTensor:
    """A linear combination of two tensors that both depend on the network's input; otherwise as `pointwise`."""
    value = combine(a.value, b.value)
    linearization = a.linearization.pointwise(combine, value.shape, b.linearization, absolute=absolute)
    samples = broadcast_samples(value, function.__name__, a, b, *linearized_of(constant_of))
    return a.replaced(value, linearization, samples, sums=_sums_of(value, roundings, a, b))


def _sums_of(value: Tensor, roundings: dict[str, Any], *operands: LinearizedTensor) -> Callable[[], Sums]:
    """Of a function of single entries, which are broadcast to `value`."""

    def sums() -> Sums:
        copies = max(ratio(value, x.value) for x in operands)
        back = roundings.get("terms", 0) + (copies if copies > 1 else 0)
        return Sums(tuple(x.value for x in operands), back=back, **roundings)

    return sums


def add(a: Any, b: Any, alpha: Any = 1, function: Any = torch.add) -> LinearizedTensor:
    """a + alpha * b, where a, b or both depend on the network's input."""
    once = alpha in (1, -1)  # then the product rounds nothing
    rounded: dict[str, Any] = {"terms": 1 if once else 2, "once": once}
    if isinstance(a, LinearizedTensor) and isinstance(b, LinearizedTensor):
        sizes = None if alpha == 1 else (lambda s, t: s + t * size(alpha))
        return total(function, a, b, lambda s, t: torch.add(s, t, alpha=alpha), sizes, **rounded)
    if isinstance(a, LinearizedTensor):
        (b,), _ = constants(a, b)
        constant = 0.0 if once else b * alpha
        return pointwise(a, torch.add(a.value, b, alpha=alpha), identity, constant=constant, **rounded)
    (a,), _ = constants(b, a)
    value = torch.add(torch.mul(b.value, alpha), a)
    if alpha == 1:
        return pointwise(b, value, identity, **rounded)
    return pointwise(b, value, lambda t: t * alpha, lambda t: t * size(alpha), constant=a, **rounded)


@rule("add", "__add__", "__radd__", inplace=True)
def _add(function: Any, input: Any, other: Any, *, alpha: Any = 1) -> LinearizedTensor:
    return add(input, other, alpha, function)


@rule("sub", "subtract", "__sub__", inplace=True)
def _sub(function: Any, input: Any, other: Any, *, alpha: Any = 1) -> LinearizedTensor:
    return add(input, other, -alpha, function)


@rule("rsub", "__rsub__")
def _rsub(function: Any, input: Any, other: Any, *, alpha: Any = 1) -> LinearizedTensor:
    return add(other, input, -alpha, function)


@rule("neg", "negative", "__neg__", inplace=True)
def _neg(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return pointwise(x, -x.value, torch.neg, identity)


@rule("positive", "__pos__", "clone", "contiguous", "detach", "alias")
def _same(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    cut = function is Tensor.detach or function is torch.detach
    keep_graph = not cut or x.evaluation.settings.certificate
    return pointwise(x, function(x.value, *args, **kwargs), identity if keep_graph else torch.detach)


@rule("mul", "multiply", "__mul__", "__rmul__", inplace=True)
def _mul(function: Any, input: Any, other: Any) -> LinearizedTensor:
    x, factor = in_order(input, other)
    if moves(factor):
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    (for_value,), (for_tangents,) = constants(x, factor)
    value = torch.mul(x.value, for_value)

    def of_sizes(t: Tensor) -> Tensor:
        return t * size(for_tangents, t)

    return pointwise(x, value, lambda t: t * like(for_tangents, t), of_sizes, factor, terms=1)


@rule("div", "divide", "true_divide", "__truediv__", "__div__", inplace=True)
def _div(function: Any, x: Any, other: Any, *, rounding_mode: str | None = None) -> LinearizedTensor:
    if moves(other) or not isinstance(x, LinearizedTensor):
        raise refuse(other, function, "division by a tensor that depends on the network's input is not linear")
    if rounding_mode is not None:
        if rounding_mode != "floor":
            raise refuse(x, function, "of rounded quotients those with rounding_mode='floor' are supported")
        return torch.floor_divide(x, other)  # type: ignore[return-value]
    (for_value,), (for_tangents,) = constants(x, other)
    value = torch.div(x.value, for_value)

    def of_sizes(t: Tensor) -> Tensor:
        return t / size(for_tangents, t).clamp_max(1 / SMALL)

    return pointwise(x, value, lambda t: t / like(for_tangents, t), of_sizes, other, terms=1)


@rule("lerp", inplace=True)
def _lerp(function: Any, input: Any, end: Any, weight: Any) -> LinearizedTensor:
    require_constant(function, weight)
    return input + torch.sub(end, input) * weight  # type: ignore[no-any-return]


@rule("addcmul", inplace=True)
def _addcmul(function: Any, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> LinearizedTensor:
    return torch.add(input, torch.mul(tensor1, tensor2), alpha=value)  # type: ignore[return-value]


@rule("addcdiv", inplace=True)
def _addcdiv(function: Any, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> LinearizedTensor:
    return torch.add(input, torch.div(tensor1, tensor2), alpha=value)  # type: ignore[return-value]


@rule("nan_to_num", inplace=True)
def _nan_to_num(
    function: Any,
    x: LinearizedTensor,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> LinearizedTensor:
    """Infinite entries are constants, and what is finite stays so nearby."""
    largest = torch.finfo(x.evaluation.settings.seen(x.value.dtype)).max
    posinf, neginf = largest if posinf is None else posinf, -largest if neginf is None else neginf
    finite = x.value.isfinite()
    return pointwise(x, x.value.nan_to_num(nan, posinf, neginf), lambda t: torch.where(finite, t, 0.0))


@rule("where")
def _where(function: Any, condition: Any, input: Any, other: Any) -> LinearizedTensor:
    if function is Tensor.where:  # the method's order is another one
        condition, input = input, condition
    if moves(condition):
        raise refuse(condition, function, "a condition that depends on the network's input hides a kink")
    mask = condition.value if isinstance(condition, LinearizedTensor) else condition
    mask = mask.bool()  # torch takes bytes too, whose ~ is no negation
    if isinstance(input, LinearizedTensor) and isinstance(other, LinearizedTensor):
        return total(function, input, other, lambda s, t: torch.where(mask, s, t), constant_of=condition)
    if isinstance(input, LinearizedTensor):
        return _where_or_constant(mask, input, other, condition)
    if isinstance(other, LinearizedTensor):
        return _where_or_constant(~mask, other, input, condition)
    (if_true, if_false), _ = constants(condition, input, other)
    return pointwise(condition, torch.where(mask, if_true, if_false), torch.zeros_like)


def _where_or_constant(mask: Tensor, x: LinearizedTensor, constant: Any, condition: Any) -> LinearizedTensor:
    (for_value,), _ = constants(x, constant)
    x.evaluation.padded |= isinstance(constant, Tensor) or abs(constant) == math.inf
    value = torch.where(mask, x.value, for_value)
    return pointwise(x, value, lambda t: torch.where(mask, t, 0.0), constant_of=condition)


@rule("masked_fill", inplace=True)
def _masked_fill(function: Any, x: Any, mask: Tensor, value: Any) -> LinearizedTensor:
    return _where(torch.where, mask.bool().logical_not(), x, value)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", inplace=True)
def _dropout(
    function: Any, x: LinearizedTensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> LinearizedTensor:
    if not training or p == 0:
        return pointwise(x, x.value, identity)
    if x.evaluation.settings.certificate or "alpha" in function.__name__:
        functional = not x.evaluation.module.find().training
        raise ValueError(
            f"{function.__name__} in module {x.evaluation.module.path()!r} is in training mode"
            + (", which the module is not; pass training=self.training" if functional else "")
            + "; certificates need model.eval()"
        )
    mask = function(torch.ones_like(x.value), p, True, False)
    return pointwise(x, x.value * mask, lambda t: t * mask)
