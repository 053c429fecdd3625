"""Where the prediction changes on a plane: within each linear region along line segments, which are exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llr_fast.certificates.evaluation import samples_at_once
from llr_fast.outputs import logits_of


def decision_boundary(model: nn.Module, regions: Sequence[Tensor], like: Tensor, target: int) -> Tensor:
    """[S, 2, 2]: the ends of the segments along which the predicted class turns to or from `target`.

    Logits are affine in a region, so that those at its vertices tell where they are equal. Of a single logit it is
    where that is zero.

    Args:
        regions: as of `regions_on_plane`.
        like: a tensor of the dtype and on the device of the inputs.
    """
    vertices, sizes = torch.cat(list(regions)), torch.tensor([len(r) for r in regions], device="cpu")
    stops = sizes.cumsum(0)
    following = torch.arange(1, len(vertices) + 1, device="cpu")
    following[stops - 1] = stops - sizes
    region = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
    lead = _leads(model, vertices, like, target)
    found = torch.cat([vertices, lead], 1)
    segments = []
    for other in range(lead.size(1)):
        ahead = lead[:, other] >= 0
        first = (ahead != ahead[following]).nonzero().squeeze(1)
        # A line enters a convex region once and leaves it once, but for those that are as thin as rounding.
        first = first[region[first].bincount(minlength=len(sizes))[region[first]] == 2].view(-1, 2)
        start, stop = found[first], found[following[first]]
        share = start[..., 2 + other] / (start[..., 2 + other] - stop[..., 2 + other])
        ends = torch.lerp(start, stop, share.unsqueeze(2))
        ends[..., 2 + other] = 0
        segments.append(_clipped(ends[..., :2], ends[..., 2:]))
    return torch.cat(segments)


@torch.no_grad()
def _leads(model: nn.Module, vertices: Tensor, like: Tensor, target: int) -> Tensor:
    """[V, classes - 1]: by how much the logit of `target` is ahead of the others; a single logit of zero."""
    chunk = samples_at_once(model, like.new_zeros(2, 2), torch.float64)
    logits = torch.cat([logits_of(model(part)).double().cpu() for part in vertices.to(like).split(chunk)])
    if logits.size(1) == 1:
        return logits
    leads = logits[:, target, None] - logits
    others = [other for other in range(leads.size(1)) if other != range(leads.size(1))[target]]
    return leads[:, others]


def _clipped(ends: Tensor, lead: Tensor) -> Tensor:
    """Of segments with `ends` [S, 2, 2], and `lead` [S, 2, n] there, the parts where no lead is negative."""
    first, last = lead.unbind(1)
    root = first / (first - last)
    start = torch.where(first < 0, torch.where(last < 0, torch.inf, root), 0.0).amax(1, keepdim=True)
    stop = torch.where(last < 0, torch.where(first < 0, -torch.inf, root), 1.0).amin(1, keepdim=True)
    some = (start < stop).squeeze(1)
    begin, end = ends[some].unbind(1)
    return torch.stack([torch.lerp(begin, end, part[some]) for part in (start, stop)], 1)
