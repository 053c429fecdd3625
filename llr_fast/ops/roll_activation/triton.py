"""roll_activation for GPUs: how its kernels are launched."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..common.arguments import accumulation_dtype
from .kernels import roll_activation_backward_kernel, roll_activation_kernel


def blocks(*tensors: Tensor) -> dict[str, int]:
    """One load of 16 bytes of the widest type for each thread, as more would spread the loads of the others."""
    return {"BLOCK": 4096 // max(t.element_size() for t in tensors), "num_warps": 8}


def by_channel(numbers: Tensor | None) -> tuple[Tensor | None, int]:
    """A number for each channel, and how many these are."""
    return (None, 1) if numbers is None else (numbers.contiguous(), numbers.numel())


def launch_roll_activation(
    z: Tensor,
    tangents: Tensor,
    factor: Tensor | None,
    slope: Tensor | None,
    below: float,
    lower: float,
    upper: float,
    inner: int,
    store: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, tangents = z.contiguous(), tangents.contiguous()
    K, n = tangents.shape
    meta = blocks(z, tangents)
    programs = triton.cdiv(n, meta["BLOCK"])
    out = z.new_empty(n)
    masked = tangents.new_empty((K, n) if store else 0)
    parts = z.new_empty((programs, 2), dtype=accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype)))
    code = z.new_empty(n, dtype=torch.int8)
    if n:
        roll_activation_kernel[(programs,)](
            z, tangents, *by_channel(factor), *by_channel(slope), out, masked if store else None, parts, code,
            K, n, inner, BELOW=below, LOWER=lower, UPPER=upper, **meta,
        )  # fmt: skip
    return out, masked, parts.sum(0), code


def launch_roll_activation_backward(
    d_out: Tensor,
    d_masked: Tensor | None,
    d_sums: Tensor,
    tangents: Tensor,
    code: Tensor,
    factor: Tensor | None,
    slope: Tensor | None,
    below: float,
    inner: int,
) -> tuple[Tensor, Tensor, Tensor]:
    d_out, tangents = d_out.contiguous(), tangents.contiguous()
    d_sums = d_sums.to(accumulation_dtype(torch.promote_types(d_out.dtype, tangents.dtype))).contiguous()
    K, n = tangents.shape
    meta = blocks(d_out, tangents)
    d_z, d_tangents = d_out.new_empty(n), tangents.new_empty(K, n)
    products = d_sums.new_empty(0 if factor is None else n)  # whose sum by channel is the gradient by the factor
    if n:
        roll_activation_backward_kernel[(triton.cdiv(n, meta["BLOCK"]),)](
            d_out, None if d_masked is None else d_masked.contiguous(), d_sums, tangents, code.contiguous(),
            *by_channel(factor), *by_channel(slope), d_z, d_tangents, None if factor is None else products,
            K, n, inner, BELOW=below, **meta,
        )  # fmt: skip
    if factor is None:
        return d_z, d_tangents, tangents.new_empty(0)
    return d_z, d_tangents, products.view(-1, factor.numel(), inner).sum((0, 2)).to(factor.dtype)
