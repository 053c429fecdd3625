"""The paper's own ways to the gradient norms of all hidden neurons.

Each takes a model whose activations are nn.ReLU modules, called once each, and x [B, ...]. It returns the squared l2
norms [B, N] of the neurons' gradients and their values [B, N], in forward order and differentiable in the parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def paper_passes(model: nn.Sequential, x: Tensor, axes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Section 4.1 of the paper: with its pattern frozen the network is affine, so that the passes of the D one-hot
    inputs, less that of the zero input, are the derivatives along all axes: D + 1 passes for each sample.

    With `axes` [K], int64, K + 1 passes, and the sums over these axes times D / K (Eq. 10).
    """
    values, size = hidden_values(model, x), x[0].numel()
    unit = torch.eye(size, dtype=x.dtype, device=x.device)
    unit = unit if axes is None else unit[axes]
    inputs = torch.cat([x.new_zeros(1, size), unit])
    passes = inputs.view(-1, *x.shape[1:]).repeat(len(x), *[1] * (x.dim() - 1))
    squares: list[Tensor] = []
    for module in model:
        if not isinstance(module, nn.ReLU):
            passes = module(passes)
            continue
        z, layer = values[len(squares)], passes.unflatten(0, (len(x), len(inputs)))
        squares.append((layer[:, 1:] - layer[:, :1]).square().sum(1).flatten(1))
        if len(squares) == len(values):
            break
        passes = (layer * _slope(z).unsqueeze(1)).flatten(0, 1)
    return torch.cat(squares, 1) * (size / len(unit)), rows(values)


def layer_by_layer(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Appendix D of the paper, for dense layers: each layer's Jacobian from that of the layer below; the batch shares
    the first."""
    values = hidden_values(model, x)
    first, *others = [module.weight for module in model if isinstance(module, nn.Linear)][: len(values)]
    jacobian = first.t().unsqueeze(0)  # [1 or B, D, n]
    squares = [jacobian.square().sum(1).expand(len(x), -1)]
    for weight, z in zip(others, values):
        jacobian = (jacobian * _slope(z).unsqueeze(1)) @ weight.t()
        squares.append(jacobian.square().sum(1))
    return torch.cat(squares, 1), rows(values)


def per_neuron_backprop(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One back-propagation for each neuron, of the whole batch; training differentiates through all of them."""
    training, x = torch.is_grad_enabled(), x.detach().requires_grad_()
    squares = []
    with torch.enable_grad():
        values = hidden_values(model, x)
        for z in values:
            for neuron in z.flatten(1).sum(0).unbind():
                (gradient,) = torch.autograd.grad(neuron, x, retain_graph=True, create_graph=training)
                squares.append(gradient.flatten(1).square().sum(1))
    return torch.stack(squares, 1), rows(values)


def hidden_values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The input [B, ...] of every activation, in forward order."""
    values: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values.append(inputs[0])

    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.ReLU)]
    model(x)
    for handle in handles:
        handle.remove()
    return values


def penalty(squares: Tensor, values: Tensor, C: float = 1.0, gamma: float = 100.0) -> Tensor:
    """Eq. 9: the mean of the top gamma percent of each sample's brackets; from the results of a baseline."""
    brackets = squares + C * torch.relu(1 - values.abs())
    if gamma == 100:
        return brackets.mean()
    return brackets.topk(max(1, math.ceil(brackets.size(1) * gamma / 100)), dim=1).values.mean()


def rows(values: list[Tensor]) -> Tensor:
    """[B, N]: the neurons of all layers."""
    return torch.cat([z.flatten(1) for z in values], 1)


def _slope(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)
