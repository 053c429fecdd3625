"""An activation in a sampled step of ROLL: its values and tangents, and what the loss sums up, in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...dispatch import call, define, differentiate
from ..common.arguments import DTYPES, accumulation_dtype, refuse_forward_mode
from .reference import by_channel


def roll_activation(
    z: Tensor,
    tangents: Tensor,
    *,
    lower: float = 0.0,
    upper: float = math.inf,
    below: float | Tensor = 0.0,
    factor: Tensor | None = None,
    store: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply an activation that has slope 1 between two kinks, `below` under them and 0 above, and sum up for ROLL.

        out = upper                        if z > upper        masked[k] = 0
              z                            if z > lower                    tangents[k]
              lower + below (z - lower)    else                            below * tangents[k]
        sums = sum tangents^2, sum max(0, 1 - |z - nearest kink|)

    ReLU as it is; ReLU6 with upper=6, hardtanh with both kinks, LeakyReLU and PReLU with `below`; lower=-inf where the
    function has an upper kink alone. The sums are those of Eq. 9 of Lee et al. (2019), the same from run to run.

    Args:
        z: [B, ...]; float16, bfloat16, float32 or float64; in any order in memory that has no gaps.
        tangents: [K, *z.shape], of any of these dtypes, best in the order of z.
        lower, upper: the kinks, lower < upper, at least one of them finite.
        below: the slope under a finite lower kink: a number, or a tensor of one entry or of one for each channel
            (axis 1), which gets a gradient. It has the dtype of z.
        factor: [C], one for each channel (axis 1) by which its tangents are first multiplied, as by a batch-norm.
        store: False where `masked` is not wanted; it is then empty.

    Returns:
        out like z, masked like tangents, and sums [2] in float32 (float64 where z or tangents have that).

    Raises:
        TypeError, ValueError: for a wrong dtype, shape or kink.
        NotImplementedError: under forward-mode differentiation.

    Example:
        >>> import torch
        >>> from llr_fast.ops.roll_activation import roll_activation
        >>> roll_activation(torch.tensor([[-0.5, 3.0]]), torch.tensor([[[2.0, 1.0]]]))
        (tensor([[0., 3.]]), tensor([[[0., 1.]]]), tensor([5.0000, 0.5000]))
    """
    _check(z, tangents, lower, upper, below, factor)
    slope = below if isinstance(below, Tensor) else None
    refuse_forward_mode("roll_activation", *(t for t in (z, tangents, slope, factor) if t is not None))
    order = None if z.is_contiguous() else sorted(range(z.dim()), key=z.stride().__getitem__, reverse=True)
    in_memory = z if order is None else z.permute(order)
    channels_at = 1 if order is None else order.index(1)  # only tensors of several axes have an order
    flat, masked, sums, _ = call(
        "roll_activation",
        in_memory.reshape(-1),
        (tangents if order is None else _permuted(tangents, order)).reshape(len(tangents), z.numel()),
        factor,
        slope,
        0.0 if isinstance(below, Tensor) else below,
        lower,
        upper,
        math.prod(in_memory.shape[channels_at + 1 :]) if z.dim() > 1 else 1,
        store,
    )
    out = flat.view(in_memory.shape)
    masked = masked.view(len(tangents), *in_memory.shape) if store else masked
    if order is not None:
        inverse = sorted(range(z.dim()), key=order.__getitem__)
        out, masked = out.permute(inverse), _permuted(masked, inverse) if store else masked
    return out, masked, sums


def _permuted(tangents: Tensor, order: list[int]) -> Tensor:
    """Tangents [K, ...] of a tensor whose axes are permuted."""
    return tangents.permute(0, *(axis + 1 for axis in order))


def _check(
    z: Tensor, tangents: Tensor, lower: float, upper: float, below: float | Tensor, factor: Tensor | None
) -> None:
    for name, tensor in {"z": z, "tangents": tangents}.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            got = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"{name}: expected a tensor of float16, bfloat16, float32 or float64, got {got}")
    if tangents.dim() != z.dim() + 1 or tangents.shape[1:] != z.shape or len(tangents) == 0:
        raise ValueError(f"tangents: expected shape [K, *{list(z.shape)}], K > 0, got {list(tangents.shape)}")
    if tangents.device != z.device:
        raise ValueError(f"tangents: expected device {z.device} as z has, got {tangents.device}")
    if not (lower < upper and (math.isfinite(lower) or math.isfinite(upper))):
        raise ValueError(f"lower: expected a kink below upper, one of them finite, got {lower} and {upper}")
    if factor is not None and (z.dim() < 2 or factor.shape != z.shape[1:2] or factor.device != z.device):
        expected = f"shape {list(z.shape[1:2])} on {z.device}"
        raise ValueError(f"factor: expected {expected}, got {list(factor.shape)} on {factor.device}")
    if isinstance(below, Tensor):
        channels = (1, z.size(1)) if z.dim() > 1 else (1,)
        if below.dim() > 1 or below.numel() not in channels or below.dtype != z.dtype or below.device != z.device:
            raise ValueError(
                f"below: expected {' or '.join(map(str, channels))} entries of {z.dtype} on {z.device}, "
                f"got {list(below.shape)} of {below.dtype} on {below.device}"
            )


def _fake(z, tangents, factor, slope, below, lower, upper, inner, store):
    sums = z.new_empty(2, dtype=accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype)))
    masked = tangents.new_empty(tangents.shape if store else 0)
    return z.new_empty(z.shape), masked, sums, z.new_empty(z.shape, dtype=torch.int8)


def _fake_backward(d_out, d_masked, d_sums, tangents, code, factor, slope, below, inner):
    d_factor = tangents.new_empty(0) if factor is None else factor.new_empty(factor.shape)
    return d_out.new_empty(d_out.shape), tangents.new_empty(tangents.shape), d_factor


def _save(ctx, inputs, output):
    z, tangents, factor, slope, ctx.below, ctx.lower, _, ctx.inner, ctx.store = inputs
    ctx.dtype = z.dtype
    ctx.save_for_backward(tangents, output[3], factor, slope, None if slope is None else z)


def _backward(ctx, run, d_out, d_masked, d_sums, _):
    tangents, code, factor, slope, z = ctx.saved_tensors
    d_out = code.new_zeros(code.shape, dtype=ctx.dtype) if d_out is None else d_out
    d_sums = code.new_zeros(2, dtype=torch.float32) if d_sums is None else d_sums
    d_masked = d_masked if ctx.store else None
    args = (d_out, d_masked, d_sums, tangents, code, factor, slope, ctx.below, ctx.inner)
    d_z, d_tangents, d_factor = run("roll_activation_backward", *args)
    d_slope = None
    if slope is not None and ctx.needs_input_grad[3]:
        by_slope = d_out * (z - ctx.lower)
        if d_masked is not None:
            scaled = tangents if factor is None else tangents * by_channel(factor, ctx.inner, z.numel())
            by_slope = by_slope + (d_masked * scaled).sum(0)
        by_slope = torch.where(code & 3 == 0, by_slope, 0)
        inner = ctx.inner if slope.numel() > 1 else z.numel()
        d_slope = by_slope.view(-1, slope.numel(), inner).sum((0, 2)) if z.numel() else torch.zeros_like(slope)
        d_slope = d_slope.view(slope.shape).to(slope.dtype)
    return d_z, d_tangents, None if factor is None else d_factor, d_slope, None, None, None, None, None


define(
    "roll_activation(Tensor z, Tensor tangents, Tensor? factor, Tensor? slope, float below, float lower, float upper,"
    " int inner, bool store) -> (Tensor, Tensor, Tensor, Tensor)",
    __name__,
    _fake,
)
define(
    "roll_activation_backward(Tensor d_out, Tensor? d_masked, Tensor d_sums, Tensor tangents, Tensor code,"
    " Tensor? factor, Tensor? slope, float below, int inner) -> (Tensor, Tensor, Tensor)",
    __name__,
    _fake_backward,
)
differentiate("roll_activation", _save, _backward)
