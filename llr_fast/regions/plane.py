"""The linear regions of a network on a plane, as polygons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast.certificates import evaluation
from llr_fast.certificates.rounding import Rounding, stays_on, without_sides
from llr_fast.checks import check_finite, check_range, check_tensor
from llr_fast.data import PATIENCE
from llr_fast.linearized.torch_modes import as_written
from llr_fast.regions.count import pattern_hashes

Extent = tuple[float, float, float, float]  # left, right, bottom, top
_THINNEST = 1e-9  # part of the picture's diagonal; no polygon is cut closer to its boundary than this


class Plane(nn.Module):
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
        super().__init__()
        check_tensor("through", points)
        if not points.is_floating_point():
            raise ValueError(f"through: expected a floating-point dtype, got {points.dtype}")
        check_finite("through", points)
        if points.dim() < 2 or len(points) != 3:
            raise ValueError(f"through: expected three points, [3, ...], got shape {tuple(points.shape)}")
        self.model, self.shape = model, points.shape[1:]
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
    bounds no region.

    Args:
        model: a piecewise-linear network of x [B, 2], in evaluation mode.
        extent: left, right, bottom, top.
        like: a tensor of the dtype and on the device of the inputs.
        progress: whether long work shows a progress bar.

    Returns:
        One tensor [V, 2] of vertices for each region, in order around it; float64 on the CPU.

    Raises:
        ValueError: the rectangle is empty; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> regions = llr_fast.regions_on_plane(torch.nn.ReLU(), (-1, 2, -1, 1), like=torch.zeros(1))
        >>> sorted(polygon.amax(0).tolist() for polygon in regions)
        [[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]]
    """
    left, right, bottom, top = check_extent(extent)
    thinnest = _THINNEST * float(np.hypot(right - left, top - bottom))
    pending = [np.array([(left, bottom), (right, bottom), (right, top), (left, top)], dtype=np.float64)]
    chunk = evaluation.samples_at_once(model, torch.zeros(2, 2, dtype=like.dtype, device=like.device), torch.float64)
    found = defaultdict(list)
    with tqdm(desc="regions", unit="region", delay=PATIENCE, disable=not progress) as bar:
        while pending:
            now, pending = pending[-chunk:], pending[:-chunk]
            for polygon, pattern, layers in zip(now, *_at_centres(model, now, like, (left, right, bottom, top))):
                parts = _cut_by_first_layer(polygon, layers, thinnest)
                if len(parts) > 1:
                    pending += parts
                else:
                    found[pattern].append(polygon)
                    bar.update()
    return [torch.from_numpy(_joined(parts)) for parts in found.values()]


def check_extent(extent: Any) -> Extent:
    """Returns it as Python numbers."""
    if not isinstance(extent, Sequence) or len(extent) != 4:
        raise ValueError(f"extent: expected left, right, bottom, top, got {extent!r}")
    left, right, bottom, top = (check_range("extent", v, -math.inf) for v in extent)
    if not (left < right and bottom < top):
        raise ValueError(f"extent: expected left < right and bottom < top, got {extent}")
    return left, right, bottom, top


def _at_centres(
    model: nn.Module, polygons: list[np.ndarray], like: Tensor, extent: Extent
) -> tuple[list[bytes], list[list[np.ndarray]]]:
    """The pattern at each polygon's centre, and for each layer there its kink lines as rows (a, b, c) of ax + by + c.

    Rows are scaled so that the expression is the distance from the line. A neuron that stays on a kink all over the
    picture has no line.
    """
    left, right, bottom, top = extent
    size = np.array([right - left, top - bottom])
    largest = torch.tensor([max(-left, right), max(-bottom, top)], dtype=torch.float64, device=like.device).abs()
    centres = np.stack([polygon.mean(0) for polygon in polygons])
    x = torch.from_numpy(centres).to(like.device)
    axes = torch.from_numpy(np.diag(size)).to(like.device).unsqueeze(1).expand(-1, *x.shape)
    rounding = Rounding()
    layers = evaluation.layers_of(model, x, rounding.start(axes, largest), torch.float64, rounding=rounding)
    lines: list[list[np.ndarray]] = [[] for _ in polygons]
    for layer in layers:
        gradient = layer.tangents[:2].movedim(0, 2).cpu().numpy() / size  # [G, n, 2]
        norm = np.linalg.norm(gradient, axis=2)
        for kink in layer.kinks:
            constant = layer.z.cpu().numpy() - kink - np.einsum("gnd,gd->gn", gradient, centres)
            for g, moves in enumerate((norm > 0) & ~stays_on(layer, kink).cpu().numpy()):
                row = np.concatenate([gradient[g], constant[g, :, None]], 1)[moves]
                lines[g].append(row / norm[g, moves, None])
    return pattern_hashes([without_sides(layer) for layer in layers], len(polygons)), lines


def _cut_by_first_layer(polygon: np.ndarray, layers: list[np.ndarray], thinnest: float) -> list[np.ndarray]:
    """The parts of the polygon [V, 2] between the lines of the first layer that has any in it."""
    for lines in layers:
        crossing = _crossing(polygon, lines, thinnest)
        if len(crossing):
            done, open_ = [], [(polygon, crossing)]
            while open_:
                part, candidates = open_.pop()
                candidates = _crossing(part, candidates, thinnest)
                if len(candidates):
                    open_ += [(half, candidates[1:]) for half in _halves(part, candidates[0], thinnest)]
                else:
                    done.append(part)
            return done
    return [polygon]


def _crossing(polygon: np.ndarray, lines: np.ndarray, thinnest: float) -> np.ndarray:
    """Those of the lines [n, 3] that have vertices on both sides."""
    distance = polygon @ lines[:, :2].T + lines[:, 2]  # [V, n]
    crossing: np.ndarray = lines[(distance.min(0) < -thinnest) & (distance.max(0) > thinnest)]
    return crossing


def _halves(polygon: np.ndarray, line: np.ndarray, thinnest: float) -> tuple[np.ndarray, np.ndarray]:
    """The parts of a convex polygon on either side of a line; vertices as good as on it belong to both."""
    distance = polygon @ line[:2] + line[2]
    below: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for i, vertex in enumerate(polygon):
        here, before = distance[i], distance[i - 1]
        if min(here, before) < -thinnest and max(here, before) > thinnest:
            between = polygon[i - 1] + before / (before - here) * (vertex - polygon[i - 1])
            below.append(between)
            above.append(between)
        if here <= thinnest:
            below.append(vertex)
        if here >= -thinnest:
            above.append(vertex)
    return np.stack(below), np.stack(above)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One polygon of parts of one region, which is convex."""
    if len(parts) == 1:
        return parts[0]
    vertices = np.concatenate(parts)
    hull: np.ndarray = vertices[ConvexHull(vertices).vertices]
    return hull
