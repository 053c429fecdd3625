"""Tangents through an activation, with a statistic of them, in one pass over memory."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import call, define, differentiate
from ...norms import Statistic
from ..common.arguments import accumulation_dtype, check_alike, check_statistic, check_tensor, refuse_forward_mode


def tangent_activation(tangents: Tensor, slope: Tensor, statistic: Statistic | str) -> tuple[Tensor, Tensor]:
    """Multiply the tangents of a layer by the slopes of its activation and measure the incoming tangents.

        out[k, b, j] = tangents[k, b, j] * slope[b, j]
        stat[b, j] = sum_k tangents[k, b, j]^2 | sum_k |tangents[k, b, j]| | max_k |tangents[k, b, j]|

    Args:
        tangents: [K, B, n], or [K, 1, n] where the batch shares them; float16, bfloat16, float32 or float64.
        slope: [B, n], in the dtype of tangents.
        statistic: "sum_squares", "sum_abs" or "max_abs", over the K tangents.

    Returns:
        out [K, B, n] in the dtype of tangents, and stat [B, n] in float32 (float64 for float64 tangents).

    The gradient of a maximum goes to the first tangent that attains it.

    Raises:
        TypeError, ValueError: for a wrong dtype, shape or statistic.
        NotImplementedError: under forward-mode differentiation.
    """
    check_tensor("slope", slope, "[B, n]", (None, None))
    batch, n = slope.shape
    check_tensor("tangents", tangents, f"[K, {batch} or 1, {n}]", (None, (1, batch), n))
    if len(tangents) == 0:
        raise ValueError("tangents: expected at least one direction, got shape " + str(list(tangents.shape)))
    check_alike(tangents=tangents, slope=slope)
    statistic = check_statistic(statistic)
    refuse_forward_mode("tangent_activation", tangents, slope)
    return call("tangent_activation", tangents, slope, statistic)


def _fake(tangents, slope, statistic):
    out = tangents.new_empty(tangents.shape[0], *slope.shape)
    return out, slope.new_empty(slope.shape, dtype=accumulation_dtype(tangents.dtype))


def _fake_backward(d_out, d_stat, tangents, slope, stat, statistic, needs_slope):
    return tangents.new_empty(tangents.shape), slope.new_empty(slope.shape if needs_slope else 0)


def _save(ctx, inputs, output):
    tangents, slope, ctx.statistic = inputs
    ctx.save_for_backward(tangents, slope, output[1])


def _backward(ctx, run, d_out, d_stat):
    if d_out is None and d_stat is None:
        return None, None, None
    needs_slope = ctx.needs_input_grad[1] and d_out is not None
    args = (d_out, d_stat, *ctx.saved_tensors, ctx.statistic, needs_slope)
    d_tangents, d_slope = run("tangent_activation_backward", *args)
    return d_tangents, d_slope if needs_slope else None, None


define(
    "tangent_activation(Tensor tangents, Tensor slope, str statistic) -> (Tensor, Tensor)",
    __name__,
    _fake,
)
define(
    "tangent_activation_backward(Tensor? d_out, Tensor? d_stat, Tensor tangents, Tensor slope, Tensor stat,"
    " str statistic, bool needs_slope) -> (Tensor, Tensor)",
    __name__,
    _fake_backward,
)
differentiate("tangent_activation", _save, _backward)
