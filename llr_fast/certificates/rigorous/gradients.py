"""Upper bounds of all gradient norms that hold in real arithmetic: what was measured, and what rounding took of it."""

from __future__ import annotations

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.absolute import AbsoluteBounds
from llr_fast.linearized.gram import Chain
from llr_fast.linearized.local import SLACK


@torch.no_grad()
def by_gram(chain: Chain, absolute: AbsoluteBounds) -> list[Tensor]:
    """For each layer the l2 norms [B, n], from Gram matrices, each entry a sum over pairs of paths."""
    relative = (1 + absolute.relative) ** 3 - 1
    pairs = zip(chain.norms(torch.float64, 1.0)[0], absolute.paths, strict=True)
    return [(norms.square() * SLACK + relative * paths.square()).sqrt() * SLACK for norms, paths in pairs]


@torch.no_grad()
def over_axes(frozen: Frozen, q: float, absolute: AbsoluteBounds) -> list[Tensor]:
    """For each layer the norms [B, n], from all axes."""
    pairs = zip(frozen.over_axes(q, torch.float64, 1.0), absolute.paths, strict=True)
    return [(norms + absolute.relative * paths) * SLACK for norms, paths in pairs]
