"""Convex polygons, cut apart along the lines on which neurons have their kinks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...dispatch import call, define
from ..common.arguments import check_alike, check_tensor


def cut_polygons(
    vertices: Tensor, sizes: Tensor, centres: Tensor, lines: Sequence[Tensor], thinnest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut each polygon along all lines of the first of its layers that has any in it.

    The line of neuron j of a layer in polygon p is where a (x - x_p) + b (y - y_p) + c = 0 for the polygon's centre
    (x_p, y_p) and a, b, c = `lines[layer][:, p, j]`. It lies in the polygon where there are vertices further away from
    it than `thinnest` on both sides; with a = b = 0 it is none.

    Args:
        vertices: [V, 2], those of all polygons one after the other, in order around each; float64.
        sizes: [P], how many of them each polygon has, at least 3; int64.
        centres: [P, 2], the means of the vertices of each, or other points near it; float64.
        lines: for each layer [3, P, n_l]; float64.
        thinnest: a distance >= 0. Vertices as near to a line count as on it, and belong to both sides.

    Returns:
        vertices [W, 2], sizes [Q] and centres [Q, 2] of the parts, those of one polygon one after the other in any
        order, and origin [Q], int64: of which polygon each is a part.

    Raises:
        TypeError, ValueError: for a wrong dtype, device or shape.
    """
    lines = list(lines)
    _check(vertices, sizes, centres, lines)
    if not thinnest >= 0:
        raise ValueError(f"thinnest: expected at least 0, got {thinnest}")
    return call("cut_polygons", vertices.detach(), sizes, centres.detach(), [t.detach() for t in lines], thinnest)


def _check(vertices: Tensor, sizes: Tensor, centres: Tensor, lines: list[Tensor]) -> None:
    check_tensor("vertices", vertices, "[V, 2]", (None, 2))
    if not isinstance(sizes, Tensor) or sizes.dtype != torch.int64:
        raise TypeError(f"sizes: expected an int64 tensor [P], got {getattr(sizes, 'dtype', type(sizes).__name__)}")
    if sizes.dim() != 1:
        raise ValueError(f"sizes: expected shape [P], got {list(sizes.shape)}")
    polygons = len(sizes)
    check_tensor("centres", centres, f"[{polygons}, 2]", (polygons, 2))
    for i, layer in enumerate(lines):
        check_tensor(f"lines[{i}]", layer, f"[3, {polygons}, n_{i}]", (3, polygons, None))
    if vertices.dtype != torch.float64 or not vertices.is_cpu or not sizes.is_cpu:
        raise TypeError(f"vertices: expected float64 on the CPU, got {vertices.dtype} on {vertices.device}")
    check_alike(vertices=vertices, centres=centres, **{f"lines[{i}]": layer for i, layer in enumerate(lines)})
    least, total = (int(sizes.min()), int(sizes.sum())) if polygons else (3, 0)
    if least < 3 or total != len(vertices):
        raise ValueError(
            f"sizes: expected at least 3 and {len(vertices)} in all, got at least {least} and {total} in all"
        )


def _fake(vertices, sizes, centres, lines, thinnest):
    context = torch.library.get_ctx()
    corners, parts = context.new_dynamic_size(), context.new_dynamic_size()
    return vertices.new_empty(corners, 2), sizes.new_empty(parts), centres.new_empty(parts, 2), sizes.new_empty(parts)


define(
    "cut_polygons(Tensor vertices, Tensor sizes, Tensor centres, Tensor[] lines, float thinnest)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    __name__,
    _fake,
)
