"""roll_activation in plain torch: z [n], tangents [K, n], slopes by channel, of which each has `inner` neighbours.

The code of a neuron is its piece, 0 to 2 from below, plus 4 where it lies less than 1 above its nearest kink and 8
where it lies less than 1 below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype


def roll_activation(
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
    wide = accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))
    wide_z = z.to(wide)  # against numbers in low precision, kinks would be rounded to it
    piece = (wide_z > lower).to(torch.int8) + (wide_z > upper).to(torch.int8)
    offset = wide_z - lower
    if math.isfinite(upper):
        of_upper = wide_z - upper
        offset = torch.where(of_upper.abs() < offset.abs(), of_upper, offset)
    near = offset.abs() < 1
    hinges = torch.where(near, 1 - offset.abs(), offset - offset)
    if factor is not None:
        tangents = (tangents * by_channel(factor, inner, z.numel())).to(tangents.dtype)
    sums = torch.stack([tangents.to(wide).square().sum(), hinges.sum()])
    is_flat = below == 0 and slope is None
    out = wide_z.clamp(lower, upper) if is_flat else _bent(wide_z, slope, below, lower, upper, inner)
    code = piece + 4 * (near & (offset > 0)).to(torch.int8) + 8 * (near & (offset < 0)).to(torch.int8)
    masked = tangents * _slopes(piece, slope, below, inner, tangents.dtype) if store else tangents.new_empty(0)
    return out.to(z.dtype), masked.contiguous(), sums, code


def _bent(z: Tensor, slope: Tensor | None, below: float, lower: float, upper: float, inner: int) -> Tensor:
    bent = lower + _slopes(torch.zeros_like(z), slope, below, inner, z.dtype) * (z - lower)
    return torch.where(z > lower, z.clamp_max(upper), bent)


def by_channel(numbers: Tensor, inner: int, n: int) -> Tensor:
    """[n]: the number [C] of each neuron's channel."""
    if numbers.numel() == 1 or n == 0:
        return numbers.flatten()[:1].expand(n) if n else numbers[:0].flatten()
    return numbers.view(-1, 1).expand(numbers.numel(), inner).flatten().repeat(n // (numbers.numel() * inner))


def _slopes(piece: Tensor, slope: Tensor | None, below: float, inner: int, dtype: torch.dtype) -> Tensor:
    """[n]: that of each neuron's piece."""
    if slope is None:
        under = torch.full_like(piece, below, dtype=dtype)
    else:
        under = by_channel(slope.to(dtype), inner, piece.numel())
    return torch.where(piece == 0, under, (piece == 1).to(dtype))


def roll_activation_backward(
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
    wide = accumulation_dtype(torch.promote_types(d_out.dtype, tangents.dtype))
    d_squares, d_hinges = d_sums.to(wide).unbind()
    slopes = _slopes(code & 3, slope, below, inner, wide)
    side = ((code & 8) != 0).to(wide) - ((code & 4) != 0).to(wide)
    d_z = d_out.to(wide) * slopes + d_hinges * side
    scales = None if factor is None else by_channel(factor.to(wide), inner, code.numel())
    d_tangents = 2 * d_squares * tangents.to(wide) * (1 if scales is None else scales)
    if d_masked is not None:
        d_tangents = torch.addcmul(d_tangents, d_masked.to(wide), slopes)
    d_factor = tangents.new_empty(0)
    if factor is not None and scales is not None:
        products = (d_tangents * tangents.to(wide)).sum(0)
        d_factor = products.view(-1, factor.numel(), inner).sum((0, 2)).to(factor.dtype)
        d_tangents = d_tangents * scales
    return d_z.to(d_out.dtype), d_tangents.to(tangents.dtype).contiguous(), d_factor
