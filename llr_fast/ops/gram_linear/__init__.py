"""The Gram matrix of a layer through an activation and the linear layer after it, with its diagonal."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import call, define, differentiate
from ..common.arguments import accumulation_dtype, check_alike, check_tensor, refuse_forward_mode


def gram_linear(gram: Tensor, slope: Tensor, weight: Tensor, store: bool = True) -> tuple[Tensor, Tensor]:
    """Map the Gram matrices G = J J^T of a layer's Jacobians through its activation and the next linear layer.

        out[b] = W D_b G_b D_b W^T, where D_b = diag(slope[b])
        diagonal[b, o] = out[b, o, o], the squared l2 norms of the next layer's gradients

    Args:
        gram: [B, n, n], or [1, n, n] where the batch shares it; symmetric, which is not checked; float16, bfloat16,
            float32 or float64.
        slope: [B, n], in the dtype of gram.
        weight: W [O, n], in the dtype of gram.
        store: False where only the diagonal is wanted; out is then empty and never computed.

    Returns:
        out [B, O, O] in the dtype of gram, and diagonal [B, O] in float32 (float64 for a float64 gram), taken before
        out is rounded to that dtype.

    The gradient by gram is symmetric: the one among symmetric matrices.

    Raises:
        TypeError, ValueError: for a wrong dtype or shape.
        NotImplementedError: under forward-mode differentiation.
    """
    check_tensor("slope", slope, "[B, n]", (None, None))
    batch, n = slope.shape
    check_tensor("gram", gram, f"[{batch} or 1, {n}, {n}]", ((1, batch), n, n))
    check_tensor("weight", weight, f"[O, {n}]", (None, n))
    check_alike(gram=gram, slope=slope, weight=weight)
    refuse_forward_mode("gram_linear", gram, slope, weight)
    return call("gram_linear", gram, slope, weight, store)


def _fake(gram, slope, weight, store):
    batch, outputs = slope.shape[0], weight.shape[0]
    out = gram.new_empty((batch, outputs, outputs) if store else 0)
    return out, gram.new_empty(batch, outputs, dtype=accumulation_dtype(gram.dtype))


def _fake_backward(d_out, d_diagonal, gram, slope, weight, needs_gram, needs_slope, needs_weight):
    return (
        gram.new_empty(gram.shape if needs_gram else 0),
        slope.new_empty(slope.shape if needs_slope else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
    )


def _save(ctx, inputs, output):
    *tensors, ctx.store = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, run, d_out, d_diagonal):
    d_out = d_out if ctx.store else None
    if d_out is None and d_diagonal is None:
        return (None,) * 4
    needs = ctx.needs_input_grad[:3]
    gradients = run("gram_linear_backward", d_out, d_diagonal, *ctx.saved_tensors, *needs)
    return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), None


define(
    "gram_linear(Tensor gram, Tensor slope, Tensor weight, bool store) -> (Tensor, Tensor)",
    __name__,
    _fake,
)
define(
    "gram_linear_backward(Tensor? d_out, Tensor? d_diagonal, Tensor gram, Tensor slope, Tensor weight,"
    " bool needs_gram, bool needs_slope, bool needs_weight) -> (Tensor, Tensor, Tensor)",
    __name__,
    _fake_backward,
)
differentiate("gram_linear", _save, _backward)
