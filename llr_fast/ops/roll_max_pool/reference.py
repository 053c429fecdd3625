"""roll_max_pool in plain torch: z [N, *space], tangents [K, N, *space], windows as one list of five parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype


def _entries(space: Sequence[int], windows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat positions of the entries of each window, [windows, places], and which of them are no padding."""
    flat = torch.zeros(1, 1, dtype=torch.long, device=device)
    real = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, kernel, stride, padding, dilation, size in _by_axis(space, windows):
        first = torch.arange(size, device=device) * stride - padding
        position = first[:, None] + torch.arange(kernel, device=device) * dilation
        here = (position >= 0) & (position < length)
        flat = (flat[:, None, :, None] * length + position[None, :, None, :]).flatten(2).flatten(0, 1)
        real = (real[:, None, :, None] & here[None, :, None, :]).flatten(2).flatten(0, 1)
    return torch.where(real, flat, 0), real


def _by_axis(space: Sequence[int], windows: Sequence[int]) -> list[tuple[int, ...]]:
    """For each axis its length, and kernel, stride, padding, dilation and size."""
    rank = len(space)
    return [(length, *windows[axis::rank]) for axis, length in enumerate(space)]


def roll_max_pool(z: Tensor, tangents: Tensor, windows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))
    entries, real = _entries(z.shape[1:], windows, z.device)
    size = windows[4 * (z.dim() - 1) :]
    values = torch.where(real, z.flatten(1)[:, entries], -math.inf)  # [N, windows, places]
    place = values.argmax(-1, keepdim=True)
    index = entries.expand(values.shape).gather(-1, place).squeeze(-1)  # [N, windows]
    out = z.flatten(1).gather(1, index)
    winning = tangents.flatten(2).gather(2, index.expand(len(tangents), -1, -1))
    lead = (out[..., None] - values).to(wide)
    loses = real & (torch.arange(real.size(1), device=z.device) != place)
    hinges = torch.where(loses, torch.where(lead < 1, 1 - lead, lead - lead), 0.0)
    ahead = torch.where(loses, (winning[..., None] - tangents.flatten(2)[..., entries]).to(wide), 0.0)
    sums = torch.stack([ahead.square().sum(), hinges.sum()])
    shape = (z.shape[0], *size)
    return out.view(shape), winning.view(-1, *shape), sums, index.to(torch.int32).view(shape)


def roll_max_pool_backward(
    d_out: Tensor, d_winning: Tensor, d_sums: Tensor, z: Tensor, tangents: Tensor, index: Tensor, windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))
    d_squares, d_hinges = d_sums.to(wide).unbind()
    entries, real = _entries(z.shape[1:], windows, z.device)
    winner = index.flatten(1).long()
    lead = z.flatten(1).gather(1, winner)[..., None] - z.flatten(1)[:, entries]
    inside = (real & (entries != winner[..., None]) & (lead > 0) & (lead < 1)).to(wide)
    d_z = _scattered(d_out.flatten(1).to(wide), d_hinges * inside, winner, entries, z)
    flat = tangents.flatten(2)
    winners = winner.expand(len(tangents), -1, -1)
    ahead = torch.where(real, flat.gather(2, winners)[..., None].to(wide) - flat[..., entries].to(wide), 0.0)
    d_tangents = _scattered(d_winning.flatten(2).to(wide), -2 * d_squares * ahead, winners, entries, tangents)
    return d_z, d_tangents


def _scattered(to_winners: Tensor, to_losers: Tensor, winner: Tensor, entries: Tensor, like: Tensor) -> Tensor:
    """Gradients of winners [..., windows], and of losers [..., windows, places], which winners get with a minus."""
    lead = to_winners.dim() - 1
    found = to_losers.new_zeros(*like.shape[:lead], math.prod(like.shape[lead:]))
    found = found.scatter_add(-1, winner, to_winners - to_losers.sum(-1))
    found = found.index_add(-1, entries.flatten(), to_losers.flatten(-2))
    return found.view(like.shape).to(like.dtype)
