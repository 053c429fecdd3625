"""Which bounds an enclosure is made with."""

from __future__ import annotations

import torch
from torch import Tensor

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous import cauchy, gradients
from llr_fast.certificates.rigorous.absolute import AbsoluteBounds
from llr_fast.certificates.rigorous.enclosure import Enclosure, enclose, sure_distances
from llr_fast.certificates.rigorous.sites import sites_of
from llr_fast.certificates.rigorous.sketched import SketchedBounds
from llr_fast.linearized.gram import Chain

# Of the sketch, and of that of errors alone: fewer cost more back-propagations than they save.
_DIRECTIONS = 14
_MORE = 40  # where these cost little, or where many samples wait for the one that has most to be computed
_SMALL, _MANY = 2**16, 8  # neurons of all samples; samples
_OF_ERRORS = 10
_FEW = 8  # neurons: where absolute bounds leave more to be computed than so many, the network is deep
_DEEP = 12  # results that are rounded: beyond so many absolute bounds are not tried


def without_chance(frozen: Frozen, q: float, chain: Chain | None) -> Enclosure:
    """The margins of the batch whose evaluation noted what rounding does, without random directions."""
    absolute = AbsoluteBounds(frozen, sites_of(frozen.tape))
    return enclose(frozen, absolute, _norms(frozen, q, chain, absolute), q)


def if_shallow(frozen: Frozen, q: float, chain: Chain | None) -> Enclosure | None:
    """The same, where few neurons are left to be computed."""
    sites = sites_of(frozen.tape)
    if len(sites) > _DEEP:
        return None
    absolute = AbsoluteBounds(frozen, sites)
    unsure = [
        ((sure == 0) & (errors > 0)).sum(1)
        for sure, errors in zip(sure_distances(frozen, absolute), absolute.errors, strict=True)
    ]
    if torch.stack(unsure).sum(0).max() > _FEW:
        return None
    found = enclose(frozen, absolute, _norms(frozen, q, chain, absolute), q, _FEW)
    return None if found.nearest is None or (found.undecided >= 0).any() else found


def by_sketch(frozen: Frozen, q: float, failure_probability: float, generator: torch.Generator | None) -> Enclosure:
    """With random directions, and that probability for each sample that a bound does not hold."""
    if q == 1:
        bounds = SketchedBounds(frozen, q, _OF_ERRORS, failure_probability / 2, generator)
        return enclose(frozen, bounds, cauchy.norms(frozen, bounds, failure_probability / 2, generator), q)
    bounds = SketchedBounds(frozen, q, _directions(frozen), failure_probability, generator)
    return enclose(frozen, bounds, bounds.norms, q)


def _norms(frozen: Frozen, q: float, chain: Chain | None, absolute: AbsoluteBounds) -> list[Tensor]:
    return gradients.over_axes(frozen, q, absolute) if chain is None else gradients.by_gram(chain, absolute)


def _directions(frozen: Frozen) -> int:
    size = sum(layer.z.numel() for layer in frozen.layers)
    return _MORE if size <= _SMALL or len(frozen.x) >= _MANY else _DIRECTIONS
