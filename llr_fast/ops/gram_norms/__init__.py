"""Squared gradient norms of all neurons of a chain of dense layers, without the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...dispatch import define, differentiate
from ..common.arguments import accumulation_dtype, check_alike, check_tensor, refuse_forward_mode


def gram_norms(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
    """Squared l2 norms of the gradients of a dense chain's neurons by its input.

        J_1 = W_1,    J_l = W_l diag(s_{l-1}) J_{l-1},    norms_l[j] = ||J_l[j, :]||^2 = (J_l J_l^T)[j, j]

    The Gram matrix of each layer follows from that of the layer below, so the cost does not grow with the width of
    the input beyond W_1 W_1^T, and a neuron of slope 0 drops out of the layers above it.

    Args:
        weights: W_1 [n_1, D], W_2 [n_2, n_1], ...; float16, bfloat16, float32 or float64.
        slopes: s_1 [B, n_1], s_2 [B, n_2], ..., one fewer than weights and in their dtype: the slope of the piece
            that each neuron is on.

    Returns:
        For each layer the norms [B, n_l] in float32 (float64 for float64 weights). Without slopes B is 1.

    Raises:
        TypeError, ValueError: for a wrong number of slopes, a wrong dtype or shape.
        NotImplementedError: under forward-mode differentiation.
    """
    weights, slopes = _prepared(weights, slopes)
    widths = [len(weight) for weight in weights]
    return list(torch.ops.llr_fast.gram_norms(weights, slopes, False).split(widths, 1))


def gram_norms_total(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """The sum of `gram_norms` over samples, layers and neurons, a scalar, which costs less than the norms.

    Its gradient is computed along with it, and only scaled in the backward pass.

    Args:
        weights, slopes: as in `gram_norms`, whose errors it raises.

    Example:
        >>> import torch
        >>> from llr_fast.ops.gram_norms import gram_norms_total
        >>> weights = [torch.eye(2, requires_grad=True), torch.tensor([[3.0, 4.0]], requires_grad=True)]
        >>> total = gram_norms_total(weights, [torch.tensor([[1.0, 0.0]])])
        >>> total.item(), torch.autograd.grad(total, weights)[1]
        (11.0, tensor([[6., 0.]]))
    """
    weights, slopes = _prepared(weights, slopes)
    needs_slopes = any(slope.requires_grad for slope in slopes)
    if torch.is_grad_enabled() and (needs_slopes or any(weight.requires_grad for weight in weights)):
        total: Tensor = torch.ops.llr_fast.gram_norms_total(weights, slopes, needs_slopes)[0]
        return total
    sums: Tensor = torch.ops.llr_fast.gram_norms(weights, slopes, True)
    return sums.sum()


def _prepared(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Checked, in the dtype of the results."""
    weights, slopes = list(weights), list(slopes)
    _check(weights, slopes)
    refuse_forward_mode("gram_norms", *weights, *slopes)
    dtype = accumulation_dtype(weights[0].dtype)
    return [weight.to(dtype) for weight in weights], [slope.to(dtype) for slope in slopes]


def _check(weights: list[Tensor], slopes: list[Tensor]) -> None:
    if not weights or len(slopes) != len(weights) - 1:
        raise ValueError(f"slopes: expected one fewer than weights, got {len(slopes)} for {len(weights)} weights")
    check_tensor("weights[0]", weights[0], "[n_1, D]", (None, None))
    batch = None
    for i, (slope, weight) in enumerate(zip(slopes, weights[1:], strict=True)):
        width = len(weights[i])
        check_tensor(f"slopes[{i}]", slope, f"[{'B' if batch is None else batch}, {width}]", (batch, width))
        check_tensor(f"weights[{i + 1}]", weight, f"[n_{i + 2}, {width}]", (None, width))
        batch = len(slope)
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    check_alike(**named, **{f"slopes[{i}]": slope for i, slope in enumerate(slopes)})


def _row(weights, slopes, total):
    columns = len(weights) if total else sum(len(weight) for weight in weights)
    return weights[0].new_empty(len(slopes[0]) if slopes else 1, columns)


def _like(tensors):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]


def _fake_backward(d_norms, weights, slopes, total, needs_slopes):
    return _like(weights), _like(slopes) if needs_slopes else []


def _fake_total(weights, slopes, needs_slopes):
    return weights[0].new_empty(()), _like(weights), _like(slopes) if needs_slopes else []


def _fake_total_backward(d_total, weights, slopes, d_weights, d_slopes):
    return _like(d_weights), _like(d_slopes)


def _save(ctx, inputs, output):
    weights, slopes, ctx.total = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(*weights, *slopes)


def _backward(ctx, run, d_norms):
    saved, layers = ctx.saved_tensors, ctx.layers
    if d_norms is None:
        return [None] * layers, [None] * (layers - 1), None
    needs_slopes = any(ctx.needs_input_grad[1])
    args = (d_norms, list(saved[:layers]), list(saved[layers:]), ctx.total, needs_slopes)
    d_weights, d_slopes = run("gram_norms_backward", *args)
    return d_weights, d_slopes if needs_slopes else [None] * (layers - 1), None


def _save_total(ctx, inputs, output):
    weights, slopes, ctx.needs_slopes = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(*weights, *slopes, *output[1], *output[2])


def _backward_total(ctx, run, d_total, *_):
    saved, layers = ctx.saved_tensors, ctx.layers
    if d_total is None:
        return [None] * layers, [None] * (layers - 1), None
    inputs, gradients = saved[: 2 * layers - 1], saved[2 * layers - 1 :]
    args = (inputs[:layers], inputs[layers:], gradients[:layers], gradients[layers:])
    d_weights, d_slopes = run("gram_norms_total_backward", d_total, *(list(a) for a in args))
    return d_weights, d_slopes if ctx.needs_slopes else [None] * (layers - 1), None


define("gram_norms(Tensor[] weights, Tensor[] slopes, bool total) -> Tensor", __name__, _row)
define(
    "gram_norms_backward(Tensor d_norms, Tensor[] weights, Tensor[] slopes, bool total, bool needs_slopes)"
    " -> (Tensor[], Tensor[])",
    __name__,
    _fake_backward,
)
define(
    "gram_norms_total(Tensor[] weights, Tensor[] slopes, bool needs_slopes) -> (Tensor, Tensor[], Tensor[])",
    __name__,
    _fake_total,
)
define(
    "gram_norms_total_backward(Tensor d_total, Tensor[] weights, Tensor[] slopes, Tensor[] d_weights,"
    " Tensor[] d_slopes) -> (Tensor[], Tensor[])",
    __name__,
    _fake_total_backward,
)
differentiate("gram_norms", _save, _backward)
differentiate("gram_norms_total", _save_total, _backward_total)
