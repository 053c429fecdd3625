"""The decisions of a classifier as neurons: the lead of the predicted class over every other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llr_fast.certificates.agreement import plain_output
from llr_fast.outputs import Around, logits_of


class Decision(Around):
    """The model with its decision as a last layer of neurons, whose kinks are where another class takes over.

    A maximum over the logits has the winner's leads as neurons; of one logit the sign is the decision.
    """

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.model(x))
        classes = logits.size(1)
        return torch.relu(logits) if classes == 1 else F.max_pool1d(logits.unsqueeze(1), classes).flatten(1)


def predicted(model: nn.Module, x: Tensor, pieces: Tensor) -> tuple[Tensor, int]:
    """[B]: the classes at x [B, ...], from the pieces [B, n] of the decision's neurons, and how many classes there are.

    Of one logit it is class 1 where it is positive. Where there are no such neurons, as the logits are the same
    everywhere, they are computed.
    """
    if pieces.size(1):
        return pieces[:, 0].long(), pieces.size(1) + 1
    logits = logits_of(plain_output(model, x))
    if logits.size(1) == 1:
        return logits[:, 0].gt(0).long(), 2
    return logits.argmax(1), logits.size(1)
