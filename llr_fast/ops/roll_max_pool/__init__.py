"""A max-pooling in a sampled step of ROLL: its values and tangents, and what the loss sums up, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ...dispatch import call, define, differentiate
from ..common.arguments import DTYPES, accumulation_dtype, refuse_forward_mode


def roll_max_pool(
    z: Tensor,
    tangents: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the winner of each window and its tangents, and sum up for ROLL over the leads of winners over losers.

        out = max over the window of z           winning[k] = tangents[k] of the winner, the first of equals
        sums = sum (winning[k] - tangents[k])^2, sum max(0, 1 - (out - z)), over all losers of all windows

    Padding has no part in it. The sums are those of Eq. 9 of Lee et al. (2019) for max-pooling (Appendix E), the same
    from run to run; infinite leads make them NaN.

    Args:
        z: [B, C, *space] with one to three axes of space, less than 2^30 entries in each sample; float16, bfloat16,
            float32 or float64.
        tangents: [K, B, C, *space], of any of these dtypes, best in the order of z.
        kernel, stride, padding, dilation, size: for each axis of space; `size` is the number of windows, each of which
            has to hold an entry.

    Returns:
        out [B, C, *size] in the dtype of z, winning [K, B, C, *size] in that of tangents, both in the order of z if
        that is contiguous or channels_last, and sums [2] in float32 (float64 where z or tangents have that).

    Raises:
        TypeError, ValueError: for a wrong dtype or shape.
        NotImplementedError: under forward-mode differentiation.

    Example:
        >>> import torch
        >>> from llr_fast.ops.roll_max_pool import roll_max_pool
        >>> z, tangents = torch.tensor([[[1.0, 0.5, 2.0, 9.0]]]), torch.tensor([[[[3.0, 1.0, 0.0, 1.0]]]])
        >>> roll_max_pool(z, tangents, (2,), (2,), (0,), (1,), (2,))
        (tensor([[[1., 9.]]]), tensor([[[[3., 1.]]]]), tensor([5.0000, 0.5000]))
    """
    _check(z, tangents, z.dim() - 2, (kernel, stride, padding, dilation, size))
    refuse_forward_mode("roll_max_pool", z, tangents)
    windows = [*kernel, *stride, *padding, *dilation, *size]
    channels_last = z.movedim(1, -1)
    if channels_last.is_contiguous() and not z.is_contiguous():
        out, winning, sums, _ = call("roll_max_pool", channels_last, tangents.movedim(2, -1).contiguous(), windows)
        return out.movedim(-1, 1), winning.movedim(-1, 2), sums
    planes, rows = z.flatten(0, 1).contiguous(), tangents.flatten(1, 2).contiguous()
    out, winning, sums, _ = call("roll_max_pool", planes[..., None], rows[..., None], windows)
    return out.view(*z.shape[:2], *size), winning.view(*tangents.shape[:3], *size), sums


def _check(z: Tensor, tangents: Tensor, rank: int, windows: Sequence[Sequence[int]]) -> None:
    for name, tensor in {"z": z, "tangents": tangents}.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            got = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"{name}: expected a tensor of float16, bfloat16, float32 or float64, got {got}")
    if rank not in (1, 2, 3):
        raise ValueError(f"z: expected shape [B, C, *space] with one to three axes of space, got {list(z.shape)}")
    if tangents.shape[1:] != z.shape or len(tangents) == 0:
        raise ValueError(f"tangents: expected shape [K, *{list(z.shape)}], K > 0, got {list(tangents.shape)}")
    if z[0:1].numel() >= 2**30:
        raise ValueError(f"z: expected less than 2^30 entries in each sample, got shape {list(z.shape)}")
    if tangents.device != z.device:
        raise ValueError(f"tangents: expected device {z.device} as z has, got {tangents.device}")
    if any(len(each) != rank for each in windows):
        raise ValueError(f"kernel: expected {rank} numbers each for kernel, stride, padding, dilation and size")
    kernel, stride, padding, dilation, size = windows
    for length, *window in zip(z.shape[2:], kernel, stride, padding, dilation, size, strict=True):
        if not _holds_entries(length, *window):
            raise ValueError(
                f"size: expected windows of at least one entry each, got {tuple(size)} of {tuple(z.shape)}"
            )


@cache
def _holds_entries(length: int, kernel: int, stride: int, padding: int, dilation: int, size: int) -> bool:
    """Whether every window along an axis does."""
    starts = range(-padding, size * stride - padding, stride)
    return all(any(0 <= start + k * dilation < length for k in range(kernel)) for start in starts)


def _fake(z, tangents, windows):
    shape = (z.shape[0], *windows[4 * (z.dim() - 2) :], z.shape[-1])
    sums = z.new_empty(2, dtype=accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype)))
    return z.new_empty(shape), tangents.new_empty(len(tangents), *shape), sums, z.new_empty(shape, dtype=torch.int32)


def _fake_backward(d_out, d_winning, d_sums, z, tangents, index, windows):
    return z.new_empty(z.shape), tangents.new_empty(tangents.shape)


def _save(ctx, inputs, output):
    z, tangents, ctx.windows = inputs
    ctx.save_for_backward(z, tangents, output[3])


def _backward(ctx, run, d_out, d_winning, d_sums, _):
    z, tangents, index = ctx.saved_tensors
    d_out = z.new_zeros(index.shape) if d_out is None else d_out
    d_winning = tangents.new_zeros(len(tangents), *index.shape) if d_winning is None else d_winning
    d_sums = z.new_zeros(2, dtype=torch.float32) if d_sums is None else d_sums
    return *run("roll_max_pool_backward", d_out, d_winning, d_sums, z, tangents, index, ctx.windows), None


# z is [N, *space, I]: I planes lie entry by entry beside each other; index is where a winner is in [*space, I].
define("roll_max_pool(Tensor z, Tensor tangents, int[] windows) -> (Tensor, Tensor, Tensor, Tensor)", __name__, _fake)
define(
    "roll_max_pool_backward(Tensor d_out, Tensor d_winning, Tensor d_sums, Tensor z, Tensor tangents, Tensor index,"
    " int[] windows) -> (Tensor, Tensor)",
    __name__,
    _fake_backward,
)
differentiate("roll_max_pool", _save, _backward)
