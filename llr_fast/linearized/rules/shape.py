"""Functions that move, select, join or sum entries."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.linearization import identity
from llr_fast.linearized.local import NoBoundError, Sums, ratio
from llr_fast.linearized.rules.affine import pointwise
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


@rule("reshape", "view", "flatten", "ravel", "unflatten", "squeeze", "unsqueeze")
def reshape(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    if args and isinstance(args[0], torch.dtype):
        raise refuse(x, function, "reading the bits of a tensor as another dtype is not piecewise linear")
    value = function(x.value, *args, **kwargs)
    shape = value.shape
    samples = x.samples.reshaped(x.value.shape, shape, function_name(function))
    return x.replaced(value, x.linearization.reshaped(shape), samples, sums=Sums)


@rule("view_as", "reshape_as", "expand_as")
def _shape_as(function: Any, x: Tensor, other: Tensor) -> Tensor:
    return x.expand(other.shape) if function is Tensor.expand_as else x.reshape(other.shape)


@rule("expand", "broadcast_to")
def _expand(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    return pointwise(x, function(x.value, *args, **kwargs), identity)


@rule("broadcast_tensors")
def _broadcast_tensors(function: Any, *tensors: Any) -> tuple[Tensor, ...]:
    tensors = tuple(tensors[0]) if len(tensors) == 1 and _sequence(tensors[0]) else tensors
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return tuple(t.expand(shape) for t in tensors)


@rule(
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "t", "adjoint", "T", "mT"),
    *("select", "narrow", "chunk", "split", "tensor_split", "unbind", "split_with_sizes", "diagonal", "sum", "mean"),
    Tensor.unfold,
)
def structural(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> Any:
    """A linear function whose output entries are sums of input entries, by shapes alone."""
    return _apply(function, _by_shapes, x, args, kwargs)


@rule("tril", "triu")
def _triangle(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> Any:
    """Which entries it keeps depends on their place along the last two axes."""
    axes = x.value.dim()
    x.samples.kept((axes - 2, axes - 1), function_name(function))
    return structural(function, x, *args, **kwargs)


@rule("diff")
def _diff(
    function: Any, x: Any, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> LinearizedTensor:
    parts = [part for part in (prepend, x, append) if part is not None]
    x = torch.cat(parts, dim) if len(parts) > 1 else x
    for _ in range(n):
        count = max(0, x.size(dim) - 1)
        x = x.narrow(dim, x.size(dim) - count, count) - x.narrow(dim, 0, count)
    return x  # type: ignore[no-any-return]


@rule("moveaxis")
def _moveaxis(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.movedim(x, *args, **kwargs)  # which torch.vmap knows


@rule(
    *("index_select", "__getitem__", "repeat", "tile", "repeat_interleave"),
    *("flip", "fliplr", "flipud", "roll", "rot90"),
)
def selection(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> Any:
    """Each entry of the output is one of the input."""
    for argument in (*args, *kwargs.values()):
        for index in argument if _sequence(argument) else [argument]:
            if isinstance(index, LinearizedTensor):
                raise refuse(
                    index, function, "an index depends on the network's input; gather takes one from sort etc."
                )
    return _apply(function, _by_entries, x, tuple(_without_masks(argument) for argument in args), kwargs)


@rule("cumsum")
def _cumsum(function: Any, x: LinearizedTensor, dim: int) -> LinearizedTensor:
    samples = x.samples.kept((dim % x.value.dim(),), "cumsum")
    length = x.value.size(dim)

    def sums() -> Sums:
        return Sums((x.value,), terms=length, back=length)

    return x.replaced(x.value.cumsum(dim), x.linearization.mapped(lambda t: t.cumsum(dim)), samples, sums=sums)


@rule("pad")
def _pad(
    function: Any, x: LinearizedTensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> LinearizedTensor:
    padded = F.pad(x.value, pad, mode, value)
    x.evaluation.padded |= value is not None and abs(value) == math.inf
    padded_axes = [x.value.dim() - 1 - i // 2 for i, width in enumerate(pad) if width]
    samples = x.samples.kept(padded_axes, "pad")
    if mode == "constant":
        return x.replaced(padded, x.linearization.mapped(lambda t: F.pad(t, pad)), samples, sums=Sums)
    linearization = x.linearization.batched(lambda t: F.pad(t, pad, mode))
    return x.replaced(padded, linearization, samples, sums=lambda: Sums(back=padded[0].numel()))


@rule("cat", "concat", "concatenate")
def _cat(function: Any, tensors: Sequence[Any], dim: int = 0) -> LinearizedTensor:
    """Constants keep their values in the value, and are zero in the linear part."""
    operands = [t for t in tensors if isinstance(t, LinearizedTensor)]
    first, constant = operands[0], operands[0].evaluation.settings.constant
    along_samples = dim % first.value.dim() == first.samples.dim
    if any(x.samples != first.samples for x in operands) or (along_samples and len(operands) < len(tensors)):
        first.samples.kept(range(first.value.dim()), "cat of tensors whose samples lie along different axes")
    first.evaluation.padded |= len(operands) < len(tensors)
    values = [t.value if isinstance(t, LinearizedTensor) else constant(t, first.value.dtype) for t in tensors]
    sizes = [None if isinstance(t, LinearizedTensor) else t.shape for t in tensors]

    def join(*parts: Tensor) -> Tensor:
        rest = iter(parts)
        return torch.cat([next(rest) if size is None else parts[0].new_zeros(size) for size in sizes], dim)

    linearization = first.linearization.mapped(join, *[x.linearization for x in operands[1:]])
    return first.replaced(torch.cat(values, dim), linearization, sums=Sums)


@rule("stack")
def _stack(function: Any, tensors: Sequence[Any], dim: int = 0) -> LinearizedTensor:
    rows: Any = [t.unsqueeze(dim) for t in tensors]
    return torch.cat(rows, dim)  # type: ignore[return-value]


@rule("hstack", "vstack")
def _stack_rows(function: Any, tensors: Sequence[Any]) -> LinearizedTensor:
    return torch.cat(tensors, int(function is torch.hstack))  # type: ignore[return-value, arg-type]


@rule("to", "type", "type_as", "float", "double", "half", "bfloat16", "bool", "int", "long", "cpu", "cuda")
def _to(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A certificate is one of the function itself: its values keep their precision, and rounding is refused."""
    stand_in = functools.partial(tree_map_only, LinearizedTensor, LinearizedTensor.stand_in)
    args, kwargs = stand_in((args, kwargs))
    if not isinstance(x, LinearizedTensor):
        return function(x, *args, **kwargs)
    declared = x.evaluation.settings.declared
    target = function(x.stand_in().new_empty(0), *args, **kwargs)
    if x.frozen and not (x.value.is_floating_point() and target.is_floating_point()):
        if x.rounded:
            raise NoBoundError
        precise = torch.float64 if declared and target.is_floating_point() else target.dtype
        return pointwise(x, x.value.to(target.device, precise), lambda t: t.to(target.device))
    if not target.is_floating_point() or (declared and target.dtype.itemsize < declared.itemsize):
        raise refuse(x, function, f"a cast to {target.dtype} rounds, which is not piecewise linear")
    if declared:
        return pointwise(x, x.value.to(target.device), lambda t: t.to(target.device))
    return pointwise(x, x.value.to(target), lambda t: t.to(target))


Follow = Callable[[Callable[..., Any], LinearizedTensor, tuple[Any, ...], list[Any], str], list[Samples]]


def _apply(function: Any, follow: Follow, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A linear function of one tensor; `follow` finds where the samples of each output lie."""
    if not isinstance(x, LinearizedTensor):
        operand = next(a for a in (*args, *kwargs.values()) if isinstance(a, LinearizedTensor))
        raise refuse(operand, function, "an index or argument depends on the network's input")
    if kwargs.get("dtype") is not None:
        raise refuse(x, function, "dtype= is not supported")

    def run(t: Tensor, *rest: Any) -> Any:
        return function(t, *rest, **kwargs)

    value = run(x.value, *args)
    parts = [value] if isinstance(value, Tensor) else value
    name = function_name(function)
    samples = [x.samples] * len(parts) if x.samples.count == 1 else follow(run, x, args, parts, name)
    if isinstance(value, Tensor):
        linearization = x.linearization.mapped(lambda t: run(t, *args))
        return x.replaced(value, linearization, samples[0], sums=lambda: _sums(name, x.value, value))
    linearizations = x.linearization.parts(lambda t: run(t, *args), len(parts))
    return type(value)(x.replaced(*part) for part in zip(value, linearizations, samples, strict=True))


def _sums(name: str, before: Tensor, after: Tensor) -> Sums:
    """Of the functions of `structural` and `selection`."""
    if name in ("sum", "mean"):
        return Sums((before,), terms=ratio(before, after) + 1, back=1)
    moves = (
        name in ("flip", "fliplr", "flipud", "roll")
        or after.untyped_storage()._cdata == before.untyped_storage()._cdata
    )
    return Sums(back=0 if moves else after.numel())


def _by_shapes(
    run: Callable[..., Any], x: LinearizedTensor, args: tuple[Any, ...], parts: list[Tensor], name: str
) -> list[Samples]:
    """The batch axis of each output: the one that grows when that of the input does; computes shapes alone."""
    old = x.value.shape
    doubled = [size * 2 if dim == x.samples.dim else size for dim, size in enumerate(old)]
    try:
        grown = run(torch.empty(doubled, device="meta"), *_on_meta(args))
    except (RuntimeError, IndexError):
        raise MixedSamplesError(f"{name} depends on the number of samples") from None
    shapes = [grown.shape] if isinstance(grown, Tensor) else [t.shape for t in grown]
    if len(shapes) != len(parts):
        raise MixedSamplesError(f"{name} takes the samples of the batch apart")
    return [x.samples.probed(old, part.shape, larger, name) for part, larger in zip(parts, shapes, strict=True)]


def _by_entries(
    run: Callable[..., Any], x: LinearizedTensor, args: tuple[Any, ...], parts: list[Tensor], name: str
) -> list[Samples]:
    """The batch axis of each output, found by doing the same to the numbers of the samples."""
    owners = run(x.samples.owners(x.value), *args)
    owners = [owners] if isinstance(owners, Tensor) else owners
    return [x.samples.located(owner, name) for owner in owners]


def _on_meta(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.to("meta")
    return type(argument)(_on_meta(a) for a in argument) if _sequence(argument) else argument


def _without_masks(argument: Any) -> Any:
    """Masks as index tensors, whose number of entries is known to shape computations; torch also takes bytes."""
    if isinstance(argument, Tensor) and argument.dtype in (torch.bool, torch.uint8):
        indices = argument.nonzero(as_tuple=True)
        return indices[0] if len(indices) == 1 else indices
    if not isinstance(argument, tuple):
        return argument
    parts: list[Any] = []
    for part in map(_without_masks, argument):  # a mask of several axes is as many indices
        parts += part if isinstance(part, tuple) else [part]
    return tuple(parts)


def _sequence(argument: Any) -> bool:
    return isinstance(argument, (list, tuple))
