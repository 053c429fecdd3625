"""An activation and the linear layer after it, applied to tangents, with a statistic of the result."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch import call, define, differentiate
from ...norms import Statistic
from ..common.arguments import accumulation_dtype, check_alike, check_statistic, check_tensor, refuse_forward_mode


def masked_linear(
    tangents: Tensor, slope: Tensor, weight: Tensor, statistic: Statistic | str, store: bool = True
) -> tuple[Tensor, Tensor]:
    """Apply the slopes of an activation and the next linear layer to tangents, and measure the result.

        out[k, b, o] = sum_i tangents[k, b, i] * slope[b, i] * weight[o, i]
        stat[b, o] = sum_k out[k, b, o]^2 | sum_k |out[k, b, o]| | max_k |out[k, b, o]|

    Args:
        tangents: [K, B, I], or [K, 1, I] where the batch shares them; float16, bfloat16, float32 or float64.
        slope: [B, I], in the dtype of tangents.
        weight: [O, I], in the dtype of tangents.
        statistic: "sum_squares", "sum_abs" or "max_abs", over the K tangents.
        store: False where only the statistic is wanted; out is then empty and never written.

    Returns:
        out [K, B, O] in the dtype of tangents, and stat [B, O] in float32 (float64 for float64 tangents), taken
        before out is rounded to that dtype.

    The gradient of a maximum goes to the first tangent that attains it.

    Raises:
        TypeError, ValueError: for a wrong dtype, shape or statistic.
        NotImplementedError: under forward-mode differentiation.
    """
    check_tensor("slope", slope, "[B, I]", (None, None))
    batch, inputs = slope.shape
    check_tensor("tangents", tangents, f"[K, {batch} or 1, {inputs}]", (None, (1, batch), inputs))
    if len(tangents) == 0:
        raise ValueError("tangents: expected at least one direction, got shape " + str(list(tangents.shape)))
    check_tensor("weight", weight, f"[O, {inputs}]", (None, inputs))
    check_alike(tangents=tangents, slope=slope, weight=weight)
    statistic = check_statistic(statistic)
    refuse_forward_mode("masked_linear", tangents, slope, weight)
    return call("masked_linear", tangents, slope, weight, statistic, store)


def _fake(tangents, slope, weight, statistic, store):
    out = tangents.new_empty((tangents.shape[0], slope.shape[0], weight.shape[0]) if store else 0)
    stat = slope.new_empty(slope.shape[0], weight.shape[0], dtype=accumulation_dtype(tangents.dtype))
    return out, stat


def _fake_backward(d_out, d_stat, out, tangents, slope, weight, statistic, needs_slope, needs_weight):
    return (
        tangents.new_empty(tangents.shape),
        slope.new_empty(slope.shape if needs_slope else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
    )


def _save(ctx, inputs, output):
    tangents, slope, weight, ctx.statistic, ctx.store = inputs
    ctx.save_for_backward(output[0] if ctx.store else None, tangents, slope, weight)


def _backward(ctx, run, d_out, d_stat):
    d_out = d_out if ctx.store else None
    if d_out is None and d_stat is None:
        return (None,) * 5
    _, needs_slope, needs_weight, *_ = ctx.needs_input_grad
    args = (d_out, d_stat, *ctx.saved_tensors, ctx.statistic, needs_slope, needs_weight)
    d_tangents, d_slope, d_weight = run("masked_linear_backward", *args)
    return d_tangents, d_slope if needs_slope else None, d_weight if needs_weight else None, None, None


BY_LIBRARY = (torch.float32,)  # whose products took 0.4 of the kernel's time on an H200, 0.9 with the best tiles


define(
    "masked_linear(Tensor tangents, Tensor slope, Tensor weight, str statistic, bool store) -> (Tensor, Tensor)",
    __name__,
    _fake,
    BY_LIBRARY,
)
define(
    "masked_linear_backward(Tensor? d_out, Tensor? d_stat, Tensor? out, Tensor tangents, Tensor slope, Tensor weight,"
    " str statistic, bool needs_slope, bool needs_weight) -> (Tensor, Tensor, Tensor)",
    __name__,
    _fake_backward,
    BY_LIBRARY,
)
differentiate("masked_linear", _save, _backward)
