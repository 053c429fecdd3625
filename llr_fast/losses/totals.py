"""Sums over all hidden neurons in a training step along random directions, in one evaluation of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llr_fast.linearized.directions import Directions, Scaled
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.linearized.later import Later
from llr_fast.linearized.layers import Activation, FusedCollector, Ramp, Windows
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.single import Single
from llr_fast.linearized.torch_modes import checkpoint, is_traced
from llr_fast.losses.estimators import hinge, linearize_hidden
from llr_fast.ops.roll_activation import roll_activation
from llr_fast.ops.roll_max_pool import roll_max_pool


@dataclass
class Totals:
    """Over `neurons` neurons: `sums` [2] of the squared tangents and of the hinges of Eq. 9."""

    neurons: int
    sums: Tensor


class Summing(FusedCollector[Totals]):
    """Takes the sums of each activation as it is evaluated, fused where it is a ramp.

    Tangents behind the `last` activation are computed only if there is another one this time after all.
    """

    def __init__(self, last: int | None = None) -> None:
        self.activations = 0
        self._last = last

    def __call__(self, of: Activation, linearization: Linearization) -> tuple[Linearization, Totals]:
        assert isinstance(linearization, Directions)
        self.activations += 1
        activated, squares = linearization.activated_and_totalled(of.slope)
        hinges = hinge(of.z, of.kinks).sum().to(squares.dtype)
        return activated, Totals(of.z.numel(), torch.stack([squares, hinges]))

    def ramp(self, z: Tensor, ramp: Ramp, linearization: Linearization) -> tuple[Tensor, Linearization, Totals]:
        assert isinstance(linearization, Directions)
        self.activations += 1
        factor = None
        if isinstance(linearization, Scaled) and not linearization.is_computed:
            tangents, factor = linearization.inputs.tangents, linearization.factor
        else:
            tangents = linearization.tangents
        below = ramp.below.to(z.dtype) if isinstance(ramp.below, Tensor) else ramp.below
        store = self.activations != self._last or checkpoint() is not None
        found = roll_activation(
            z, tangents, lower=ramp.lower, upper=ramp.upper, below=below, factor=factor, store=store
        )
        value, masked, sums = found
        activated = Directions(masked) if store else Later(lambda: linearization.activated(ramp.slope(z)), tangents)
        return value, activated, Totals(z.numel(), sums)

    def pool(self, z: Tensor, windows: Windows, linearization: Linearization) -> tuple[Tensor, Linearization, Totals]:
        assert isinstance(linearization, Directions)
        self.activations += 1
        w = windows
        found = roll_max_pool(z, linearization.tangents, w.kernel, w.stride, w.padding, w.dilation, w.size)
        value, winning, sums = found
        return value, Directions(winning), Totals(_leads(windows) * z.shape[:2].numel(), sums)


def _leads(windows: Windows) -> int:
    """How many losers all windows of one plane have together."""
    entries = math.prod(sum(map(len, axis)) for axis in windows.entries())
    return entries - math.prod(windows.size)


def totals_along(model: nn.Module, x: Tensor, directions: Directions, summing: Summing) -> tuple[Any, Totals]:
    """The model's output, and the totals over all its hidden neurons.

    All in one evaluation: where the model is checkpointed, so are the tangents.
    """
    if is_traced() and directions.shape[0] == 1:
        directions = Single(directions.tangents[0])
    output, layers = linearize_hidden(x, directions, Evaluation(model, summing))
    sums = torch.stack([layer.sums for layer in layers]).sum(0)
    return output, Totals(sum(layer.neurons for layer in layers), sums)
