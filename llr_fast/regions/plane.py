"""The linear regions of a network on a plane, as polygons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy  # whose parts are imported when they are used
import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast.certificates import agreement, evaluation
from llr_fast.certificates.rounding import Rounding, stays_on, without_sides
from llr_fast.checks import check_finite, check_range, check_tensor
from llr_fast.data import PATIENCE
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.torch_modes import as_written
from llr_fast.outputs import Around
from llr_fast.regions import dense
from llr_fast.regions.count import pattern_hashes
from llr_fast.regions.polygons import Polygons

Extent = tuple[float, float, float, float]  # left, right, bottom, top
_THINNEST = 1e-9  # part of the picture's diagonal; no polygon is cut closer to its boundary than this


class Plane(Around):
    """The network restricted to the plane through three points: a network of two inputs.

    Args:
        model: takes x [B, ...].
        points: [3, ...], not on one line. The first is the origin, the second lies on the positive first axis, the
            third above it; coordinates [B, 2] measure l2 distances in units of x.

    Raises:
        TypeError: `points` is no tensor.
        ValueError: there are not three finite points, or they lie on a line.
    """

    origin: Tensor
    axes: Tensor

    def __init__(self, model: nn.Module, points: Tensor) -> None:
        super().__init__(model)
        check_tensor("through", points)
        if not points.is_floating_point():
            raise ValueError(f"through: expected a floating-point dtype, got {points.dtype}")
        check_finite("through", points)
        if points.dim() < 2 or len(points) != 3:
            raise ValueError(f"through: expected three points, [3, ...], got shape {tuple(points.shape)}")
        self.shape = points.shape[1:]
        flat = points.detach().flatten(1).double()
        q, r = torch.linalg.qr((flat[1:] - flat[0]).t())
        if q.size(1) < 2 or r.diagonal().abs().min() <= 1e-9 * r.diagonal().abs().max():
            raise ValueError("through: expected three points that are not on one line")
        self.register_buffer("origin", flat[0].to(points.dtype))
        self.register_buffer("axes", (q * r.diagonal().sign()).t().to(points.dtype))

    def forward(self, c: Tensor) -> Any:
        return self.model((c @ self.axes + self.origin).view(-1, *self.shape))

    def coordinates(self, points: Tensor) -> Tensor:
        """[B, 2]: those of points [B, ...] of the plane."""
        return (points.flatten(1) - self.origin) @ self.axes.t()


@as_written
def regions_on_plane(model: nn.Module, extent: Extent, *, like: Tensor, progress: bool = True) -> list[Tensor]:
    """The linear regions of a network of two inputs within a rectangle.

    Starting from the rectangle, every polygon is cut along the kinks of the first layer of neurons that has any in it;
    up to there all neurons are affine on the polygon, so the cuts are exact. Parts of one region that a max-pooling's
    lines have cut apart are put together again. A neuron that stays on a kink all over the rectangle, up to rounding,
    bounds no region. Dense layers and ReLUs in an `nn.Sequential` are computed one by one; any other network is
    evaluated as a whole on all polygons at once, as often as it has layers.

    Args:
        model: a piecewise-linear network of x [B, 2], in evaluation mode.
        extent: left, right, bottom, top.
        like: a tensor of the dtype and on the device of the inputs.
        progress: whether long work shows a progress bar.

    Returns:
        One tensor [V, 2] of vertices for each region, in order around it; float64 on the CPU. They may
        share one tensor's memory.

    Raises:
        ValueError: the rectangle is empty; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> regions = llr_fast.regions_on_plane(torch.nn.ReLU(), (-1, 2, -1, 1), like=torch.zeros(1))
        >>> sorted(polygon.amax(0).tolist() for polygon in regions)
        [[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]]
    """
    extent = check_extent(extent)
    left, right, bottom, top = extent
    thinnest = _THINNEST * float(np.hypot(right - left, top - bottom))
    rectangle = Polygons.rectangle(*extent)
    steps = _steps_of(model, rectangle, like)
    with tqdm(desc="regions", unit="region", delay=PATIENCE, disable=not progress) as bar:
        if steps is not None:
            found = []
            for polygons in dense.Subdivision(steps, *_bounds(extent), thinnest).parts(rectangle):
                bar.update(len(polygons))
                found.append(polygons)
            return Polygons.joined(found).separate()
        regions = defaultdict(list)
        for patterns, polygons in _by_evaluation(model, rectangle, like, extent, thinnest):
            bar.update(len(polygons))
            for pattern, polygon in zip(patterns, polygons.separate()):
                regions[pattern].append(polygon)
    return [_joined(parts) for parts in regions.values()]


def _steps_of(model: nn.Module, rectangle: Polygons, like: Tensor) -> list[dense.Step] | None:
    """Those of a dense network on the CPU, once they are seen to compute what it does; else None."""
    if not isinstance(like, Tensor) or like.device.type != "cpu":
        return None
    steps = dense.steps_of(model)
    if steps is not None:
        x = torch.cat([rectangle.centres, rectangle.vertices]).to(like.dtype)
        agreement.check(model, x, torch.float64, dense.output(steps, x), agreement.plain_output(model, x))
    return steps


def check_extent(extent: Any) -> Extent:
    """Returns it as Python numbers."""
    if not isinstance(extent, Sequence) or len(extent) != 4:
        raise ValueError(f"extent: expected left, right, bottom, top, got {extent!r}")
    left, right, bottom, top = (check_range("extent", v, -math.inf) for v in extent)
    if not (left < right and bottom < top):
        raise ValueError(f"extent: expected left < right and bottom < top, got {extent}")
    return left, right, bottom, top


def _by_evaluation(
    model: nn.Module, rectangle: Polygons, like: Tensor, extent: Extent, thinnest: float
) -> Iterator[tuple[list[bytes], Polygons]]:
    """Polygons on which the network is affine, as many at a time as are found together, and their patterns."""
    pending = rectangle
    chunk = evaluation.samples_at_once(model, torch.zeros(2, 2, dtype=like.dtype, device=like.device), torch.float64)
    while len(pending):
        pending, now = pending.split(max(0, len(pending) - chunk))
        layers = _layers_at(model, now.centres, like, extent)
        parts, origin = now.cut([_lines(layer, extent) for layer in layers], thinnest)
        uncut = origin.bincount(minlength=len(now)) == 1
        if uncut.any():
            found = uncut.nonzero().squeeze(1)
            kept = [without_sides(layer) for layer in layers]
            pieces = [replace(layer, piece=layer.piece[found.to(layer.piece.device)]) for layer in kept]
            yield pattern_hashes(pieces, len(found)), now.where(uncut)
        pending = Polygons.joined([pending, parts.where(~uncut[origin])])


def _layers_at(model: nn.Module, centres: Tensor, like: Tensor, extent: Extent) -> list[Layer]:
    """The layers of neurons at centres [P, 2], with their derivatives along the picture's sides, and noise."""
    size, largest = (bounds.to(like.device) for bounds in _bounds(extent))
    x = centres.to(like.device)
    along_sides = size.diag().unsqueeze(1).expand(-1, *x.shape)
    rounding = Rounding()
    return evaluation.layers_of(model, x, rounding.start(along_sides, largest), torch.float64, rounding=rounding)


def _lines(layer: Layer, extent: Extent) -> Tensor:
    """[3, P, n]: the kink lines of a layer, for `cut_polygons`; none of neurons that stay on a kink."""
    gradient = layer.tangents[:2] / _bounds(extent)[0].to(layer.z.device)[:, None, None]
    of_kinks = [
        torch.cat([gradient, layer.z[None] - kink]).masked_fill(stays_on(layer, kink), 0.0) for kink in layer.kinks
    ]
    return torch.cat(of_kinks, 2).cpu()


def _bounds(extent: Extent) -> tuple[Tensor, Tensor]:
    """[2] each: how far the picture reaches along the axes, and the largest coordinates in it."""
    left, right, bottom, top = extent
    size, largest = [right - left, top - bottom], [max(abs(left), abs(right)), max(abs(bottom), abs(top))]
    sizes, most = torch.tensor([size, largest], dtype=torch.float64, device="cpu").unbind()
    return sizes, most


def _joined(parts: list[Tensor]) -> Tensor:
    """One polygon of parts of one region, which is convex."""
    if len(parts) == 1:
        return parts[0]
    vertices = torch.cat(parts)
    return vertices[scipy.spatial.ConvexHull(vertices.numpy()).vertices]
