"""Entries that are read from given places, which stay the same in a linear region."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.local import NoBoundError, Sums
from llr_fast.linearized.rules.affine import constants, moves
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


@rule("gather", "take_along_dim")
def _gather(function: Any, input: Any, *args: Any, **kwargs: Any) -> LinearizedTensor:
    index: Any = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
    places = fixed(function, index)
    args = tuple(places if a is index else a for a in args)
    kwargs = {name: places if a is index else a for name, a in kwargs.items()}

    def read(t: Tensor) -> Tensor:
        found: Tensor = function(t, *args, **kwargs)
        return found

    name = function_name(function)
    if not isinstance(input, LinearizedTensor):
        return _looked_up(index, read(constants(index, input)[0][0]), name)
    value, samples = read(input.value), input.samples
    if samples.count > 1:
        samples = samples.located(read(samples.owners(input.value)), name)
        if isinstance(index, LinearizedTensor) and index.samples.shifted(value.dim() - index.value.dim()) != samples:
            raise MixedSamplesError(f"{name} takes entries of one sample from the places of another")
    sums = functools.partial(Sums, back=value.numel())  # an entry may be read every time
    return input.replaced(value, input.linearization.mapped(read), samples, exact=True, sums=sums)


@rule("embedding")
def _embedding(function: Any, input: Any, weight: Any, *args: Any, **kwargs: Any) -> LinearizedTensor:
    if function is torch.embedding:
        input, weight = weight, input
    if not isinstance(input, LinearizedTensor) or moves(weight):
        raise refuse(weight, function, "expected places and a constant weight")
    (table,), _ = constants(input, weight)
    return _looked_up(input, F.embedding(fixed(function, input), table), "embedding")


def _looked_up(index: LinearizedTensor, value: Tensor, name: str) -> LinearizedTensor:
    """Entries of a constant, for each of the places one or, along more axes, several."""
    more = value.dim() - index.value.dim()
    if value.shape[: index.value.dim()] != index.value.shape:
        raise refuse(index, name, "expected places of the shape of the result")
    nothing = index.linearization.mapped(lambda t: t[(...,) + (None,) * more].expand(value.shape))
    return index.replaced(value, nothing, exact=True)


def fixed(function: Any, index: Any) -> Tensor:
    """The numbers of an index, which has to stay the same in a linear region."""
    if moves(index):
        raise refuse(index, function, "an index depends on the network's input")
    if isinstance(index, LinearizedTensor) and index.rounded:
        raise NoBoundError
    found: Tensor = index.value if isinstance(index, LinearizedTensor) else index
    return found
