"""Entries that are written or added to given places of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.local import Sums, size
from llr_fast.linearized.rules.affine import constants, linearized_of, moves
from llr_fast.linearized.rules.places import fixed
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse

Write = Callable[[Tensor, Tensor], Tensor]  # the tensor with others [region] written or added to it


@rule("scatter", inplace=True, takes_ties=True)
def _scatter(
    function: Any, input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> LinearizedTensor:
    """Where several entries are written to one place, the last one stays."""
    written = value if src is None else src
    if reduce is not None:
        raise refuse(_first(input, index, written), function, "reduce= is not supported; use scatter_add")
    places = fixed(function, index)
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
def _index_copy(function: Any, input: Any, dim: int, index: Any, *args: Any, **named: Any) -> LinearizedTensor:
    (source,) = (*args, *named.values())  # torch calls it source or value
    places = fixed(function, index)
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
    places = fixed(function, index)
    src = src[tuple(slice(size) for size in places.shape)]

    def count(t: Tensor, s: Tensor) -> Tensor:
        return t.scatter_add(dim, places, s)

    def add(t: Tensor, s: Tensor) -> Tensor:
        return t.scatter_reduce(dim, places, s, reduce, include_self=include_self)

    adding = _Adding(count if reduce == "sum" and include_self else add, count)
    return _put(function, input, src, index, lambda t: t.gather(dim, places), adding)


@rule("index_add", inplace=True)
def _index_add(function: Any, input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> LinearizedTensor:
    places = fixed(function, index)

    def add(t: Tensor, s: Tensor) -> Tensor:
        return t.index_add(dim, places, s, alpha=alpha)

    def count(t: Tensor, s: Tensor) -> Tensor:
        return t.index_add(dim, places, s)

    def of_sizes(t: Tensor, s: Tensor) -> Tensor:
        return t.index_add(dim, places, s, alpha=abs(alpha))

    return _put(function, input, source, index, lambda t: t.index_select(dim, places), _Adding(add, count, of_sizes))


@dataclass(frozen=True)
class _Adding:
    """How entries are added up: `count` adds them as they are, `of_sizes` with absolute values of coefficients."""

    add: Write
    count: Write
    of_sizes: Write | None = None

    def sums(self, into: Tensor, source: Tensor, linearized: Sequence[bool]) -> Sums:
        """Of these values: each result has sums, what was there, a factor, and a quotient."""
        sizes = [
            torch.zeros_like(t, dtype=torch.float64) if depends else size(t)
            for t, depends in zip((into, source), linearized)
        ]
        operands = tuple(t for t, depends in zip((into, source), linearized) if depends)
        most = int(self.count(torch.zeros_like(into), torch.ones_like(source)).max()) if into.numel() else 0
        return Sums(operands, terms=most + 3, back=3, constant=(self.of_sizes or self.add)(*sizes))


def _put(
    function: Any, input: Any, source: Any, index: Any, read: Callable[[Any], Any], put: Write | _Adding
) -> LinearizedTensor:
    """`input` with `source` written or added at the places of an index; both may depend on the network's input.

    `read` gives the entries [region] of a tensor at these places.
    """
    x = _first(input, source, index)
    into = _value(x, input)
    region = read(torch.empty(1, device=into.device).expand(input.shape)).shape
    source = source.expand(region) if isinstance(source, LinearizedTensor) else source
    added = _value(x, source)
    added = added if isinstance(added, Tensor) else torch.as_tensor(added, dtype=into.dtype, device=into.device)
    added = added.to(into.device).expand(region)
    dtype = torch.result_type(into, added)
    into, added = into.to(dtype), added.to(dtype)
    adding = put if isinstance(put, _Adding) else None
    combine = put.add if isinstance(put, _Adding) else _placing(into, region, put)
    value = combine(into, added)
    samples = _samples(function_name(function), x, value, read, input, source, index)
    linearized = [isinstance(t, LinearizedTensor) for t in (input, source)]  # no more when tangents are replayed
    shapes = (into.shape, region)

    def of_both(along: Write) -> Callable[..., Tensor]:
        """The function of the tangents of both, of which a constant has none."""

        def linear(*tangents: Tensor) -> Tensor:
            rest = iter(tangents)
            pairs = zip(linearized, shapes, strict=True)
            return along(*(next(rest) if depends else tangents[0].new_zeros(shape) for depends, shape in pairs))

        return linear

    operands = [t.linearization for t in (input, source) if isinstance(t, LinearizedTensor)]
    if not operands:  # of the places alone
        nothing = x.linearization.mapped(lambda t: t.new_zeros(shapes[0]) + 0 * t.sum())
        return x.replaced(value, nothing, samples, exact=adding is None)
    absolute = of_both(adding.of_sizes) if adding and adding.of_sizes else None
    linearization = operands[0].mapped(of_both(combine), *operands[1:], absolute=absolute)
    sums = (lambda: adding.sums(into, added, linearized)) if adding else Sums
    return x.replaced(value, linearization, samples, exact=adding is None, sums=sums)


def _placing(into: Tensor, region: torch.Size, write: Write) -> Write:
    """What writes [region] into a tensor, and, as it only moves entries, does the same to tangents."""
    nowhere = torch.full(into.shape, -1, device=into.device)
    origin = write(nowhere, torch.arange(region.numel(), device=into.device).view(region))
    if not region.numel():
        return lambda t, s: t
    return lambda t, s: torch.where(origin >= 0, s.reshape(-1)[origin.clamp(min=0)], t)


def _samples(name: str, x: LinearizedTensor, value: Tensor, read: Callable[[Any], Any], *operands: Any) -> Samples:
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


def _value(x: LinearizedTensor, operand: Any) -> Any:
    return operand.value if isinstance(operand, LinearizedTensor) else constants(x, operand)[0][0]


def _first(*operands: Any) -> LinearizedTensor:
    """The first one that changes with the network's input, else the first one that depends on it."""
    found = linearized_of(*operands)
    return next(filter(moves, found), found[0])
