"""Entries that are read from and written to given places, and the products with sparse constants that these make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.rules.affine import constants, moves
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse

Read = Callable[[Any], Any]  # the entries [region] of a tensor at the places that are written to
Write = Callable[[Tensor, Tensor], Tensor]  # the tensor with others [region] written or added there


@rule("gather", "take_along_dim")
def _gather(function: Any, input: Any, *args: Any, **kwargs: Any) -> LinearizedTensor:
    index: Any = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
    places = _fixed(function, index)
    args = tuple(places if a is index else a for a in args)
    kwargs = {name: places if a is index else a for name, a in kwargs.items()}

    def read(t: Tensor) -> Tensor:
        found: Tensor = function(t, *args, **kwargs)
        return found

    name = function_name(function)
    if not isinstance(input, LinearizedTensor):
        return _looked_up(index, read(constants(index, input)[0][0]), name)
    value, samples = read(input.value), input.samples
    if samples.count > 1:
        samples = samples.located(read(samples.owners(input.value)), name)
        if isinstance(index, LinearizedTensor) and index.samples.shifted(value.dim() - index.value.dim()) != samples:
            raise MixedSamplesError(f"{name} takes entries of one sample from the places of another")
    return input.replaced(value, input.linearization.mapped(read), samples, exact=True)


@rule("embedding")
def _embedding(function: Any, input: Any, weight: Tensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    if not isinstance(input, LinearizedTensor) or moves(weight):
        raise refuse(weight, function, "expected places and a constant weight")  # type: ignore[arg-type]
    (table,), _ = constants(input, weight)
    return _looked_up(input, F.embedding(_fixed(function, input), table), "embedding")


def _looked_up(index: LinearizedTensor, value: Tensor, name: str) -> LinearizedTensor:
    """Entries of a constant, for each of the places one or, along more axes, several."""
    more = value.dim() - index.value.dim()
    if value.shape[: index.value.dim()] != index.value.shape:
        raise refuse(index, name, "expected places of the shape of the result")
    nothing = index.linearization.mapped(lambda t: t[(...,) + (None,) * more].expand(value.shape))
    return index.replaced(value, nothing)


def _fixed(function: Any, index: Any) -> Tensor:
    """The numbers of an index, which has to stay the same in a linear region."""
    if moves(index):
        raise refuse(index, function, "an index depends on the network's input")
    found: Tensor = index.value if isinstance(index, LinearizedTensor) else index
    return found


@rule("scatter", inplace=True, takes_ties=True)
def _scatter(
    function: Any, input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> LinearizedTensor:
    """Where several entries are written to one place, the last one stays."""
    written = value if src is None else src
    if reduce is not None:
        raise refuse(_first(input, index, written), function, "reduce= is not supported; use scatter_add")
    places = _fixed(function, index)
    if isinstance(written, Tensor) and written.dim():
        written = written[tuple(slice(size) for size in places.shape)]
    _check_ties(function, input, dim, index, written)
    return _put(
        function, input, written, index, lambda t: t.gather(dim, places), lambda t, s: t.scatter(dim, places, s)
    )


def _check_ties(function: Any, input: Any, dim: int, index: Any, written: Any) -> None:
    """Which of equal entries were chosen does not matter where they are zeros among zeros."""
    ties = index.ties if isinstance(index, LinearizedTensor) else None
    if ties is not None:
        numbers = written.value if isinstance(written, LinearizedTensor) else torch.as_tensor(written)
        zeros = not isinstance(input, LinearizedTensor) and not input.any()
        if not zeros or bool((numbers.expand(ties.shape)[ties] != 0).any()):
            raise refuse(index, function, "the places of equal entries may change while their order stays the same")


@rule("index_copy", "index_fill", inplace=True)
def _index_copy(function: Any, input: Any, dim: int, index: Any, source: Any) -> LinearizedTensor:
    places = _fixed(function, index)
    return _put(
        function, input, source, index, lambda t: t.index_select(dim, places), lambda t, s: t.index_copy(dim, places, s)
    )


@rule(Tensor.__setitem__, writes=True)
def _setitem(function: Any, input: Any, index: Any, value: Any) -> LinearizedTensor:
    parts = index if isinstance(index, tuple) else (index,)
    depending = [part for part in parts if isinstance(part, LinearizedTensor)]
    if depending:
        mask: Any = depending[0]
        if len(parts) > 1 or mask.dtype != torch.bool or (isinstance(value, Tensor) and value.dim()):
            raise refuse(mask, function, "of what depends on the network's input a mask alone, of numbers, is an index")
        mask = mask[(...,) + (None,) * (input.dim() - mask.dim())]
        return torch.where(mask, value, input)  # type: ignore[return-value]

    def write(t: Tensor, s: Tensor) -> Tensor:
        changed = t.clone()
        changed[index] = s
        return changed

    return _put(function, input, value, None, lambda t: t[index], write)


@rule("scatter_add", inplace=True)
def _scatter_add(function: Any, input: Any, dim: int, index: Any, src: Any) -> LinearizedTensor:
    return _scatter_reduce(function, input, dim, index, src, "sum")


@rule("scatter_reduce", inplace=True)
def _scatter_reduce(
    function: Any, input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> LinearizedTensor:
    if reduce not in ("sum", "mean"):
        raise refuse(_first(input, index, src), function, "of all reduce= 'sum' and 'mean' are supported")
    places = _fixed(function, index)
    src = src[tuple(slice(size) for size in places.shape)]

    def add(t: Tensor, s: Tensor) -> Tensor:
        return t.scatter_reduce(dim, places, s, reduce, include_self=include_self)

    if reduce == "sum" and include_self:
        return _put(function, input, src, index, lambda t: t.gather(dim, places), None, lambda t, s: t.scatter_add(dim, places, s))
    return _put(function, input, src, index, lambda t: t.gather(dim, places), None, add)


@rule("index_add", inplace=True)
def _index_add(function: Any, input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> LinearizedTensor:
    places = _fixed(function, index)

    def add(t: Tensor, s: Tensor) -> Tensor:
        return t.index_add(dim, places, s, alpha=alpha)

    return _put(function, input, source, index, lambda t: t.index_select(dim, places), None, add)


def _put(
    function: Any,
    input: Any,
    source: Any,
    index: Any,
    read: Read,
    write: Write | None,
    add: Write | None = None,
) -> LinearizedTensor:
    """`input` with `source` written or added at the places of an index; both may depend on the network's input."""
    x = _first(input, source, index)
    (into_value,) = _values(x, input)
    region = read(torch.empty(1, device=into_value.device).expand(input.shape)).shape
    if isinstance(source, LinearizedTensor):
        source = source.expand(region)
    (from_value,) = _values(x, source)
    from_value = torch.as_tensor(from_value, device=into_value.device).expand(region)
    combine = add or _placing(into_value, region, write)  # type: ignore[arg-type]
    dtype = torch.result_type(into_value, from_value)
    value = combine(into_value.to(dtype), from_value.to(dtype))
    samples = _samples(function_name(function), x, value, read, input, source, index)
    linearized = [isinstance(t, LinearizedTensor) for t in (input, source)]  # not all are any more when this is replayed
    shapes = (into_value.shape, region)

    def linear(*tangents: Tensor) -> Tensor:
        rest = iter(tangents)
        pairs = zip(linearized, shapes, strict=True)
        return combine(*(next(rest) if given else tangents[0].new_zeros(shape) for given, shape in pairs))

    first, *others = [t.linearization for t in (input, source) if isinstance(t, LinearizedTensor)] or [None]
    if first is None:  # of the places alone
        nothing = x.linearization.mapped(lambda t: t.new_zeros(shapes[0]) + 0 * t.sum())
        return x.replaced(value, nothing, samples)
    return x.replaced(value, first.mapped(linear, *others), samples, exact=add is None)


def _placing(into: Tensor, region: torch.Size, write: Write) -> Write:
    """What writes [region] into a tensor, and, as it only moves entries, does the same to tangents."""
    nowhere = torch.full(into.shape, -1, device=into.device)
    origin = write(nowhere, torch.arange(region.numel(), device=into.device).view(region))
    if not region.numel():
        return lambda t, s: t
    return lambda t, s: torch.where(origin >= 0, s.reshape(-1)[origin.clamp(min=0)], t)


def _samples(name: str, x: LinearizedTensor, value: Tensor, read: Read, *operands: Any) -> Samples:
    """Where the samples of the result lie: every entry that is written belongs to the sample of its place."""
    into, *others = operands
    count = x.samples.count
    if count == 1:
        return x.samples
    owners = [t.samples.owners(t.value) for t in others if isinstance(t, LinearizedTensor)]
    if isinstance(into, LinearizedTensor):
        candidates = [into.samples]
    else:
        inner = next(t.samples.inner for t in others if isinstance(t, LinearizedTensor))
        sizes = enumerate(value.shape)
        candidates = [Samples(count, dim, inner) for dim, size in sizes if size and size % (count * inner) == 0]
    for samples in candidates:
        found = read(samples.owners(value))
        if all(owner.shape == found.shape and torch.equal(owner, found) for owner in owners):
            return samples
    raise MixedSamplesError(f"{name} writes entries of one sample to the places of another")


def _values(x: LinearizedTensor, *operands: Any) -> tuple[Any, ...]:
    return tuple(t.value if isinstance(t, LinearizedTensor) else constants(x, t)[0][0] for t in operands)


def _first(*operands: Any) -> LinearizedTensor:
    """The first one that changes with the network's input, else the first one that depends on it."""
    found = [operand for operand in operands if isinstance(operand, LinearizedTensor)]
    return next(filter(moves, found), found[0])
