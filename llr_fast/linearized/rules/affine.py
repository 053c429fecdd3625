"""Affine functions of single entries or of the last axis, and products with constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import SMALL, Absolute, NoBoundError, Sums, ratio, size
from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse
from llr_fast.linearized.torch_modes import like


def constants(x: LinearizedTensor, *tensors: Any) -> tuple[list[Any], list[Any]]:
    """The given constants once to meet values and once to meet linearizations, in whose dtype they are not yet."""
    keep = x.evaluation.settings.constant
    certificate = x.evaluation.settings.certificate
    kept = [t.detach() if certificate and isinstance(t, Tensor) else t for t in tensors]
    return [keep(t, x.value.dtype) for t in tensors], kept


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
    **roundings: Any,
) -> LinearizedTensor:
    """A function of single entries of `x`, with the broadcast `value` it takes; exact but for `roundings`, see Sums."""
    samples = broadcast_samples(value, "broadcasting", x)
    linearization = x.linearization.pointwise(function, value.shape, absolute=absolute)
    return x.replaced(value, linearization, samples, sums=_sums_of(value, roundings, x))


def total(
    function: Any,
    a: LinearizedTensor,
    b: LinearizedTensor,
    combine: Callable[..., Tensor],
    absolute: Absolute | None = None,
    **roundings: Any,
) -> LinearizedTensor:
    """A linear combination of two tensors that both depend on the network's input."""
    value = combine(a.value, b.value)
    linearization = a.linearization.pointwise(combine, value.shape, b.linearization, absolute=absolute)
    samples = broadcast_samples(value, function.__name__, a, b)
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
    x, factor = (input, other) if isinstance(input, LinearizedTensor) else (other, input)
    if isinstance(factor, LinearizedTensor):
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    (for_value,), (for_tangents,) = constants(x, factor)
    value = torch.mul(x.value, for_value)
    return pointwise(x, value, lambda t: t * like(for_tangents, t), lambda t: t * size(for_tangents, t), terms=1)


@rule("div", "divide", "true_divide", "__truediv__", "__div__", inplace=True)
def _div(function: Any, x: Any, other: Any, *, rounding_mode: str | None = None) -> LinearizedTensor:
    if isinstance(other, LinearizedTensor):
        raise refuse(other, function, "division by a tensor that depends on the network's input is not linear")
    if rounding_mode is not None:
        raise refuse(x, function, "a rounded quotient is not piecewise linear")
    (for_value,), (for_tangents,) = constants(x, other)
    value = torch.div(x.value, for_value)

    def of_sizes(t: Tensor) -> Tensor:
        return t / size(for_tangents, t).clamp_max(1 / SMALL)

    return pointwise(x, value, lambda t: t / like(for_tangents, t), of_sizes, terms=1)


@rule("where")
def _where(function: Any, condition: Any, input: Any, other: Any) -> LinearizedTensor:
    if function is Tensor.where:  # the method's order is another one
        condition, input = input, condition
    if isinstance(condition, LinearizedTensor):
        raise refuse(condition, function, "a condition that depends on the network's input hides a kink")
    condition = condition.bool()  # torch takes bytes too, whose ~ is no negation
    if isinstance(input, LinearizedTensor) and isinstance(other, LinearizedTensor):
        return total(function, input, other, lambda s, t: torch.where(condition, s, t))
    if not isinstance(input, LinearizedTensor):
        return _where(torch.where, ~condition, other, input)
    (for_value,), _ = constants(input, other)
    input.evaluation.padded |= isinstance(other, Tensor) or other == -math.inf
    return pointwise(input, torch.where(condition, input.value, for_value), lambda t: torch.where(condition, t, 0.0))


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


@rule("linear")
def _linear(function: Any, x: LinearizedTensor, weight: Tensor, bias: Tensor | None = None) -> LinearizedTensor:
    require_constant(function, weight, bias)
    samples = x.samples.kept((x.value.dim() - 1,), "linear")
    (w, b), (for_tangents, _) = constants(x, weight, bias)
    together = x.linearization.linear_with(x.value, w, for_tangents)
    if together is not None:
        value, linearization = together
        return x.replaced(value if b is None else value + b, linearization, samples)

    def sums() -> Sums:
        outputs, inputs = w.shape if w.dim() == 2 else (1, len(w))
        return Sums((x.value,), terms=inputs + 1, back=outputs, constant=0.0 if b is None else b)

    return x.replaced(F.linear(x.value, w, b), x.linearization.linear(for_tangents), samples, sums=sums)


@rule("matmul", "mm", "bmm", "mv", "__matmul__", "__rmatmul__")
def _matmul(function: Any, a: Any, *args: Any, **named: Any) -> LinearizedTensor:
    (b,) = (*args, *named.values())  # torch calls it other, mat2 or vec
    if function.__name__ == "__rmatmul__":
        a, b = b, a
    x, factor = (a, b) if isinstance(a, LinearizedTensor) else (b, a)
    if isinstance(factor, LinearizedTensor):
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    (for_value,), (for_tangents,) = constants(x, factor)
    rank, contracted = x.value.dim(), x.value.dim() - (1 if x is a or x.value.dim() == 1 else 2)
    samples = x.samples.kept((contracted,), "matmul")

    x_first = x is a

    def product(t: Tensor, by: Tensor) -> Tensor:
        return torch.matmul(t, by) if x_first else torch.matmul(by, t)

    value = product(x.value, for_value)
    # A vector takes an axis away from behind the batch axis; more axes of the constant are put in front.
    kept_rank = rank - (for_value.dim() == 1 and samples.dim < contracted)
    samples = samples if samples.count == 1 else samples.shifted(value.dim() - kept_rank)
    linearization = x.linearization.mapped(
        lambda t: product(t, like(for_tangents, t)), absolute=lambda t: product(t, size(for_tangents, t))
    )

    def sums() -> Sums:
        return Sums((x.value,), terms=x.value.size(contracted), back=for_value.numel())

    return x.replaced(value, linearization, samples, sums=sums)


@rule("addmm", "addmv", "baddbmm")
def _addmm(function: Any, input: Any, *args: Any, beta: Any = 1, alpha: Any = 1, **named: Any) -> LinearizedTensor:
    if not isinstance(input, LinearizedTensor):
        x = next(operand for operand in (*args, *named.values()) if isinstance(operand, LinearizedTensor))
        ((input,), _) = constants(x, input)  # so that it is multiplied in the precision of values
        if x.evaluation.settings.bounds and beta not in (0, 1, -1):
            raise NoBoundError
    total: LinearizedTensor = torch.mul(input, beta) + torch.matmul(*args, *named.values()) * alpha
    return total


@rule("einsum")
def _einsum(function: Any, equation: str, *operands: Any) -> LinearizedTensor:
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    where = [i for i, operand in enumerate(operands) if isinstance(operand, LinearizedTensor)]
    x: LinearizedTensor = operands[where[0]]
    if len(where) > 1:
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    for_value, for_tangents = constants(x, *operands)
    for_tangents[where[0]] = None  # the tangents themselves
    inputs, output = _explicit(equation.replace(" ", ""), [operand.dim() for operand in operands])
    label = inputs[where[0]][x.samples.dim]
    if x.samples.count > 1 and label not in output:
        raise MixedSamplesError(f"einsum {equation!r} sums over the axis that holds the samples")

    def product(t: Tensor, others: list[Any]) -> Tensor:
        terms = [t if i == where[0] else other for i, other in enumerate(others)]
        return torch.einsum(f"{','.join(inputs)}->{output}", *terms)

    samples = Samples(x.samples.count, max(output.find(label), 0), x.samples.inner)
    linearization = x.linearization.mapped(
        lambda t: product(t, [like(c, t) for c in for_tangents]),
        absolute=lambda t: product(t, [None if c is None else size(c, t) for c in for_tangents]),
    )
    value = product(x.value, for_value)

    def sums() -> Sums:
        named = [pair for term, t in zip(inputs, for_value, strict=True) for pair in zip(term, t.shape, strict=True)]
        lengths: dict[str, int] = {}
        for letter, length in named:
            lengths[letter] = max(length, lengths.get(letter, 1))
        products = math.prod(lengths.values())
        terms, back = (len(inputs) + math.ceil(products / max(1, t.numel())) for t in (value, x.value))
        return Sums((x.value,), terms=terms, back=back)

    return x.replaced(value, linearization, samples, sums=sums)


def _explicit(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """An einsum equation with letters for its ellipses and an output: one term for each operand, and the output."""
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    broadcast = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((n for n, term in zip(broadcast, terms, strict=True) if "..." in term), default=0)
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        output = "..." * ("..." in left) + "".join(once)
    letters = [term.replace("...", "".join(free[most - n : most])) for n, term in zip(broadcast, terms, strict=True)]
    return letters, output.replace("...", "".join(free[:most]))
