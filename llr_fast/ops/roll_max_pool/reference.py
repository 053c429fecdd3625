"""roll_max_pool in plain torch: z [N, *space, I], tangents [K, N, *space, I], windows as one list of five parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype


def _entries(space: Sequence[int], windows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat positions of the entries of each window, [windows, places], and which of them are no padding.

    Padding has the position of the window's first entry.
    """
    flat = torch.zeros(1, 1, dtype=torch.long, device=device)
    real = torch.ones(1, 1, dtype=torch.bool, device=device)
    for length, kernel, stride, padding, dilation, size in _by_axis(space, windows):
        first = torch.arange(size, device=device) * stride - padding
        position = first[:, None] + torch.arange(kernel, device=device) * dilation
        here = (position >= 0) & (position < length)
        flat = (flat[:, None, :, None] * length + position[None, :, None, :]).flatten(2).flatten(0, 1)
        real = (real[:, None, :, None] & here[None, :, None, :]).flatten(2).flatten(0, 1)
    return torch.where(real, flat, flat.gather(1, real.byte().argmax(1, keepdim=True))), real


def _by_axis(space: Sequence[int], windows: Sequence[int]) -> list[tuple[int, ...]]:
    """For each axis its length, and kernel, stride, padding, dilation and size."""
    rank = len(space)
    return [(length, *windows[axis::rank]) for axis, length in enumerate(space)]


def _flat(planes: Tensor, rank: int) -> Tensor:
    """[..., *space, I] as [..., I, positions], of which `rank` are axes of space."""
    return planes.movedim(-1, -1 - rank).flatten(-rank)


def _unflat(flat: Tensor, space: Sequence[int]) -> Tensor:
    """The inverse of `_flat`."""
    return flat.unflatten(-1, space).movedim(-1 - len(space), -1).contiguous()


def roll_max_pool(z: Tensor, tangents: Tensor, windows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))
    rank = z.dim() - 2
    entries, real = _entries(z.shape[1:-1], windows, z.device)
    size = windows[4 * rank :]
    values, rows = _flat(z, rank)[..., entries], _flat(tangents, rank)  # [N, I, windows, places], [K, N, I, positions]
    index = entries.expand(values.shape).gather(-1, values.argmax(-1, keepdim=True))  # [N, I, windows, 1]
    out = _flat(z, rank).gather(-1, index.squeeze(-1))
    winning = rows.gather(-1, index.squeeze(-1).expand(len(rows), *out.shape))
    loses = real & (entries != index)
    lead = out[..., None].to(wide) - values.to(wide)
    hinges = torch.where(loses, torch.where(lead < 1, 1 - lead, lead - lead), 0.0)
    ahead = torch.where(loses, winning[..., None].to(wide) - rows[..., entries].to(wide), 0.0)
    sums = torch.stack([ahead.square().sum(), hinges.sum()])
    channels = torch.arange(z.size(-1), device=z.device)
    index = (index.squeeze(-1) * z.size(-1) + channels[:, None]).to(torch.int32)
    return _unflat(out, size), _unflat(winning, size), sums, _unflat(index, size)


def roll_max_pool_backward(
    d_out: Tensor, d_winning: Tensor, d_sums: Tensor, z: Tensor, tangents: Tensor, index: Tensor, windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(z.dtype, tangents.dtype))
    rank = z.dim() - 2
    d_squares, d_hinges = d_sums.to(wide).unbind()
    entries, real = _entries(z.shape[1:-1], windows, z.device)
    winner = _flat(index, rank).long() // max(1, z.size(-1))  # [N, I, windows]: where in the planes

    def scattered(values: Tensor, arriving: Tensor, to_losers: Callable[[Tensor], Tensor]) -> Tensor:
        """Losers get to_losers(leads over them), and winners what arrives and the negative of that."""
        flat, winners = _flat(values, rank).to(wide), winner.expand(*values.shape[: -rank - 1], *winner.shape[-2:])
        lead = flat.gather(-1, winners)[..., None] - flat[..., entries]
        losers = torch.where(real, to_losers(lead), 0.0)
        found = torch.zeros_like(flat).scatter_add(-1, winners, _flat(arriving, rank).to(wide) - losers.sum(-1))
        found = found.index_add(-1, entries.flatten(), losers.flatten(-2))
        return _unflat(found, values.shape[-rank - 1 : -1]).to(values.dtype)

    d_z = scattered(z, d_out, lambda lead: d_hinges * ((lead > 0) & (lead < 1)).to(wide))
    return d_z, scattered(tangents, d_winning, lambda lead: -2 * d_squares * lead)
