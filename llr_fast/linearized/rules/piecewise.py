"""Piecewise-linear functions: they report their neurons and multiply the linearization by the slope of the piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.layers import Ramp
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import NoBoundError, Sums
from llr_fast.linearized.rules.affine import moves, pointwise, require_constant
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


def activate(
    x: LinearizedTensor,
    name: str,
    value: Tensor,
    kinks: tuple[float, ...],
    slopes: tuple[Any, ...],
    shifts: float | None = None,
    terms: int = 1,
) -> LinearizedTensor:
    """The function of `x` with the given kinks in rising order and the slopes of the pieces between them.

    A point on a kink belongs to the piece below it. Slopes of 0 and 1 stay a mask, an entry of which takes one byte;
    what passes is rounded if the function `shifts` it, by so much. Other slopes round as many times as `terms` says.
    """
    if not x.value.numel():
        return x.replaced(value, x.linearization)
    if x.value.is_complex():
        raise refuse(x, name, "a function of complex numbers is not piecewise linear; of their real parts it is")
    exact = _is_mask(slopes) and shifts is None
    if x.frozen:  # no neurons
        if x.evaluation.settings.bounds and not exact:
            raise NoBoundError
        return pointwise(x, value, torch.zeros_like)
    above = [x.value > kink for kink in kinks]
    piece = x.value.new_empty(0, dtype=torch.int16)
    if x.evaluation.settings.certificate:
        piece = above[0] if len(above) == 1 else sum(above, torch.zeros_like(x.value, dtype=torch.int16))
    linearization = x.activated(name, kinks, piece, _slope(x, above, slopes))

    def sums() -> Sums:
        return Sums() if exact else Sums((x.value,), terms=terms, back=terms, constant=shifts or 0.0)

    return x.replaced(value, linearization, exact=exact, sums=sums)


def activate_ramp(x: LinearizedTensor, name: str, function: Callable[[Tensor], Tensor], ramp: Ramp) -> LinearizedTensor:
    """The ramp of `x`, which `function` computes."""
    fused = x.evaluation.ramp(x.value, ramp, x.linearization) if moves(x) and x.value.numel() else None
    if fused is None:
        return activate(x, name, function(x.value), ramp.kinks, ramp.slopes(x.value))
    return x.replaced(*fused)


def _slope(x: LinearizedTensor, above: list[Tensor], slopes: tuple[Any, ...]) -> Tensor:
    """[*x.shape]: of the piece that each entry is on, in the dtype of the linearization or as a mask."""
    is_mask = _is_mask(slopes)
    if is_mask and slopes == (0, 1):
        return above[0]
    dtype = torch.bool if is_mask else x.linearization.dtype
    slope = torch.zeros(x.value.shape, dtype=dtype, device=x.value.device)
    for beyond, after in zip((None, *above), slopes, strict=True):
        if isinstance(after, Tensor):
            after = after.to(dtype)
            slope = slope + after if beyond is None else torch.where(beyond, after, slope)
        else:  # stays a number: as a tensor it would be copied to a GPU, which waits for it
            slope = slope.fill_(after) if beyond is None else slope.masked_fill(beyond, after)
    return slope


def _is_mask(slopes: tuple[Any, ...]) -> bool:
    return not any(isinstance(slope, Tensor) or slope not in (0, 1) for slope in slopes)


@rule("relu", inplace=True)
def _relu(function: Any, x: LinearizedTensor, inplace: bool = False) -> LinearizedTensor:
    return activate_ramp(x, "relu", torch.relu, Ramp())


@rule("leaky_relu", inplace=True)
def _leaky_relu(
    function: Any, x: LinearizedTensor, negative_slope: float = 0.01, inplace: bool = False
) -> LinearizedTensor:
    ramp = Ramp(below=negative_slope)
    return activate_ramp(x, "leaky_relu", lambda z: F.leaky_relu(z, negative_slope), ramp)


@rule("rrelu", inplace=True)
def _rrelu(
    function: Any,
    x: LinearizedTensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> LinearizedTensor:
    if training:
        raise ValueError(
            f"rrelu in module {x.evaluation.module.path()!r} draws random slopes in training mode; call model.eval()"
        )
    if x.evaluation.settings.bounds:
        raise NoBoundError  # the slope itself is rounded
    return _leaky_relu(function, x, (lower + upper) / 2)


@rule("prelu")
def _prelu(function: Any, x: LinearizedTensor, weight: Tensor) -> LinearizedTensor:
    require_constant(function, weight)
    keep = x.evaluation.settings.constant
    ramp = Ramp(below=keep(weight, x.linearization.dtype))
    return activate_ramp(x, "prelu", lambda z: F.prelu(z, keep(weight, z.dtype)), ramp)


@rule("relu6", inplace=True)
def _relu6(function: Any, x: LinearizedTensor, inplace: bool = False) -> LinearizedTensor:
    return activate_ramp(x, "relu6", F.relu6, Ramp(upper=6.0))


@rule("hardtanh", inplace=True)
def _hardtanh(
    function: Any, x: LinearizedTensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> LinearizedTensor:
    return _clamp(function, x, min_val, max_val)


@rule("clamp", "clip", inplace=True)
def _clamp(function: Any, x: LinearizedTensor, min: Any = None, max: Any = None) -> LinearizedTensor:
    min, max = _as_number(min), _as_number(max)
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        at_least, at_most = (b if b is None else torch.as_tensor(b, device=x.value.device) for b in (min, max))
        raised = x if at_least is None else larger_or_smaller(torch.maximum, x, at_least)
        return raised if at_most is None else larger_or_smaller(torch.minimum, raised, at_most)
    lower, upper = (-math.inf if min is None else min), (math.inf if max is None else max)
    ramp = Ramp(float(lower), float(upper))
    if not ramp.kinks:
        return pointwise(x, x.value.clamp(min, max), identity if lower < upper else torch.zeros_like)
    name = function_name(function).rstrip("_")
    if lower >= upper:
        return activate(x, name, x.value.clamp(min, max), ramp.kinks, ramp.slopes(x.value))
    return activate_ramp(x, name, lambda z: z.clamp(min, max), ramp)


def _as_number(bound: Any) -> Any:
    """A constant of no axes is one number, and makes one neuron of two kinks with the other bound."""
    constant = isinstance(bound, Tensor) and not isinstance(bound, LinearizedTensor) and not bound.requires_grad
    return bound.item() if constant and bound.dim() == 0 else bound


@rule("clamp_min", inplace=True)
def _clamp_min(function: Any, x: LinearizedTensor, min: Any) -> LinearizedTensor:
    return _clamp(torch.clamp, x, min=min)


@rule("clamp_max", inplace=True)
def _clamp_max(function: Any, x: LinearizedTensor, max: Any) -> LinearizedTensor:
    return _clamp(torch.clamp, x, max=max)


@rule("threshold", "_threshold", inplace=True)
def _threshold(
    function: Any, x: LinearizedTensor, threshold: float, value: float, inplace: bool = False
) -> LinearizedTensor:
    passed = F.threshold(x.value, threshold, value)
    if math.isinf(threshold):
        return pointwise(x, passed, identity if threshold < 0 else torch.zeros_like)
    return activate(x, "threshold", passed, (float(threshold),), (0.0, 1.0))


@rule("abs", "absolute", "__abs__", inplace=True)
def _abs(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return activate(x, "abs", x.value.abs(), (0.0,), (-1.0, 1.0), terms=0)


@rule("hardsigmoid")
def _hardsigmoid(function: Any, x: LinearizedTensor, inplace: bool = False) -> LinearizedTensor:
    return activate(x, "hardsigmoid", F.hardsigmoid(x.value), (-3.0, 3.0), (0.0, 1 / 6, 0.0), shifts=1.0, terms=4)


@rule("hardshrink")
def _hardshrink(function: Any, x: LinearizedTensor, lambd: float = 0.5) -> LinearizedTensor:
    return activate(x, "hardshrink", F.hardshrink(x.value, lambd), (-lambd, lambd), (1.0, 0.0, 1.0))


@rule("softshrink")
def _softshrink(function: Any, x: LinearizedTensor, lambd: float = 0.5) -> LinearizedTensor:
    return activate(x, "softshrink", F.softshrink(x.value, lambd), (-lambd, lambd), (1.0, 0.0, 1.0), shifts=lambd)


@rule("maximum", "minimum", "fmax", "fmin")
def larger_or_smaller(function: Any, input: Any, other: Any) -> LinearizedTensor:
    """The neuron is a - b; of the two one passes as it is, so that a and b that are the same neuron differ by 0."""
    difference: LinearizedTensor = input - other
    name, larger = function_name(function), "max" in function.__name__
    a, b = (t.value if isinstance(t, LinearizedTensor) else t.to(difference.value.dtype) for t in (input, other))
    fixed = _never_passes(input, a, larger) | _never_passes(other, b, larger)
    fixed_somewhere = bool(fixed.any())
    if fixed_somewhere:  # there the neuron is dead
        largest = torch.finfo(difference.value.dtype).max
        value = difference.value.masked_fill(fixed & (a > b), largest).masked_fill(fixed & ~(a > b), -largest)
        cut = difference.linearization.pointwise(lambda t: torch.where(fixed, 0.0, t), value.shape)
        difference = difference.replaced(value, cut, sums=Sums)
    passes = (difference.value > 0) == larger  # of a, else of b
    value = function(a, b)
    activated = activate(difference, name, value, (0.0,), (0.0, 1.0) if larger else (1.0, 0.0))
    if isinstance(input, LinearizedTensor) and isinstance(other, LinearizedTensor):
        chosen = input.linearization.pointwise(lambda s, t: torch.where(passes, s, t), value.shape, other.linearization)
    elif isinstance(other, LinearizedTensor):
        chosen = other.linearization.pointwise(lambda t: torch.where(passes, 0.0, t), value.shape)
    elif fixed_somewhere:
        chosen = input.linearization.pointwise(lambda t: torch.where(passes, t, 0.0), value.shape)
    else:
        return activated
    return difference.replaced(value, chosen, exact=True)


def _never_passes(operand: Any, value: Tensor, larger: bool) -> Tensor:
    """Where the operand is an infinite constant: -inf in a maximum and inf in a minimum are, whatever it is."""
    return value == (-math.inf if larger else math.inf) if isinstance(operand, LinearizedTensor) else value.isinf()
