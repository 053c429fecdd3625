"""A network's outputs with their derivatives; an evaluation itself keeps those of the neurons alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llr_fast.checks import WithDerivatives
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.tensor import LinearizedTensor
from llr_fast.outputs import Around, reals_of


class Observed(Around):
    """A model that remembers the outputs of its first evaluation, which is one along directions.

    Further evaluations compare values alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._outputs: list[_Output] | None = None

    def forward(self, x: Tensor) -> Any:
        output = self.model(x)
        if self._outputs is None and isinstance(x, WithDerivatives):
            self._outputs = [_observed(leaf) for leaf in reals_of(output)]
        return output

    def tangents(self, x: Tensor, count: int) -> Tensor:
        """[count, B, 1 + n]: those of all outputs at x [B, ...], behind zeros in case that none depends on it."""
        none = torch.zeros(count, x.size(0), 1, dtype=torch.float64, device=x.device)
        moving = [found.along for found in self._outputs or () if found.along]
        return torch.cat([none, *(samples.rows(tangents, lead=1) for tangents, samples in moving)], 2)

    def derivatives(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Those of all outputs at x [1, ...] along the first `count` directions, [L, count], and their values [L]."""
        found, values = [x.new_zeros(0, count)], [x.new_zeros(0)]
        for value, along in self._outputs or ():
            constant = value.new_zeros(value.numel(), count)
            found.append(along[0][:count].flatten(1).t() if along else constant)
            values.append(value.flatten())
        return torch.cat(found), torch.cat(values)


class _Output(NamedTuple):
    """A value in float64, and where it depends on x `along`: its tangents [K, *value.shape] and where samples lie."""

    value: Tensor
    along: tuple[Tensor, Samples] | None


def _observed(leaf: Tensor) -> _Output:
    if not isinstance(leaf, LinearizedTensor):
        return _Output(leaf.detach().double(), None)
    assert isinstance(leaf.linearization, Directions)
    tangents = leaf.linearization.tangents.detach()
    # A copy of the value, which a model that keeps its outputs may write to when it runs again.
    return _Output(leaf.value.detach().clone(), (tangents.expand(len(tangents), *leaf.value.shape), leaf.samples))
