"""Many convex polygons in two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llr_fast.ops.cut_polygons import cut_polygons


@dataclass(frozen=True)
class Polygons:
    """The vertices [V, 2] of P polygons, in order around each and one polygon after the other.

    `sizes` [P] tells how many each has, and `centres` [P, 2] are their means.
    """

    vertices: Tensor
    sizes: Tensor
    centres: Tensor

    @staticmethod
    def rectangle(left: float, right: float, bottom: float, top: float) -> Polygons:
        corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
        vertices = torch.tensor(corners, dtype=torch.float64, device="cpu")
        return Polygons(vertices, torch.full((1,), len(corners), device="cpu"), vertices.mean(0, keepdim=True))

    @staticmethod
    def joined(several: Sequence[Polygons]) -> Polygons:
        if len(several) == 1:
            return several[0]
        vertices, sizes, centres = zip(*((p.vertices, p.sizes, p.centres) for p in several))
        return Polygons(torch.cat(vertices), torch.cat(sizes), torch.cat(centres))

    def __len__(self) -> int:
        return len(self.sizes)

    def split(self, stop: int) -> tuple[Polygons, Polygons]:
        """The first `stop` polygons, and the others."""
        corners = int(self.sizes[:stop].sum())
        return (
            Polygons(self.vertices[:corners], self.sizes[:stop], self.centres[:stop]),
            Polygons(self.vertices[corners:], self.sizes[stop:], self.centres[stop:]),
        )

    def where(self, chosen: Tensor) -> Polygons:
        """Those that are chosen [P]."""
        vertices = self.vertices[chosen.repeat_interleave(self.sizes)]
        return Polygons(vertices, self.sizes[chosen], self.centres[chosen])

    def cut(self, lines: Sequence[Tensor], thinnest: float) -> tuple[Polygons, Tensor]:
        """The parts, and of which polygon each is one; as `cut_polygons`."""
        *parts, origin = cut_polygons(self.vertices, self.sizes, self.centres, lines, thinnest)
        return Polygons(*parts), origin

    def separate(self) -> list[Tensor]:
        """The vertices of each [V_p, 2], in the memory of one tensor; noted as views they would take longer."""
        return list(torch.unsafe_split_with_sizes(self.vertices, self.sizes.tolist()))
