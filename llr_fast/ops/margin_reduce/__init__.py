"""The smallest ratios of distance to gradient norm, over the neurons of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...dispatch import define
from ..common.arguments import check_alike, check_tensor, refuse_forward_mode


def margin_reduce(distances: Sequence[Tensor], norms: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Find the neuron whose kink is nearest: the margin, and which layer and neuron sets it.

        value[b] = min over layers l and neurons j of distances[l][b, j] / norms[l][b, j]

    A neuron of norm 0 never bounds the margin: its ratio is +inf. Of equal ratios the lowest (layer, neuron) wins.
    A NaN is not ignored: it becomes the value, and is where layer and neuron point.

    Args:
        distances: for each layer the distance to the nearest kink [B, n_l], >= 0; all of one floating dtype.
        norms: for each layer the gradient norm [B, n_l], >= 0; all of one floating dtype.

    Returns:
        value [B] in the dtype of distances; layer and neuron [B], int64, -1 where value is +inf. None has a gradient;
        gather the two entries from distances and norms for a differentiable margin.

    Raises:
        TypeError, ValueError: for a wrong number of layers, a wrong dtype or shape.
        NotImplementedError: under forward-mode differentiation.
    """
    distances, norms = _checked("margin_reduce", distances, norms)
    return torch.ops.llr_fast.margin_reduce(distances, norms)


def smallest_bounds(distances: Sequence[Tensor], norms: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the neurons of the smallest ratios distance / norm, in ascending order.

    Args:
        distances, norms: as for `margin_reduce`.
        count: how many for each sample; all, where the network has fewer neurons.

    Returns:
        value [B, count] in the dtype of distances, layer and neuron [B, count], int64, as `margin_reduce` returns
        them for the first. Equal ratios come in any order.

    Raises:
        As `margin_reduce`, and ValueError for a negative count.
    """
    distances, norms = _checked("smallest_bounds", distances, norms)
    if count < 0:
        raise ValueError(f"count: expected at least 0, got {count}")
    return torch.ops.llr_fast.smallest_bounds(distances, norms, count)


def _checked(op: str, distances: Sequence[Tensor], norms: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    distances, norms = list(distances), list(norms)
    if not distances or len(norms) != len(distances):
        raise ValueError(
            f"norms: expected one for each of at least one layer, got {len(norms)} for {len(distances)} distances"
        )
    batch = None
    for i, (distance, norm) in enumerate(zip(distances, norms, strict=True)):
        name = f"[{i}]"
        check_tensor("distances" + name, distance, f"[{'B' if batch is None else batch}, n_{i}]", (batch, None))
        batch, n = distance.shape
        check_tensor("norms" + name, norm, f"[{batch}, {n}]", (batch, n))
        check_alike(**{"distances[0]": distances[0], "distances" + name: distance})
        check_alike(**{"norms[0]": norms[0], "norms" + name: norm})
        if norm.device != distance.device:
            raise ValueError(f"norms{name}: expected device {distance.device} as distances has, got {norm.device}")
    refuse_forward_mode(op, *distances, *norms)
    return [d.detach() for d in distances], [n.detach() for n in norms]


def _fake(distances, norms):
    first = distances[0]
    batch = first.shape[0]
    return first.new_empty(batch), *(first.new_empty(batch, dtype=torch.int64) for _ in range(2))


def _fake_smallest(distances, norms, count):
    first = distances[0]
    shape = (first.shape[0], min(count, sum(d.shape[1] for d in distances)))
    return first.new_empty(shape), *(first.new_empty(shape, dtype=torch.int64) for _ in range(2))


define("margin_reduce(Tensor[] distances, Tensor[] norms) -> (Tensor, Tensor, Tensor)", __name__, _fake)
define(
    "smallest_bounds(Tensor[] distances, Tensor[] norms, int count) -> (Tensor, Tensor, Tensor)",
    __name__,
    _fake_smallest,
)
