"""Comparisons and piecewise-constant functions: results that stay the same in a linear region, and their kinks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import NoBoundError, Sums
from llr_fast.linearized.rules.affine import (
    broadcast_samples,
    constants,
    linearized_of,
    moves,
    pointwise,
    require_constant,
)
from llr_fast.linearized.rules.piecewise import activate
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse
from llr_fast.linearized.torch_modes import is_traced


@rule("gt", "greater", "ge", "greater_equal", "lt", "less", "le", "less_equal", "eq", Tensor.__eq__, "ne", "not_equal")
def _compare(function: Any, input: Any, other: Any) -> LinearizedTensor:
    """The difference of both is a neuron, whose side decides."""
    name = function_name(function).strip("_")
    if not moves(input) and not moves(other):
        return _entrywise(function, input, other)
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        x: Any
        x, number = (input, other) if isinstance(input, Tensor) else (other, input)
        return _step(x, name, function(*(t.value if t is x else t for t in (input, other))), (float(number),))
    difference: Any = input - other
    a, b = (t.value if isinstance(t, LinearizedTensor) else t for t in (input, other))
    value = function(a.to(difference.value.dtype), b.to(difference.value.dtype))
    return _step(difference, name, value, (0.0,))


def _step(x: LinearizedTensor, name: str, value: Tensor, kinks: tuple[float, ...]) -> LinearizedTensor:
    """A function of `x` that is constant between its kinks."""
    if not all(map(math.isfinite, kinks)):
        return pointwise(x, value, torch.zeros_like).freeze()
    return activate(x, name, value, kinks, (0.0,) * (len(kinks) + 1)).freeze()


@rule("sign", "sgn", inplace=True)
def _sign(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return _step(x, "sign", x.value.sign(), (0.0,))


@rule("signbit")
def _signbit(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return _step(x, "signbit", x.value.signbit(), (0.0,))


@rule("heaviside", inplace=True)
def _heaviside(function: Any, x: LinearizedTensor, values: Tensor) -> LinearizedTensor:
    require_constant(function, values)
    if not isinstance(x, LinearizedTensor):
        raise refuse(values, function, "its value at 0 depends on the network's input")
    (values,), _ = constants(x, values)
    x = x.expand(torch.broadcast_shapes(x.value.shape, values.shape))  # type: ignore[assignment]
    return _step(x, "heaviside", x.value.detach().heaviside(values), (0.0,))


# How far below and above the integer that is the result its step reaches.
_ROUNDED = {"floor": (0.0, 1.0), "ceil": (-1.0, 0.0), "round": (-0.5, 0.5)}


@rule("floor", "ceil", "round", inplace=True)
def _round(function: Any, x: LinearizedTensor, *, decimals: int = 0) -> LinearizedTensor:
    """The neuron is what is rounded off: its kinks are those of the step that it is on."""
    name = function_name(function).rstrip("_")
    if decimals:
        raise refuse(x, function, "decimals= is not supported")
    if x.frozen:
        return _entrywise(function, x)
    value = function(x.value.clone())  # which it may write to
    same = x.linearization.pointwise(identity, value.shape)
    off = x.replaced(x.value - value, same, exact=True, sums=lambda: Sums(terms=1, once=True))
    nothing = torch.zeros_like(value, dtype=torch.bool)
    flat = off.activated(name, _ROUNDED[name], value.detach().long(), nothing)
    return x.replaced(value, flat, exact=True).freeze()


@rule("floor_divide", "__floordiv__")
def _floor_divide(function: Any, x: Any, other: Any) -> LinearizedTensor:
    if not moves(x) and not moves(other):
        return _entrywise(function, x, other)
    return torch.floor(torch.div(x, other))  # type: ignore[return-value]


@rule("remainder")
def _remainder(function: Any, x: Any, other: Any) -> LinearizedTensor:
    if not moves(x) and not moves(other):
        return _entrywise(function, x, other)
    return x - torch.floor(torch.div(x, other)) * other  # type: ignore[no-any-return]


@rule("fake_quantize_per_tensor_affine")
def _fake_quantize(
    function: Any, x: LinearizedTensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> LinearizedTensor:
    require_constant(function, scale, zero_point)
    value = function(x.value, scale, zero_point, quant_min, quant_max)
    limits = (quant_min - zero_point, quant_max - zero_point)
    return _quantized(x, function, value, torch.as_tensor(scale, device=value.device), limits)


@rule("fake_quantize_per_channel_affine")
def _fake_quantize_by_channel(
    function: Any, x: LinearizedTensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> LinearizedTensor:
    require_constant(function, scale, zero_point)
    value = function(x.value, scale, zero_point, axis, quant_min, quant_max)
    shape = [-1 if d == axis % x.value.dim() else 1 for d in range(x.value.dim())]
    limits = (quant_min - zero_point.view(shape), quant_max - zero_point.view(shape))
    return _quantized(x, function, value, scale.view(shape), limits)


def _quantized(
    x: LinearizedTensor, function: Any, value: Tensor, scale: Tensor, limits: tuple[Any, Any]
) -> LinearizedTensor:
    """Rounded to multiples of the scale within limits: from each a step leads up and one down, but out of the limits.

    Torch's gradient goes straight through; the function itself is constant between its steps.
    """
    if x.evaluation.settings.bounds:
        raise NoBoundError
    y: Any = x * scale.detach().float().reciprocal()  # of that precision in torch
    level = torch.maximum(torch.minimum(y.value.detach().round(), limits[1] + 0 * y.value), limits[0] + 0 * y.value)
    dead = torch.stack([level <= limits[0], level >= limits[1]], -1)
    z = y.value.unsqueeze(-1) - torch.stack([level - 0.5, level + 0.5], -1)

    def twice(t: Tensor) -> Tensor:
        return t.unsqueeze(-1).expand(*t.shape, 2).masked_fill(dead, 0.0)

    steps = y.replaced(z.masked_fill(dead, torch.finfo(z.dtype).max), y.linearization.mapped(twice), exact=True)
    piece = level.long().unsqueeze(-1).expand(z.shape)
    steps.activated(function_name(function), (0.0,), piece, torch.ones_like(dead))
    return pointwise(x, value, torch.zeros_like).freeze()


_LOGIC = (
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_not",
)


@rule(*_LOGIC, "__and__", "__or__", "__xor__", "__invert__", inplace=True)
def _logic(function: Any, *operands: Any) -> LinearizedTensor:
    for operand in operands:
        if moves(operand):
            raise refuse(operand, function, "only what comparisons found may be combined")
    return _entrywise(function, *operands)


def _entrywise(function: Any, *operands: Any) -> LinearizedTensor:
    """Any function of single entries that do not change within a linear region."""
    frozen = linearized_of(*operands)
    value = function(*(t.value.clone() if isinstance(t, LinearizedTensor) else t for t in operands))
    exact = not value.is_floating_point() or function_name(function).rstrip("_") in _ROUNDED
    if frozen[0].evaluation.settings.bounds and not (exact and not any(t.rounded for t in frozen)):
        raise NoBoundError
    nothing = frozen[0].linearization.pointwise(torch.zeros_like, value.shape)
    samples = broadcast_samples(value, function_name(function), *frozen)
    return frozen[0].replaced(value, nothing, samples, exact=True).freeze()


@rule("any", "all")
def _any(function: Any, x: LinearizedTensor, dim: Any = None, keepdim: bool = False) -> LinearizedTensor:
    if moves(x):
        raise refuse(x, function, "only what comparisons found may be combined")
    dims = {} if dim is None else {"dim": dim, "keepdim": keepdim}
    if function_name(function) == "any":
        return x.bool().long().sum(**dims) > 0  # type: ignore[return-value]
    return torch.logical_not(x).long().sum(**dims) == 0  # type: ignore[return-value]


@rule("isfinite", "isinf", "isnan", "isposinf", "isneginf")
def _kind(function: Any, x: LinearizedTensor) -> Tensor:
    """What is finite stays finite nearby; where the answer is the same everywhere a model may branch on it."""
    found: Tensor = function(x.value)
    if not is_traced() and found.numel() and bool((found == found.flatten()[0]).all()):
        return found
    return pointwise(x, found, torch.zeros_like).freeze()


@rule("one_hot")
def _one_hot(function: Any, x: LinearizedTensor, num_classes: int = -1) -> LinearizedTensor:
    if moves(x) or num_classes < 0:
        raise refuse(x, function, "expected places that stay the same in a linear region, and num_classes=")
    value = function(x.value, num_classes)
    nothing = x.linearization.mapped(lambda t: t.unsqueeze(-1).expand(*t.shape, num_classes))
    return x.replaced(value, nothing, exact=True).freeze()
