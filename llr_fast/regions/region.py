"""The linear region around one point: its halfspaces, and the affine map that the network is there."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llr_fast.certificates import evaluation
from llr_fast.certificates.rounding import Rounding, stays_on, without_sides
from llr_fast.checks import check_finite, check_tensor
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.layers import Layer
from llr_fast.linearized.torch_modes import as_written
from llr_fast.regions import polytope
from llr_fast.regions.count import pattern_hashes
from llr_fast.regions.observed import Observed
from llr_fast.regions.polytope import Polytope


@dataclass(frozen=True)
class Region:
    """The linear region around a point x [1, ...] with D entries; see `region`.

    Attributes:
        x: [1, ...], the point.
        halfspaces: A [N, D] and b [N], float64 on the CPU: A @ v + b >= 0 for the points v of the region, as vectors
            [D]. One for each kink of each neuron, in forward order; A @ v + b is how far the neuron is from the kink.
            Rows are zero where a neuron bounds no region, as its gradient is zero up to rounding.
        layer, neuron: [N], of each halfspace: index into `layer_names` and flat index in the layer.
        layer_names: as those of `Margin`.
        weight, bias: [L, D] and [L], float64 on the CPU: all outputs of the model, flat, are weight @ v + bias there;
            of complex ones the real and imaginary parts, in turn.
        pattern: 16 bytes, equal where activation patterns are.
    """

    x: Tensor
    halfspaces: tuple[Tensor, Tensor]
    layer: Tensor
    neuron: Tensor
    layer_names: list[str]
    weight: Tensor
    bias: Tensor
    pattern: bytes

    def contains(self, points: Tensor, tolerance: float = 0.0) -> Tensor:
        """[M] bool: which points [M, ...] lie in the closed region.

        Args:
            points: of the shape of a sample each.
            tolerance: how far outside of a halfspace, in l2, a point may lie; rounding is about 1e-15 of its size.
        """
        check_tensor("points", points)
        if points.shape[1:] != self.x.shape[1:]:
            shape = tuple(self.x.shape[1:])
            raise ValueError(f"points: expected shape [M, ...] of samples {shape}, got {tuple(points.shape)}")
        a, b = self.halfspaces
        flat = points.detach().flatten(1).double().cpu()
        room = flat @ a.t() + b + tolerance * a.norm(dim=1)
        inside: Tensor = (room >= 0).all(1).to(points.device)
        return inside

    def facets(self) -> Tensor:
        """Indices of the halfspaces that touch the region in a facet, rising; of equal ones all.

        A linear program for each halfspace, in threads where there are many.
        """
        around = self.around()
        size = max(1.0, float(self.x.abs().max()))
        origin = np.zeros(around.polytope.normals.shape[1])

        def touches(i: int) -> bool:
            return polytope.inside_of_facet(around.polytope, i, origin, size) is not None

        with ThreadPoolExecutor() as threads:
            found = list(threads.map(touches, range(len(around.index))))
        return torch.from_numpy(around.index[np.array(found, dtype=bool)])

    def chebyshev(self) -> tuple[Tensor, float]:
        """Centre, of the shape of a sample, and radius of a largest l2 ball in the region.

        Of an unbounded region that holds balls of any size the radius is infinite and the centre is x.
        """
        centre, radius = polytope.chebyshev(self.around().polytope)
        moved = torch.from_numpy(centre).view(self.x.shape[1:]).to(self.x.device)
        return self.x[0].detach().double() + (moved if math.isfinite(radius) else 0.0), radius

    def around(self) -> Around:
        """The region as seen from x."""
        a, b = (t.numpy() for t in self.halfspaces)
        norm = np.linalg.norm(a, axis=1)
        index = norm.nonzero()[0]
        room = (a @ self.x.detach().flatten().double().cpu().numpy() + b)[index]
        return Around(Polytope(-a[index] / norm[index, None], room / norm[index]), index)


@dataclass(frozen=True)
class Around:
    """The polytope of a region with x as its origin, and the halfspace [n] that each of its rows is."""

    polytope: Polytope
    index: np.ndarray


@as_written
def region(model: nn.Module, x: Tensor) -> Region:
    """The linear region of a piecewise-linear network around one point.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [1, ...], finite.

    Raises:
        ValueError: x has more than one sample; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> region = llr_fast.region(model, torch.tensor([[1.0, -2.0]]))
        >>> region.halfspaces[0].int().tolist()  # the first input is positive, the second one is not
        [[1, 0], [0, -1]]
        >>> region.contains(torch.tensor([[3.0, -1.0], [3.0, 1.0]])).tolist()
        [True, False]
        >>> torch.allclose(region.weight[0, 0], model[1].weight[0, 0].double()), region.weight[0, 1].item()
        (True, 0.0)
        >>> region.facets().tolist()
        [0, 1]
    """
    evaluation.check(model, x, torch.float64)
    if len(x) != 1:
        raise ValueError(f"x: expected one sample, [1, ...], got a batch of {len(x)}")
    return region_at(model, x.detach().double(), compared=True)


def region_at(model: nn.Module, x: Tensor, compared: bool) -> Region:
    """The region around x [1, ...] of float64; `compared` as in `layers_of`."""
    observed, rounding = Observed(model), Rounding()
    size = x[0].numel()
    axes = torch.eye(size, dtype=torch.float64, device=x.device).view(size, *x.shape)
    start: Directions = rounding.start(axes, x.abs())
    layers = evaluation.layers_of(observed, x, start, torch.float64, compared=compared, rounding=rounding)
    point = x.flatten()
    rows = [_rows(layer, kink, point) for layer in layers for kink in layer.kinks]
    where = [(index, layer) for index, layer in enumerate(layers) for _ in layer.kinks]
    none = torch.zeros(0, dtype=torch.long, device="cpu")
    weight, value = observed.derivatives(x, size)
    check_finite("model: its output", value)
    return Region(
        x=x,
        halfspaces=(
            torch.cat([x.new_zeros(0, size), *(a for a, _ in rows)]).cpu(),
            torch.cat([x.new_zeros(0), *(b for _, b in rows)]).cpu(),
        ),
        layer=torch.cat([none, *(torch.full((layer.z.size(1),), index) for index, layer in where)]),
        neuron=torch.cat([none, *(torch.arange(layer.z.size(1)) for _, layer in where)]),
        layer_names=[layer.name for layer in layers],
        weight=weight.cpu(),
        bias=(value - weight @ point).cpu(),
        pattern=pattern_hashes([without_sides(layer) for layer in layers], 1)[0],
    )


def _rows(layer: Layer, kink: float, point: Tensor) -> tuple[Tensor, Tensor]:
    """The halfspaces [n, D], [n] in which the neurons of a layer [1, n] are on this side of the kink.

    The leads of a max-pooling are on the upper side, also where they are zero.
    """
    is_lead = layer.piece.dtype != torch.bool and len(layer.kinks) == 1
    above = (layer.z[0] > kink) | is_lead
    side = torch.where(above, 1.0, -1.0).to(layer.z.dtype)
    gradient = layer.tangents[:-1, 0].t() * (side * ~stays_on(layer, kink)[0])[:, None]
    moves = (gradient != 0).any(1)
    return gradient, torch.where(moves, side * (layer.z[0] - kink) - gradient @ point, 0.0)
