"""The linear regions of a dense network on a plane, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from llr_fast.certificates.rounding import Rounding, cannot_leave
from llr_fast.linearized.layers import Ramp
from llr_fast.regions.polygons import Polygons

_CHUNK_BUDGET = 2**21  # bytes that a layer's values and derivatives may take, so that they stay in the cache


@dataclass(frozen=True)
class Affine:
    """x [B, m] to x W^T + b: weight [n, m], bias [n], in float64."""

    weight: Tensor
    bias: Tensor


Step = Affine | Ramp
_RAMPS: dict[type, Callable[[Any], Ramp]] = {
    nn.ReLU: lambda module: Ramp(),
    nn.LeakyReLU: lambda module: Ramp(below=module.negative_slope),
    nn.ReLU6: lambda module: Ramp(upper=6.0),
}


def steps_of(model: nn.Module) -> list[Step] | None:
    """What a model does, where that can be read from it; else None.

    It can be of dense layers and activations in a row, which do what their classes do.
    """
    if _has_any_global_hook():
        return None
    steps: list[Step] = []
    width = 2
    for module in _in_a_row(model):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        if type(module) is nn.Linear:
            affine = _affine(module.weight, module.bias) if module.in_features == width else None
            if affine is None:
                return None
            steps.append(affine)
            width = module.out_features
        elif type(module) in _RAMPS:
            steps.append(_RAMPS[type(module)](module))
        elif type(module) is not nn.Sequential:
            return None
    return steps


@torch.no_grad()
def output(steps: Sequence[Step], x: Tensor) -> Tensor:
    """What a network of these steps computes at x [B, 2], in float64."""
    x = x.double()
    for step in steps:
        x = _value(step, x) if isinstance(step, Ramp) else torch.addmm(step.bias, x, step.weight.t())
    return x


def _value(ramp: Ramp, z: Tensor) -> Tensor:
    return z.relu() if ramp == Ramp() else ramp.value(z)


def _in_a_row(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    if type(model) is nn.Sequential:
        for module in model:
            yield from _in_a_row(module)


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) is nn.Parameter and parameter.is_cpu and parameter.is_floating_point()


def _affine(weight: Tensor, bias: Tensor | None) -> Affine | None:
    """The step of finite parameters; None of others, and of what are none."""
    if not (_is_plain(weight) and (bias is None or _is_plain(bias))):
        return None
    weight = weight.detach().double()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    return Affine(weight, bias) if math.isfinite(weight.sum() + bias.sum()) else None


@dataclass(frozen=True)
class _Part:
    """Polygons, and a layer's numbers there.

    It is affine on each of them: `rows` [4, P, n] are its two derivatives, its values at the centres, and the noise of
    `Rounding`.
    """

    polygons: Polygons
    rows: Tensor

    def split(self, size: int) -> Iterator[_Part]:
        rest = self.polygons
        for rows in self.rows.split(size, 1):
            first, rest = rest.split(size)
            yield _Part(first, rows)


class Subdivision:
    """Cuts polygons along the kinks of a network's layers, one after the other.

    Args:
        steps: those of the network; what is behind its last activation cuts nothing.
        size: [2], how far the picture reaches along each axis.
        largest: [2], the largest coordinates in it.
        thinnest: as for `cut_polygons`.
    """

    def __init__(self, steps: Sequence[Step], size: Tensor, largest: Tensor, thinnest: float) -> None:
        activations = [number for number, step in enumerate(steps) if isinstance(step, Ramp)]
        self._steps = steps[: activations[-1] + 1 if activations else 0]
        self._size, self._largest, self._thinnest = size.tolist(), largest, thinnest
        self._rounding = Rounding()
        width = max([2, *(len(step.bias) for step in steps if isinstance(step, Affine))])
        self._chunk = max(1, _CHUNK_BUDGET // (4 * 8 * width))

    def parts(self, polygons: Polygons) -> Iterator[Polygons]:
        """All parts of the polygons."""
        centres = polygons.centres
        slopes = torch.eye(2, dtype=torch.float64, device="cpu")[:, None].expand(2, *centres.shape)
        noise = self._rounding.start(slopes, self._largest).tangents[2:]
        pending = [(0, _Part(polygons, torch.cat([slopes, centres[None], noise])))]
        while pending:
            number, part = pending.pop()
            if len(part.polygons) > self._chunk:
                pending += [(number, smaller) for smaller in part.split(self._chunk)]
                continue
            if number == len(self._steps):
                yield part.polygons
                continue
            step = self._steps[number]
            if isinstance(step, Affine):
                pending.append((number + 1, self._multiplied(part, step)))
                continue
            polygons, origin = self._cut(part, step)
            if number + 1 == len(self._steps):
                yield polygons  # nobody needs the numbers there
            else:
                pending.append((number + 1, _activated(part, polygons, origin, step)))

    def _multiplied(self, part: _Part, step: Affine) -> _Part:
        rows = part.rows @ step.weight.t()
        first, _, value, noise = rows.unbind()
        value += step.bias
        self._rounding.grow(noise, first, value, self._size[0])
        return replace(part, rows=rows)

    def _cut(self, part: _Part, ramp: Ramp) -> tuple[Polygons, Tensor]:
        """The parts between the kinks, and which polygon each is a part of."""
        lines = [self._lines(part.rows, kink) for kink in ramp.kinks]
        return part.polygons.cut(lines if len(lines) == 1 else [torch.cat(lines, 2)], self._thinnest)

    def _lines(self, rows: Tensor, kink: float) -> Tensor:
        """[3, P, n], for `cut_polygons`; none of neurons that stay on the kink."""
        lines, noise = rows[:3], rows[3]
        if kink:
            lines, noise = torch.cat([lines[:2], lines[2:] - kink]), noise.abs() + abs(kink)
        on = cannot_leave(lines[2], (row * size for row, size in zip(lines, self._size)), noise)
        return lines.masked_fill(on, 0.0) if on.any() else lines


def _activated(whole: _Part, polygons: Polygons, origin: Tensor, ramp: Ramp) -> _Part:
    """The polygons that `whole` was cut into, and behind the ramp the numbers there."""
    rows = whole.rows.index_select(1, origin)
    value, step = rows[2], polygons.centres - whole.polygons.centres[origin]
    value.addcmul_(rows[0], step[:, :1]).addcmul_(rows[1], step[:, 1:])
    if ramp == Ramp():
        rows *= value > 0
    else:
        of_ramp = ramp.value(value)
        rows *= ramp.slope(value)
        rows[2] = of_ramp
    return _Part(polygons, rows)
