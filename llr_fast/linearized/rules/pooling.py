"""Max-pooling: the winner of each window passes; its lead over every other entry is a neuron (Appendix E)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.rules.convolution import require_batch, spatial_rank
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse

Bounds = list[list[list[int]]]  # per spatial axis, per window: the positions in it


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(
    function: Any,
    x: LinearizedTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> LinearizedTensor:
    rank = spatial_rank(function)
    require_batch(function, x)
    if return_indices:
        raise refuse(x, function, "return_indices=True is not supported")
    kernel, pad, dilate = (_each(v, rank) for v in (kernel_size, padding, dilation))
    step = kernel if stride is None or stride == [] else _each(stride, rank)
    spatial = x.value.shape[2:]
    pool = getattr(F, f"max_pool{rank}d")
    out = pool(torch.empty(1, *spatial, device="meta"), kernel, step, pad, dilate, ceil_mode).shape[1:]
    bounds = [
        [
            [p for p in range(w * step[d] - pad[d], w * step[d] - pad[d] + kernel[d] * dilate[d], dilate[d])]
            for w in range(out[d])
        ]
        for d in range(rank)
    ]
    return _pool(function, x, bounds)


# Of these torch returns the winners' indices too.
_WITH_INDICES = (
    *(torch.adaptive_max_pool1d, torch._C._nn.adaptive_max_pool2d, torch._C._nn.adaptive_max_pool3d),
    *(F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices),
)


@rule(
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "adaptive_max_pool3d_with_indices"),
)
def _adaptive_max_pool(
    function: Any, x: LinearizedTensor, output_size: Any, return_indices: bool = False
) -> LinearizedTensor:
    rank = spatial_rank(function)
    require_batch(function, x)
    if return_indices or function in _WITH_INDICES:
        raise refuse(x, function, "indices of the winners are not supported; use torch.nn.functional's without them")
    sizes = x.value.shape[2:]
    out = [size if wanted is None else wanted for size, wanted in zip(sizes, _each(output_size, rank), strict=True)]
    bounds = [
        [list(range(w * size // n, -((w + 1) * size // -n))) for w in range(n)]
        for size, n in zip(sizes, out, strict=True)
    ]
    return _pool(function, x, bounds)


def _pool(function: Any, x: LinearizedTensor, bounds: Bounds) -> LinearizedTensor:
    """Entries of -inf are padding: where all samples and channels have it they are no neurons, else dead ones."""
    shape, sizes = [len(windows) for windows in bounds], x.value.shape[2:]
    flat = x.value.flatten(2)  # [B, C, space]
    infinite = flat.detach() == -math.inf
    times = infinite.flatten(0, 1).sum(0).cpu()  # how often each position is padding
    padded = times == infinite[..., 0].numel()
    entries, real, counted = _windows(bounds, sizes, padded)
    empty, some_empty, some_dead = real.logical_not().all(1), not real.any(1).all(), bool((times > 0)[~padded].any())
    entries, real, counted, empty = (t.to(flat.device) for t in (entries, real, counted, empty))
    winner = flat[..., entries].masked_fill(~real, -math.inf).argmax(-1)  # [B, C, windows], place in the window
    window, place = (counted.cumsum(1) < counted.sum(1, keepdim=True)).logical_and(counted).nonzero(as_tuple=True)
    other = place + (place >= winner[..., window])  # [B, C, constraints]: every place but the winner's
    losers = entries[window, other]
    winners = entries.expand(*winner.shape, -1).gather(-1, winner.unsqueeze(-1)).squeeze(-1)
    dead = infinite.gather(-1, losers) if some_dead else infinite

    def winning(t: Tensor, nothing: float = 0.0) -> Tensor:
        found = t.flatten(2).gather(-1, winners)
        return found.masked_fill(empty, nothing) if some_empty else found

    def lead(t: Tensor, of_dead: float = 0.0) -> Tensor:
        found = winning(t)[..., window] - t.flatten(2).gather(-1, losers)
        return found.masked_fill(dead, of_dead) if some_dead else found

    if window.numel():
        ahead = x.replaced(lead(x.value, torch.finfo(flat.dtype).max), x.linearization.mapped(lead))
        piece = winner[..., window].to(torch.int16 if entries.size(1) <= 2**15 else torch.int32)
        slope = torch.ones_like(ahead.value, dtype=torch.bool)
        ahead.activated(function_name(function).removesuffix("_with_indices"), (0.0,), piece, slope)
    value = winning(x.value, -math.inf).unflatten(-1, shape)
    return x.replaced(value, x.linearization.mapped(lambda t: winning(t).unflatten(-1, shape)), exact=True)


def _windows(bounds: Bounds, sizes: Sequence[int], padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat positions of the entries of each window, [windows, places]; which are real; and which of these count.

    Those that count come first and those that are not real last. `padded` [space] says which positions do not count.
    """
    flat, real = torch.zeros(1, 1, dtype=torch.long, device="cpu"), torch.ones(1, 1, dtype=torch.bool, device="cpu")
    for windows, size in zip(bounds, sizes, strict=True):
        places = max(len(window) for window in windows)
        position = torch.tensor([window + [-1] * (places - len(window)) for window in windows], device="cpu")
        here = (position >= 0) & (position < size)
        flat = (flat[:, None, :, None] * size + position[None, :, None, :]).flatten(2).flatten(0, 1)
        real = (real[:, None, :, None] & here[None, :, None, :]).flatten(2).flatten(0, 1)
    flat = flat.masked_fill(~real, 0)
    counted = real & ~padded[flat]
    order = (2 - counted.long() - real.long()).argsort(dim=1, stable=True)
    return flat.gather(1, order), real.gather(1, order), counted.gather(1, order)


def _each(value: Any, rank: int) -> list[Any]:
    return list(value) * (rank if len(value) == 1 else 1) if isinstance(value, (list, tuple)) else [value] * rank
