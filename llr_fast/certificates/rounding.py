"""How far rounding may have moved an evaluation's values and tangents: noise that the network carries along."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from llr_fast.linearized.directions import Directions, compact
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.linearization import Linearization

# Error of one result; far more than that of one sum, as noise may happen to be small.
_RELATIVE = {torch.float64: 1e-11, torch.float32: 1e-5}
# Smaller results may lose all digits.
_TINY = {dtype: torch.finfo(dtype).tiny / relative**2 for dtype, relative in _RELATIVE.items()}
_OFFSETS = 65537  # prime


class Rounding:
    """Adds to the noise of an evaluation what the rounding of every intermediate result does.

    The evaluation's last tangent is the noise of its value and of its first tangent together, or with `apart` of its
    value alone, and the last but one that of its first tangent. Every result adds a random part of itself, from -1 to 1
    times; from there on the network treats the noise as it treats every tangent. Times the relative error of one result
    it is as large as the error of all of them, also where terms cancel that are much larger than what is left.
    """

    def __init__(self, apart: bool = False) -> None:
        self._apart = apart
        self._calls = 0

    def start(self, directions: Tensor, size: Tensor | float = 0.0) -> Directions:
        """The directions [K, B, ...] and the noise of inputs that are rounded results of the given size."""
        noise = [size * self._random(directions[0]) for _ in range(1 + self._apart)]
        return Directions(torch.stack([*directions, *noise]))

    def __call__(self, value: Tensor, linearization: Linearization) -> Directions:
        """The linearization of a result with this value."""
        assert isinstance(linearization, Directions)
        tangents = linearization.tangents
        first = compact(tangents[:1])[0]
        exact, noise = tangents.split([len(tangents) - 1 - self._apart, 1 + self._apart])
        value = value.nan_to_num(0.0, 0.0, 0.0)  # infinite ones are padding of a maximum
        of_first = self._grown(noise[0], first.abs() + _TINY[first.dtype])
        grown = [of_first, self._grown(noise[1], value)] if self._apart else [self._grown(of_first, value)]
        return Directions(torch.cat([exact, *(part.expand(1, *value.shape) for part in grown)]))

    def grow(self, noise: Tensor, first: Tensor, value: Tensor, step: float) -> None:
        """Adds to what the operands' noise becomes in a result, in place, for `step` times its first tangent."""
        noise.addcmul_(first.abs().add_(_TINY[first.dtype]), self._random(first), value=step)
        noise.addcmul_(value, self._random(value))

    def _grown(self, noise: Tensor, size: Tensor) -> Tensor:
        """The noise and a random part of each entry's size."""
        return torch.addcmul(noise, size, self._random(size))

    def _random(self, like: Tensor) -> Tensor:
        """A stretch of the same random numbers, another one for each call."""
        self._calls += 1
        first, size = 7919 * self._calls % _OFFSETS, like.numel()
        length = 2 ** (_OFFSETS + size).bit_length()
        return _uniform(length, like.dtype, like.device)[first : first + size].view(like.shape)


@functools.lru_cache(4)
def _uniform(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers from -1 to 1, always the same."""
    generator = torch.Generator("cpu").manual_seed(2)
    return (2 * torch.rand(length, generator=generator, dtype=torch.float64, device="cpu") - 1).to(device, dtype)


def error(noise: Tensor) -> Tensor:
    """What rounding may do, from the noise."""
    return _RELATIVE[noise.dtype] * noise.abs()


def last_digits(noise: Tensor) -> Tensor:
    """What rounding does as a rule, from the noise."""
    return 4 * torch.finfo(noise.dtype).eps * noise.abs()


def near(layer: Layer, kink: float) -> Tensor:
    """[B, n]: which values cannot be told from the kink, though they are computed with an error."""
    noise = layer.tangents[-1].abs() + abs(kink)
    return ((layer.z - kink).abs() <= error(noise)) & (noise > 0)


def stays_on(layer: Layer, kink: float) -> Tensor:
    """[B, n]: where the value cannot be told from the kink, neither here nor one step along any direction from here."""
    *rates, noise = layer.tangents
    return cannot_leave(layer.z - kink, rates, noise.abs() + abs(kink))


def cannot_leave(offset: Tensor, rates: Iterable[Tensor], noise: Tensor) -> Tensor:
    """[B, n]: where neither an offset from a kink nor its rates can be told from 0."""
    within = error(noise)
    on = offset.abs() <= within
    if on.device.type == "cpu" and not on.any():
        return on
    for rate in rates:
        on &= rate.abs() <= within
    return on


def without_sides(layer: Layer) -> Layer:
    """The layer with a piece of its own for neurons that stay on a kink."""
    piece = layer.piece.short() if layer.piece.dtype == torch.bool else layer.piece
    for number, kink in enumerate(layer.kinks):
        piece = piece.masked_fill(stays_on(layer, kink), -1 - number)
    return replace(layer, piece=piece)
