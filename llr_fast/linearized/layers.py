"""The neurons of one call of a piecewise-linear function, and how evaluations collect them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.linearization import Linearization

T = TypeVar("T")


@dataclass(frozen=True)
class Activation:
    """One call of a piecewise-linear function, as a model makes it: tensors have the shape of its argument `z`."""

    name: str
    z: Tensor
    kinks: tuple[float, ...]
    piece: Tensor  # integers, or bool where there are two; empty in training, which does not need it
    slope: Tensor  # of the piece, as a mask or in the dtype of the tangents
    samples: Samples


@dataclass(frozen=True)
class Ramp:
    """A function of slope 1 between two kinks, of slope `below` under the lower one, constant above the upper one."""

    lower: float = 0.0
    upper: float = math.inf
    below: float | Tensor = 0.0  # a tensor has one entry, or one for each channel

    @property
    def kinks(self) -> tuple[float, ...]:
        return tuple(kink for kink in (self.lower, self.upper) if math.isfinite(kink))

    def slopes(self, z: Tensor) -> tuple[Any, ...]:
        """Of the pieces, from below; tensors are broadcast to z."""
        below = self.below
        if isinstance(below, Tensor) and below.numel() > 1:
            below = below.view(-1, *[1] * (z.dim() - 2))
        return (below,) * (self.lower > -math.inf) + (1.0,) + (0.0,) * (self.upper < math.inf)

    def slope(self, z: Tensor) -> Tensor:
        """That of the piece, [*z.shape]."""
        under = torch.zeros_like(z) + self.slopes(z)[0]
        return torch.where(z > self.upper, 0.0, torch.where(z > self.lower, 1.0, under))

    def value(self, z: Tensor) -> Tensor:
        """[*z.shape]"""
        under = self.lower + self.slopes(z)[0] * (z - self.lower)
        return torch.where(z > self.lower, z, under).clamp_max(self.upper)


@dataclass(frozen=True)
class Windows:
    """Those of a max-pooling, for each axis of space: every one has kernel[d] entries, of which some may be padding."""

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]

    def entries(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each axis and each of its windows the positions that are no padding."""
        axes = zip(self.space, self.kernel, self.stride, self.padding, self.dilation, self.size, strict=True)
        return tuple(
            tuple(tuple(p for p in range(w * s - pad, w * s - pad + k * d, d) if 0 <= p < length) for w in range(size))
            for length, k, s, pad, d, size in axes
        )


# Takes an activation and the linearization of its argument; returns the linearization of the result, and what the
# evaluation is to keep of the neurons.
Collector = Callable[[Activation, Linearization], tuple[Linearization, T]]


class FusedCollector(ABC, Generic[T]):
    """A collector that also knows how to compute ramps and max-poolings and collect their neurons in one."""

    @abstractmethod
    def __call__(self, activation: Activation, linearization: Linearization) -> tuple[Linearization, T]:
        """As every collector."""

    @abstractmethod
    def ramp(self, z: Tensor, ramp: Ramp, linearization: Linearization) -> tuple[Tensor, Linearization, T]:
        """The ramp's value at z, its linearization, and what is kept."""

    @abstractmethod
    def pool(self, z: Tensor, windows: Windows, linearization: Linearization) -> tuple[Tensor, Linearization, T]:
        """The same of a max-pooling of z [B, C, *space], none of whose windows is all padding."""


@dataclass
class Layer:
    """The neurons of one activation; `B` samples of `n` neurons each."""

    name: str
    z: Tensor  # [B, n]
    kinks: tuple[float, ...]
    piece: Tensor  # [B, n], as that of the activation
    tangents: Tensor  # [K, B, n], derivatives of z along K directions; K = 0 where there are none
    samples: Samples  # where the B samples lie in what the network computed

    @property
    def offset(self) -> Tensor:
        """z minus the nearest kink, [B, n]."""
        return offset(self.z, self.kinks)

    @property
    def distance(self) -> Tensor:
        """Distance of z to the nearest kink, [B, n]."""
        return self.offset.abs()


def offset(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """z minus the nearest of its kinks; the lower one where two are equally near."""
    if kinks == (0.0,):
        return z
    with torch.no_grad():
        nearest = torch.full_like(z, kinks[0])
        for kink in kinks[1:]:
            nearest = torch.where((z - kink).abs() < (z - nearest).abs(), kink, nearest)
    return z - nearest


def values(activation: Activation, linearization: Linearization) -> tuple[Linearization, Layer]:
    """Collects the neurons without derivatives."""
    return linearization.activated(activation.slope), _layer(activation, activation.z.new_empty(0, *activation.z.shape))


def tangents(activation: Activation, linearization: Linearization) -> tuple[Linearization, Layer]:
    """Collects the neurons with their tangents, of an evaluation along directions."""
    assert isinstance(linearization, Directions)
    return linearization.activated(activation.slope), _layer(activation, linearization.tangents)


def _layer(of: Activation, tangents: Tensor) -> Layer:
    rows = of.samples.rows
    piece = rows(of.piece) if of.piece.numel() else of.piece
    return Layer(of.name, rows(of.z), of.kinks, piece, rows(tangents, lead=1), of.samples)
