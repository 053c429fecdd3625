"""Functions of the order of entries: the largest, the sorted ones. What is ahead of what is a neuron.

Each works on rows [R, n] of the entries that it compares. The places of entries stay the same as long as their order
does, so they may select entries of other tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.local import Sums
from llr_fast.linearized.rules.piecewise import larger_or_smaller
from llr_fast.linearized.rules.pooling import looks_for_padding
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


@rule("max", "min")
def _max(function: Any, a: Any, *args: Any, **kwargs: Any) -> Any:
    other = kwargs.get("other", args[0] if args else None)
    if isinstance(other, Tensor):
        return larger_or_smaller(torch.maximum if "max" in function_name(function) else torch.minimum, a, other)
    return _max_along(function, a, *args, **kwargs)


def _max_along(function: Any, x: LinearizedTensor, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        return _extremum(function, x)
    rows, winner = _winners(function, x, [dim])
    return _named(function, [_reduced(t, x, [dim], keepdim) for t in (_taken(rows, winner), _places(rows, winner))])


@rule("amax", "amin")
def _extremum(function: Any, x: LinearizedTensor, dim: Any = (), keepdim: bool = False) -> LinearizedTensor:
    dims = axes(x, dim)
    rows, winner = _winners(function, x, dims)
    extremum = torch.amax if "max" in function_name(function) else torch.amin  # shares gradients out among equal ones
    return _reduced(_taken(rows, winner, extremum(rows.value, -1, keepdim=True)), x, dims, keepdim)


@rule("aminmax")
def _aminmax(function: Any, x: LinearizedTensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    return _named(function, [f(x, axes(x, dim), keepdim) for f in (torch.amin, torch.amax)])


@rule("argmax", "argmin")
def _argmax(function: Any, x: LinearizedTensor, dim: int | None = None, keepdim: bool = False) -> LinearizedTensor:
    dims = axes(x, dim)
    return _reduced(_places(*_winners(function, x, dims)), x, dims, keepdim)


@rule("sort")
def _sort(function: Any, x: LinearizedTensor, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    rows = _rows(function, x, [dim])
    values, places = rows.value.sort(dim=-1, descending=descending, stable=stable)
    _collect(rows, function, places[:, 1:], places[:, :-1], places[:, :-1])
    return _named(function, [_restored(t, x, dim) for t in (_taken(rows, places, values), _places(rows, places))])


@rule("argsort")
def _argsort(
    function: Any, x: LinearizedTensor, dim: int = -1, descending: bool = False, *, stable: bool = False
) -> LinearizedTensor:
    return torch.sort(x, dim=dim, descending=descending, stable=stable)[1]  # type: ignore[return-value]


@rule("msort")
def _msort(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return torch.sort(x, 0)[0]  # type: ignore[return-value]


@rule("topk")
def _topk(function: Any, x: LinearizedTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The order of those that are chosen is part of the pattern, also where they are not asked for in order."""
    rows = _rows(function, x, [dim])
    values, places = rows.value.topk(k, -1, largest)
    left = torch.ones_like(rows.value, dtype=torch.bool).scatter(-1, places, False)
    others = left.nonzero()[:, 1].view(len(left), left.size(1) - k)
    last = places[:, -1:].expand(-1, others.size(1) if k else 0)
    others = others[:, : last.size(1)]
    ahead, behind = torch.cat([places[:, :-1], last], 1), torch.cat([places[:, 1:], others], 1)
    _collect(rows, function, ahead, behind, ahead)
    found = _taken(rows, places, values), _places(rows, places, _ties(rows, values[:, -1:], others, values))
    return _named(function, [_restored(t, x, dim) for t in found])


@rule("kthvalue")
def _kthvalue(function: Any, x: LinearizedTensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return _named(function, _ranked(function, x, k, dim, keepdim))


@rule("median")
def _median(function: Any, x: LinearizedTensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower of two that are in the middle."""
    if dim is None:
        x.samples.kept(range(x.value.dim()), "median")
        return _ranked(function, x.reshape(-1), (x.value.numel() + 1) // 2, 0, False)[0]  # type: ignore[arg-type]
    return _named(function, _ranked(function, x, (x.value.size(dim) + 1) // 2, dim, keepdim))


def _ranked(function: Any, x: LinearizedTensor, k: int, dim: int, keepdim: bool) -> list[LinearizedTensor]:
    """The k-th smallest entries, as long as those before and those behind them are the same."""
    rows = _rows(function, x, [dim])
    values, place = rows.value.kthvalue(k, -1, keepdim=True)
    others = _others(rows, place)
    middle = place.expand_as(others)
    _collect(rows, function, others, middle, 2 * middle + (rows.value.gather(-1, others) > values))
    found = _taken(rows, place, values), _places(rows, place, _ties(rows, values, others, values))
    return [_reduced(t, x, [dim], keepdim) for t in found]


@rule("cummax", "cummin")
def _cummax(function: Any, x: LinearizedTensor, dim: int) -> Any:
    """Each entry is compared with the best before it."""
    rows = _rows(function, x, [dim])
    values, places = function(rows.value, -1)
    later = torch.arange(1, rows.value.size(-1), device=places.device).expand(len(places), -1)
    _collect(rows, function, places[:, :-1], later, places[:, 1:])
    return _named(function, [_restored(t, x, dim) for t in (_taken(rows, places, values), _places(rows, places))])


@rule("norm", torch.linalg.vector_norm, torch.linalg.norm)
def _norm(
    function: Any,
    x: LinearizedTensor,
    p: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    ord: Any = None,
    dtype: torch.dtype | None = None,
) -> LinearizedTensor:
    order, several = p if ord is None else ord, axes(x, dim)
    of_matrices = function is torch.linalg.norm and len(several) > 1
    if of_matrices or dtype is not None or order not in (1, math.inf, -math.inf):
        raise refuse(x, function, "of all norms those of vectors with p = 1 or p = inf are supported")
    along = torch.sum if order == 1 else torch.amax if order > 0 else torch.amin
    return along(torch.abs(x), several, keepdim)  # type: ignore[return-value]


def axes(x: LinearizedTensor, dim: Any) -> list[int]:
    """Those that a reduction over `dim`, a number, several or none, works along: all where there are none."""
    dims = list(dim) if isinstance(dim, (tuple, list)) else [] if dim is None else [dim]
    return [d % max(1, x.value.dim()) for d in dims] or list(range(x.value.dim()))


def _winners(function: Any, x: LinearizedTensor, dims: Sequence[int]) -> tuple[LinearizedTensor, Tensor]:
    """The rows along `dims` and the place [R, 1] of the winner of each, which is ahead of all others."""
    rows = _rows(function, x, dims)
    larger = "max" in function_name(function)
    winner = (rows.value.argmax if larger else rows.value.argmin)(-1, keepdim=True)
    others = _others(rows, winner)
    _collect(rows, function, winner.expand_as(others), others, winner.expand_as(others))
    return rows, winner


def _rows(function: Any, x: LinearizedTensor, dims: Sequence[int]) -> LinearizedTensor:
    """[R, n]: the entries along the axes `dims`, in one row for each place along the other axes."""
    dims = sorted(d % max(1, x.value.dim()) for d in dims)
    x.samples.kept(dims if x.value.dim() else (), function_name(function))
    rest = [d for d in range(x.value.dim()) if d not in dims]
    size = math.prod(x.value.size(d) for d in dims) if x.value.dim() else 1
    moved: Any = x if [*rest, *dims] == list(range(x.value.dim())) else x.permute(*rest, *dims)
    rows: LinearizedTensor = (
        moved.reshape(-1, size) if x.value.numel() else moved.reshape(math.prod(moved.shape[: len(rest)]), size)
    )
    return rows


def _others(rows: LinearizedTensor, place: Tensor) -> Tensor:
    """[R, n - 1]: all places but those of `place` [R, 1], in order."""
    before = torch.arange(rows.value.size(-1) - 1, device=place.device)
    return before + (before >= place)


def _collect(rows: LinearizedTensor, function: Any, first: Tensor, second: Tensor, piece: Tensor) -> None:
    """Has the differences of entries at these places [R, m] collected; from an infinite constant they are dead."""
    if rows.frozen or not first.numel():
        return
    z = rows.value.gather(-1, first) - rows.value.gather(-1, second)
    dead = None
    if looks_for_padding(rows):
        infinite = rows.value.detach().isinf()
        dead = infinite.gather(-1, first) | infinite.gather(-1, second)
        dead = dead if bool(dead.any()) else None

    def difference(t: Tensor) -> Tensor:
        found = t.gather(-1, first) - t.gather(-1, second)
        return found if dead is None else found.masked_fill(dead, 0.0)

    if dead is not None:
        z = z.masked_fill(dead, torch.finfo(z.dtype).max)

    def both(t: Tensor) -> Tensor:
        found = t.gather(-1, first) + t.gather(-1, second)
        return found if dead is None else found.masked_fill(dead, 0.0)

    linearization = rows.linearization.mapped(difference, absolute=both)
    ahead = rows.replaced(z, linearization, sums=lambda: Sums(terms=1, back=2 * first.size(1), once=True))
    piece = piece.to(torch.int16 if 2 * rows.value.size(-1) <= 2**15 else torch.int64)
    ahead.activated(function_name(function), (0.0,), piece, torch.ones_like(z, dtype=torch.bool))


def _taken(rows: LinearizedTensor, places: Tensor, values: Tensor | None = None) -> LinearizedTensor:
    """[R, k]: the entries at these places, whose values may be known."""
    values = rows.value.gather(-1, places) if values is None else values
    linearization = rows.linearization.mapped(lambda t: t.gather(-1, places))
    return rows.replaced(values, linearization, exact=True, sums=lambda: Sums(back=places.size(-1)))


def _places(rows: LinearizedTensor, places: Tensor, ties: Tensor | None = None) -> LinearizedTensor:
    """[R, k]: the places themselves, of which those where there are `ties` may be other ones nearby."""
    nothing = rows.linearization.mapped(lambda t: torch.zeros_like(t.gather(-1, places)))
    found = rows.replaced(places, nothing, exact=True).freeze()
    found.ties = ties
    return found


def _ties(rows: LinearizedTensor, values: Tensor, others: Tensor, chosen: Tensor) -> Tensor | None:
    """[R, k]: which of the `chosen` are the one of `values` [R, 1] that some of the `others` are too; None if none.

    Torch does not say which of equal entries it chooses: that may depend on entries that are not equal to them.
    """
    if not rows.evaluation.settings.certificate or not others.numel():
        return None
    tied = (rows.value.gather(-1, others) == values).any(-1, keepdim=True)
    return tied & (chosen == values) if bool(tied.any()) else None


def _restored(t: LinearizedTensor, x: LinearizedTensor, dim: int) -> LinearizedTensor:
    """[R, k] as the axis `dim` of a tensor that is otherwise as x."""
    if not x.value.dim():
        return _moved(t, lambda u: u.reshape(()))
    rest = [size for d, size in enumerate(x.value.shape) if d != dim % x.value.dim()]
    return _moved(t, lambda u: u.reshape(*rest, u.size(-1)).movedim(-1, dim))


def _reduced(t: LinearizedTensor, x: LinearizedTensor, dims: Sequence[int], keepdim: bool) -> LinearizedTensor:
    """[R, 1] in the shape of x without the axes `dims`, or of size 1 there."""
    dims = [d % max(1, x.value.dim()) for d in dims]
    kept = [1 if d in dims else size for d, size in enumerate(x.value.shape) if keepdim or d not in dims]
    return _moved(t, lambda u: u.reshape(kept))


def _moved(t: LinearizedTensor, move: Callable[[Any], Any]) -> LinearizedTensor:
    ties, t.ties = t.ties, None
    moved: LinearizedTensor = move(t)
    moved.ties = None if ties is None else move(ties)
    return moved


def _named(function: Any, parts: Sequence[Tensor]) -> Any:
    return getattr(torch.return_types, function_name(function))(parts)
