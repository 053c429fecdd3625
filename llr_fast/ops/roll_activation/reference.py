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
    sums = torch.stack([tangents.to(wide).square().sum(), hinges.sum()])
    out = (
        wide_z.clamp(lower, upper) if below == 0 and slope is None else _bent(wide_z, slope, below, lower, upper, inner)
    )
    code = piece + 4 * (near & (offset > 0)).to(torch.int8) + 8 * (near & (offset < 0)).to(torch.int8)
    masked = tangents.new_empty(0)
    if store:
        masked = (tangents * _slopes(piece, slope, below, inner, wide).to(tangents.dtype)).contiguous()
    return out.to(z.dtype).contiguous(), masked, sums, code


def _bent(z: Tensor, slope: Tensor | None, below: float, lower: float, upper: float, inner: int) -> Tensor:
    bent = lower + _slopes(torch.zeros_like(z), slope, below, inner, z.dtype) * (z - lower)
    return torch.where(z > lower, z.clamp_max(upper), bent)


def _slopes(piece: Tensor, slope: Tensor | None, below: float, inner: int, wide: torch.dtype) -> Tensor:
    """[n]: that of each neuron's piece."""
    under = torch.full_like(piece, below, dtype=wide)
    if slope is not None and piece.numel():
        by_channel = slope.to(wide).view(-1, 1).expand(slope.numel(), inner).flatten()
        under = by_channel.expand(piece.numel() // by_channel.numel(), -1).flatten()
    return torch.where(piece == 1, 1.0, torch.where(piece == 0, under, 0.0))


def roll_activation_backward(
    d_out: Tensor,
    d_masked: Tensor | None,
    d_sums: Tensor,
    tangents: Tensor,
    code: Tensor,
    slope: Tensor | None,
    below: float,
    inner: int,
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(d_out.dtype, tangents.dtype))
    d_squares, d_hinges = d_sums.to(wide).unbind()
    slopes = _slopes(code & 3, slope, below, inner, wide)
    side = ((code & 8) != 0).to(wide) - ((code & 4) != 0).to(wide)
    d_z = d_out.to(wide) * slopes + d_hinges * side
    d_tangents = 2 * d_squares * tangents.to(wide)
    if d_masked is not None:
        d_tangents = torch.addcmul(d_tangents, d_masked.to(wide), slopes)
    return d_z.to(d_out.dtype).contiguous(), d_tangents.to(tangents.dtype).contiguous()
