"""What is known of every hidden neuron at x: gradient norms, activation pattern, kinks ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates import bounds, evaluation
from llr_fast.certificates.bounds import Probe
from llr_fast.certificates.frozen import freeze
from llr_fast.certificates.rounding import Rounding, last_digits, stays_on
from llr_fast.checks import check_choice, check_direction
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.torch_modes import as_written


@dataclass(frozen=True)
class Neurons:
    """The neurons of one call of a piecewise-linear function.

    Attributes:
        name: path of the module and name of the function.
        distance: [B, n], distance of each neuron to its nearest kink.
        norm: [B, n], ||grad_x z||_q.
    """

    name: str
    distance: Tensor
    norm: Tensor


@as_written
def gradient_norms(model: nn.Module, x: Tensor, q: float = 2) -> list[Neurons]:
    """Exact l_q norms of the gradients of all hidden neurons with respect to x.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite.
        q: 1, 2 or inf.

    Returns:
        One `Neurons` for each call of a piecewise-linear function, in forward order, in float64.

    Raises:
        As `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> (layer,) = llr_fast.gradient_norms(model, torch.zeros(1, 2))
        >>> torch.allclose(layer.norm, model[0].weight.double().norm(dim=1))
        True
    """
    q = check_choice("q", q, norms.NORMS)
    evaluation.check(model, x, torch.float64)
    frozen = freeze(model, x, torch.float64)
    if not frozen.layers:
        return []
    probe = Probe.fixed(frozen)
    measured = bounds.exact_norms(frozen, probe, q, frozen.chain() if q == 2 else None)
    return [Neurons(layer.name, layer.distance, norm) for layer, norm in zip(frozen.layers, measured, strict=True)]


@as_written
def activation_pattern(model: nn.Module, x: Tensor) -> Tensor:
    """The linear piece that every hidden neuron is on.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite.

    Returns:
        [B, N] int16, in forward order: the number of kinks below the neuron's value; for max-pooling the place of the
        winner in its window, once for each entry that it beats. int32 where a window has more than 32,768 entries.

    Raises:
        As `margin`.

    Example:
        >>> import torch, llr_fast
        >>> llr_fast.activation_pattern(torch.nn.ReLU6(), torch.tensor([[-1.0, 3.0, 8.0]]))
        tensor([[0, 1, 2]], dtype=torch.int16)
    """
    evaluation.check(model, x, torch.float64)
    parts = x.split(evaluation.samples_at_once(model, x, torch.float64))
    return torch.cat([_pieces(evaluation.values_of(model, part, torch.float64), part) for part in parts])


@as_written
def directional_margin(model: nn.Module, x: Tensor, direction: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """How far each sample can move along a direction before the network's linear piece changes (Prop. 4).

    A neuron that is on a kink, and stays on it along the direction, has no kink ahead; both up to rounding, whose size
    is estimated for each neuron.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite.
        direction: the shape of x; not normalised, so the result counts its lengths.
        dtype: of values and tangents.

    Returns:
        [B] in `dtype`; +inf where no kink lies ahead.

    Raises:
        As `margin`.

    Example:
        >>> import torch, llr_fast
        >>> x, direction = torch.tensor([[1.0], [1.0]]), torch.tensor([[-0.5], [1.0]])
        >>> llr_fast.directional_margin(torch.nn.ReLU(), x, direction)
        tensor([2., inf], dtype=torch.float64)
    """
    evaluation.check(model, x, dtype)
    check_direction(direction, x)
    along, start = direction.detach().to(dtype), x.detach().to(dtype)
    scale = (_power_of_two(start) / _power_of_two(along)).clamp(torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    along = along * scale.view(-1, *[1] * (x.dim() - 1))
    rounding = Rounding()
    directions = rounding.start(along[None], torch.maximum(start.abs(), along.abs()))
    layers = evaluation.layers_of(model, x, directions, dtype, rounding=rounding)
    unbounded = x.new_full((x.size(0),), math.inf, dtype=dtype)
    return scale * torch.stack([unbounded, *(first_kink(layer).step for layer in layers)]).amin(0)


def _power_of_two(x: Tensor) -> Tensor:
    """[B]: that of the size of the largest entry of each sample, 1 where there is none but zeros."""
    largest = x.flatten(1).abs().amax(1)
    return torch.ldexp(torch.ones_like(largest), largest.frexp().exponent).masked_fill(largest == 0, 1.0)


class Step(NamedTuple):
    """To a kink along a direction: [B], +inf where none lies ahead, and [B], how far rounding may have moved it."""

    step: Tensor
    error: Tensor


def first_kink(layer: Layer) -> Step:
    """The smallest step along the first direction at which a neuron reaches a kink; on one it is below it."""
    moving = torch.stack([stays_on(layer, kink) for kink in layer.kinks]).any(0).logical_not()
    rate, steps = layer.tangents[0] * moving, []
    for kink in layer.kinks:
        ahead = torch.where(layer.z > kink, rate < 0, rate > 0)
        steps.append(torch.where(ahead, (kink - layer.z) / rate, math.inf))
    step, neuron = torch.stack(steps).amin(0).min(1)
    noise, its_rate = (each.gather(1, neuron[:, None])[:, 0] for each in (layer.tangents[-1], rate))
    return Step(step, torch.where(step < math.inf, last_digits(noise) / its_rate.abs(), 0.0))


def _pieces(layers: list[Layer], x: Tensor) -> Tensor:
    none = torch.empty(x.size(0), 0, dtype=torch.int16, device=x.device)
    return torch.cat([none, *(layer.piece for layer in layers)], 1)
