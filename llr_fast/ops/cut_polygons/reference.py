"""cut_polygons, one polygon after the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def cut_polygons(
    vertices: Tensor, sizes: Tensor, centres: Tensor, lines: list[Tensor], thinnest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    polygons = np.split(vertices.numpy(), sizes.cumsum(0)[:-1]) if len(sizes) else []
    normal = [layer.permute(1, 2, 0).numpy() for layer in lines]  # [P, n, 3]
    parts, origin = [], []
    for p, (polygon, centre) in enumerate(zip(polygons, centres.numpy())):
        pieces = _cut_by_first_layer(polygon, [_normal_form(layer[p], centre) for layer in normal], thinnest)
        parts += pieces
        origin += [p] * len(pieces)
    joined, means = (
        torch.from_numpy(np.concatenate(rows)) if parts else vertices.new_empty(0, 2)
        for rows in (parts, [part.mean(0, keepdims=True) for part in parts])
    )
    return joined, sizes.new_tensor([len(part) for part in parts]), means, sizes.new_tensor(origin)


def _normal_form(lines: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The lines [n, 3] that are any, as rows (a, b, c) so that ax + by + c is the distance from the line."""
    norm = np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    lines = np.concatenate([lines[:, :2], lines[:, 2:] - lines[:, :2] @ centre[:, None]], 1)
    kept: np.ndarray = lines[norm[:, 0] > 0] / norm[norm[:, 0] > 0]
    return kept


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
