"""Max-pooling: the winner of each window passes; its lead over every other entry is a neuron (Appendix E)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.layers import Windows
from llr_fast.linearized.local import Sums
from llr_fast.linearized.rules.affine import moves
from llr_fast.linearized.rules.convolution import each, require_batch, spatial_rank
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor
from llr_fast.linearized.torch_modes import is_traced

Entries = tuple[tuple[tuple[int, ...], ...], ...]  # for each axis of space and each of its windows the positions in it


@rule(
    *("max_pool1d", "max_pool2d", "max_pool3d"),
    *("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices"),
)
def _max_pool(
    function: Any,
    x: LinearizedTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    rank = spatial_rank(function)
    require_batch(function, x)
    kernel, pad, dilate = (each(v, rank) for v in (kernel_size, padding, dilation))
    step = kernel if stride is None or stride == [] else each(stride, rank)
    spatial = x.value.shape[2:]
    pool = getattr(F, f"max_pool{rank}d")
    out = pool(torch.empty(1, *spatial, device="meta"), kernel, step, pad, dilate, ceil_mode).shape[1:]
    windows = Windows(tuple(spatial), *map(tuple, (kernel, step, pad, dilate, out)))
    entries = windows.entries()
    return_indices = return_indices or "indices" in function_name(function)
    several = moves(x) and x.value.numel() > 0 and all(all(axis) for axis in entries)
    if several and not return_indices and not looks_for_padding(x):
        fused = x.evaluation.pool(x.value, windows, x.linearization)
        if fused is not None:
            return x.replaced(*fused)
    pooled = _pool(function, x, entries)
    return pooled if return_indices else pooled[0]


# Of these torch returns the winners' indices too.
_WITH_INDICES = (
    *(torch.adaptive_max_pool1d, torch._C._nn.adaptive_max_pool2d, torch._C._nn.adaptive_max_pool3d),
    *(F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices),
)


@rule(
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "adaptive_max_pool3d_with_indices"),
)
def _adaptive_max_pool(function: Any, x: LinearizedTensor, output_size: Any, return_indices: bool = False) -> Any:
    rank = spatial_rank(function)
    require_batch(function, x)
    sizes = x.value.shape[2:]
    out = [size if wanted is None else wanted for size, wanted in zip(sizes, each(output_size, rank), strict=True)]
    axes = zip(sizes, out, strict=True)
    entries = tuple(tuple(tuple(range(w * size // n, -((w + 1) * size // -n))) for w in range(n)) for size, n in axes)
    pooled = _pool(function, x, entries)
    return pooled if return_indices or function in _WITH_INDICES else pooled[0]


def looks_for_padding(x: LinearizedTensor) -> bool:
    """Whether entries of -inf are looked for, which takes reading numbers back from a GPU."""
    return x.evaluation.settings.certificate or x.evaluation.padded


def _pool(function: Any, x: LinearizedTensor, windows: Entries) -> tuple[LinearizedTensor, LinearizedTensor]:
    """The largest entries, and their places in space, which stay the same in a linear region.

    Entries of -inf are padding: where all samples and channels have it they are no neurons, else dead ones."""
    shape, sizes = [len(axis) for axis in windows], tuple(x.value.shape[2:])
    flat = x.value.flatten(2)  # [B, C, space]
    padded, some_dead, infinite = None, False, torch.zeros((), dtype=torch.bool, device="cpu")
    if looks_for_padding(x):
        infinite = flat.detach() == -math.inf
        times = infinite.flatten(0, 1).sum(0).cpu()  # how often each position is padding
        padded = (times == infinite[..., 0].numel()).numpy()
        some_dead = bool((times.numpy() > 0)[~padded].any())
    tables = (
        _on_device(windows, sizes, flat.device) if padded is None else _Tables.of(windows, sizes, padded, flat.device)
    )
    entries, window = tables.entries, tables.window
    winner = flat[..., entries].masked_fill(~tables.real, -math.inf).argmax(-1)  # [B, C, windows], place in the window
    other = tables.place + (tables.place >= winner[..., window])  # [B, C, constraints]: every place but the winner's
    losers = entries[window, other]
    winners = entries.expand(*winner.shape, -1).gather(-1, winner.unsqueeze(-1)).squeeze(-1)
    dead = infinite.gather(-1, losers) if some_dead else infinite

    def winning(t: Tensor, nothing: float = 0.0) -> Tensor:
        found = t.flatten(2).gather(-1, winners)
        return found if tables.empty is None else found.masked_fill(tables.empty, nothing)

    def lead(t: Tensor, of_dead: float = 0.0) -> Tensor:
        found = winning(t)[..., window] - t.flatten(2).gather(-1, losers)
        return found.masked_fill(dead, of_dead) if some_dead else found

    def sum_of_both(t: Tensor) -> Tensor:
        found = winning(t)[..., window] + t.flatten(2).gather(-1, losers)
        return found.masked_fill(dead, 0.0) if some_dead else found

    places = entries.size(1)

    def back(each: int) -> int:
        return int(each * entries[tables.real].bincount().amax()) if places else 0

    if window.numel() and moves(x):
        linearization = x.linearization.mapped(lead, absolute=sum_of_both)
        value = lead(x.value, torch.finfo(flat.dtype).max)
        ahead = x.replaced(value, linearization, sums=lambda: Sums(terms=1, back=back(places), once=True))
        piece = winner[..., window].to(torch.int16 if entries.size(1) <= 2**15 else torch.int32)
        slope = torch.ones_like(ahead.value, dtype=torch.bool)
        ahead.activated(function_name(function).removesuffix("_with_indices"), (0.0,), piece, slope)
    value = winning(x.value, -math.inf).unflatten(-1, shape)
    linearization = x.linearization.mapped(lambda t: winning(t).unflatten(-1, shape))
    pooled = x.replaced(value, linearization, exact=True, sums=lambda: Sums(back=back(1)))
    found = winners.unflatten(-1, shape)
    nothing = x.linearization.mapped(lambda t: torch.zeros_like(winning(t).unflatten(-1, shape)))
    return pooled, x.replaced(found, nothing, exact=True).freeze()


@rule(F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
def _max_unpool(
    function: Any, x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:
    rank = spatial_rank(function)
    kernel, pad = each(kernel_size, rank), each(padding, rank)
    step = kernel if stride is None else each(stride, rank)
    at = zip(x.shape[2:], kernel, step, pad, strict=True)
    sizes = [(n - 1) * s - 2 * p + k for n, k, s, p in at] if output_size is None else list(output_size)[-rank:]
    nothing = x.new_zeros(*x.shape[:2], math.prod(sizes))
    return nothing.scatter(2, indices.flatten(2), x.flatten(2)).unflatten(2, sizes)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Tables:
    """What is the same for all samples and channels.

    Attributes:
        entries: [windows, places], flat positions; the neurons' first, then padding made beforehand, then nothing.
        real: [windows, places], which of them are entries.
        empty: [windows], which have none; None where all have one.
        window, place: [constraints], of each neuron its window and its place among the others.
    """

    entries: Tensor
    real: Tensor
    empty: Tensor | None
    window: Tensor
    place: Tensor

    @staticmethod
    def of(windows: Entries, sizes: tuple[int, ...], padded: Any, device: torch.device) -> _Tables:
        """`padded` [space] says which positions hold padding."""
        entries, real, counted = _places(windows, sizes, padded)
        leading = (counted.cumsum(1) < counted.sum(1, keepdims=True)) & counted
        empty = ~real.any(1)
        window, place = leading.nonzero()

        def on_device(table: Any) -> Tensor:
            # In compiled code a constant's copy on a GPU is read by the strides of the original.
            return torch.tensor(np.ascontiguousarray(table), device=device)

        missing = on_device(empty) if empty.any() else None
        return _Tables(on_device(entries), on_device(real), missing, on_device(window), on_device(place))


def _on_device(windows: Entries, sizes: tuple[int, ...], device: torch.device) -> _Tables:
    """Without padding made beforehand; kept from step to step, but not what a trace makes of tensors."""
    make = _kept_tables.__wrapped__ if is_traced() else _kept_tables
    return make(windows, sizes, device)


@functools.lru_cache(32)
def _kept_tables(windows: Entries, sizes: tuple[int, ...], device: torch.device) -> _Tables:
    with torch.inference_mode(False):
        return _Tables.of(windows, sizes, np.zeros(math.prod(sizes), dtype=bool), device)


def _places(windows: Entries, sizes: tuple[int, ...], padded: Any) -> tuple[Any, Any, Any]:
    """Flat positions of the entries of each window, [windows, places]; which are real; and which of these count.

    Those that count come first and those that are not real last.
    """
    flat, real = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=bool)
    for axis, size in zip(windows, sizes, strict=True):
        places = max(1, *map(len, axis))
        position = np.array([[*window, *[-1] * (places - len(window))] for window in axis], dtype=np.int64)
        position = position.reshape(len(axis), places)
        shape = (len(flat) * len(axis), -1)
        flat = (flat[:, None, :, None] * size + position[None, :, None, :]).reshape(shape)
        real = (real[:, None, :, None] & (position >= 0)[None, :, None, :]).reshape(shape)
    flat = np.where(real, flat, 0)
    counted = real & ~padded[flat]
    order = np.argsort(2 - counted.astype(np.int64) - real, axis=1, kind="stable")
    flat, real, counted = (np.take_along_axis(each, order, 1) for each in (flat, real, counted))
    return flat, real, counted
