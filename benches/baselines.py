"""What the paper and plain PyTorch offer for the gradient norms of all hidden neurons.

Each takes a model and x as `llr_fast.paper.algorithms` do, and returns the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from llr_fast.paper.algorithms import (
    hidden_values,
    layer_by_layer,
    paper_passes,
    penalty,
    per_neuron_backprop,
    rows,
)

__all__ = [
    "functorch_jacobian",
    "hidden_values",
    "layer_by_layer",
    "margin",
    "paper_passes",
    "penalty",
    "per_neuron_backprop",
]

CHUNK = 128  # directions that functorch_jacobian takes at a time


def functorch_jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.func, CHUNK directions at a time: forward mode where there are fewer input axes than neurons, else
    reverse mode. These are jacfwd and jacrev for a batch whose samples share their directions."""

    def values(x: Tensor) -> Tensor:
        return rows(hidden_values(model, x))

    def along(axis: Tensor) -> Tensor:
        return jvp(values, (x,), (axis.expand_as(x),))[1].square()

    def of(neuron: Tensor) -> Tensor:
        return pull(neuron.expand(len(x), -1))[0].flatten(1).square().sum(1)

    z, pull = vjp(values, x)
    axes, neurons = x[0].numel(), z.size(1)
    if axes <= neurons:
        unit = torch.eye(axes, dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])
        return vmap(along, chunk_size=CHUNK)(unit).sum(0), z
    unit = torch.eye(neurons, dtype=x.dtype, device=x.device)
    return vmap(of, chunk_size=CHUNK)(unit).t(), z


def margin(squares: Tensor, values: Tensor) -> Tensor:
    """The l2 margin [B], from the results of a baseline."""
    return (values.abs() / squares.sqrt()).masked_fill(squares == 0, math.inf).amin(1)
