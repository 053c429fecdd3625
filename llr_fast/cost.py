"""What the methods cost, in multiply-adds for each sample, so that "auto" can choose between them.

A small model, good to a factor of two or so: one direction costs a forward pass; the search a fixed number of
directions and back-propagations; the Gram matrices of a chain of dense layers with half of its units active a few
products of half-sized matrices for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

SEARCH_PASSES = 50  # 14 to 28 directions, and mostly less than 16 back-propagations at twice a forward pass
FEW_DERIVATIVES = 2**18  # of all neurons by all inputs: they cost less than what the search begins with
AFFORDABLE_PASSES = 16  # what an exact loss may cost before random directions, at one pass, are taken instead


def forward(weights: Sequence[Tensor]) -> float:
    """One forward pass through a chain of dense layers [O, I]."""
    return sum(weight.numel() for weight in weights)


def gram(weights: Sequence[Tensor]) -> float:
    """The squared gradient norms of all neurons of the chain; the first layer's are shared by the batch."""
    return sum(weight.size(0) * weight.size(1) ** 2 / 4 for weight in weights[1:])
