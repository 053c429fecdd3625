"""Operators of exported programs that torch has no function of the same name and arguments for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor

aten = torch.ops.aten


@rule(aten.slice.Tensor)
def _slice(
    function: Any, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    return x[(*[slice(None)] * (dim % x.dim()), slice(start, end, step))]


@rule(aten.index.Tensor)
def _index(function: Any, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return x[tuple(slice(None) if index is None else index for index in indices)]


@rule(aten._unsafe_view.default, aten.view_copy.default)
def _view(function: Any, x: Tensor, size: Sequence[int]) -> Tensor:
    return x.reshape(size)


@rule(aten.lift_fresh_copy.default, aten.alias.default)
def _alias(function: Any, x: Tensor) -> Tensor:
    return x.clone()


@rule(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
def _upsample(function: Any, x: Tensor, output_size: Any, scale_factors: Any) -> Tensor:
    return F.interpolate(x, output_size, scale_factors)


@rule(aten._assert_tensor_metadata.default, query=True)
def _assert_metadata(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> None:
    """Exported programs check by it what they were traced with; here values may have a precision of their own."""
    function(x.stand_in(), *args, **kwargs)
