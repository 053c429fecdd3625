"""margin_reduce and smallest_bounds in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.arguments import accumulation_dtype


def ratio_dtype(distance: Tensor, norm: Tensor) -> torch.dtype:
    """The type in which ratios are computed and compared."""
    return accumulation_dtype(torch.promote_types(distance.dtype, norm.dtype))


def _ratios(distances: list[Tensor], norms: list[Tensor]) -> Tensor:
    """[B, N] over the neurons of all layers, with -inf for NaN, so that it comes first."""
    dtype = ratio_dtype(distances[0], norms[0])
    ratios = [(d.to(dtype) / n).where(n != 0, torch.inf) for d, n in zip(distances, norms, strict=True)]
    ratio = torch.cat(ratios, 1)
    return ratio.where(~ratio.isnan(), -torch.inf)


def locate(value: Tensor, flat: Tensor, widths: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values in the type asked for, and the layer and neuron of flat indices into layers of these widths."""
    ends = torch.tensor(widths, device=flat.device).cumsum(0)
    layer = torch.searchsorted(ends, flat, right=True)
    starts = torch.nn.functional.pad(ends, (1, 0))
    is_none = value == torch.inf
    value = value.where(value != -torch.inf, torch.nan).to(dtype)
    return value, layer.where(~is_none, -1), (flat - starts[layer]).where(~is_none, -1)


def margin_reduce(distances: list[Tensor], norms: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    ratio = torch.nn.functional.pad(_ratios(distances, norms), (0, 1), value=torch.inf)
    flat = ratio.argmin(1)  # the first of equals
    value = ratio.gather(1, flat.unsqueeze(1)).squeeze(1)
    return locate(value, flat, [d.shape[1] for d in distances], distances[0].dtype)


def smallest_bounds(distances: list[Tensor], norms: list[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    ratio = _ratios(distances, norms)
    value, flat = ratio.topk(min(count, ratio.shape[1]), largest=False)
    return locate(value, flat, [d.shape[1] for d in distances], distances[0].dtype)
