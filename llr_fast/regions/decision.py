"""The decisions of a classifier as neurons: the lead of the predicted class over every other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llr_fast.certificates import evaluation
from llr_fast.outputs import logits_of


class Decision(nn.Module):
    """The model with its decision as a last layer of neurons, whose kinks are where another class takes over.

    A maximum over the logits has the winner's leads as neurons; of one logit the sign is the decision.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.model(x))
        classes = logits.size(1)
        return torch.relu(logits) if classes == 1 else F.max_pool1d(logits.unsqueeze(1), classes).flatten(1)


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """[B]: the classes at x [B, ...], in float64; of one logit, 1 where it is positive."""
    decisions = evaluation.values_of(Decision(model), x, torch.float64)
    if not decisions:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    return decisions[-1].piece[:, 0].long()
