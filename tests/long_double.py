"""Networks in 80 bits, by numpy: values and Jacobians of dense, convolutional and residual ones."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

LONG = np.longdouble
needs_80_bits = pytest.mark.skipif(np.finfo(LONG).eps > 1e-18, reason="long double is double here")
NORM = {
    1: lambda j: np.abs(j).max(1),
    2: lambda j: np.sqrt((j * j).sum(1)),
    math.inf: lambda j: np.abs(j).sum(1),
}  # of gradients, by p


class Residual(nn.Module):
    """x + inside(x)"""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


def dense(sizes: list[int], seed: int, gain: float = 1.0, batch: int = 3) -> tuple[nn.Sequential, torch.Tensor]:
    """A chain; a `gain` of 6 ** 0.5 keeps values as large as they are in deep ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        for layer in layers[::2]:
            layer.weight.data *= gain
        return nn.Sequential(*layers[:-1]), torch.randn(batch, sizes[0])


def layers(
    model: nn.Module, sample: torch.Tensor
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
    """Values and Jacobians of each layer of ReLUs, and of the output."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    size = sample.numel()
    value, jacobian, _ = _run(model, sample.numpy().astype(LONG).ravel(), np.eye(size, dtype=LONG), sample.shape, found)
    return found, value, jacobian


def margin(model: nn.Module, sample: torch.Tensor, p: float) -> np.longdouble:
    """To the nearest kink."""
    distances = [LONG(np.inf)]
    for value, jacobian in layers(model, sample)[0]:
        norms = NORM[p](jacobian)
        distances += list(np.abs(value)[norms > 0] / norms[norms > 0])
    return min(distances)


def lead(model: nn.Module, sample: torch.Tensor, p: float) -> np.longdouble:
    """To where another logit is as large."""
    _, value, jacobian = layers(model, sample)
    winner = value.argmax()
    ahead, gradient = np.delete(value[winner] - value, winner), np.delete(jacobian[winner] - jacobian, winner, 0)
    return (ahead / NORM[p](gradient)).min()


def _run(module: nn.Module, value, jacobian, shape, found):
    if isinstance(module, nn.Sequential):
        for part in module:
            value, jacobian, shape = _run(part, value, jacobian, shape, found)
        return value, jacobian, shape
    if isinstance(module, Residual):
        inside, of_inside, _ = _run(module.inside, value, jacobian, shape, found)
        return value + inside, jacobian + of_inside, shape
    if isinstance(module, nn.ReLU):
        found.append((value, jacobian))
        return value * (value > 0), jacobian * (value > 0)[:, None], shape
    if isinstance(module, nn.Flatten):
        return value, jacobian, (value.size,)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        matrix, shape = weight, (len(weight),)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach()
    else:  # a convolution of units is exact
        columns = nn.functional.conv2d(
            torch.eye(value.size, dtype=weight.dtype).view(-1, *shape), weight, None, module.stride, module.padding
        )
        matrix, shape = columns.flatten(1).T, tuple(columns.shape[1:])
        bias = module.bias.detach()[:, None].expand(-1, shape[1] * shape[2]).flatten()
    matrix = matrix.numpy().astype(LONG)
    return matrix @ value + bias.numpy().astype(LONG), matrix @ jacobian, shape
