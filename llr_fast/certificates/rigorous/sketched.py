"""Bounds of rounding errors and of gradient norms together, from random directions: they do not grow with depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llr_fast.certificates import sketch
from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous.derivative_rounding import DerivativeRounding
from llr_fast.certificates.rigorous.noise import Noise
from llr_fast.certificates.rigorous.replay import Squares
from llr_fast.certificates.rigorous.sensitivities import Sensitivities, weights_of
from llr_fast.certificates.rigorous.sites import sites_of
from llr_fast.certificates.search import entries
from llr_fast.linearized.local import SLACK, SMALL, raised

# Of what the root of a sum of squares stays above: what the rounding of the sketch should take, and what it may
_AIM, _MOST = 2.0**-5, 0.2


class SketchedBounds:
    """Bounds that hold, all together, except with `failure_probability` for each sample.

    Attributes:
        errors: for each layer those of the errors of its values, [B, n].
        norms: for each layer those of the l2 norms of gradients, [B, n].
        kappa: each operation rounds the sketch's own tangents by at most kappa times what it may do to values, [B].
    """

    def __init__(
        self, frozen: Frozen, q: float, directions: int, failure_probability: float, generator: torch.Generator | None
    ) -> None:
        self.sites = sites_of(frozen.tape)
        self._frozen, self._count, self._failure = frozen, directions, failure_probability / 2  # of each of two tries
        self._longer = math.sqrt(frozen.x[0].numel()) if q == 1 else 1.0  # than the l2 norm an l_q norm can be
        like = torch.empty(0, dtype=torch.float64, device=frozen.x.device)
        self._probe = Sensitivities(frozen, self.sites, sketch.draw(2, (1, *frozen.x.shape), like, generator))
        count = frozen.x[0].numel() + sum(site.errors.size(1) for site in self.sites.values())
        self._least_root = math.sqrt(sketch.quantile(2, directions, self._failure / 2 / count))
        for everywhere in (False, True):
            if self._measured(everywhere, generator):
                break
        self._sensitivities, self._weights = self._probe, weights_of(self.noise.errors, self._rounding.of_sites)

    @torch.no_grad()
    def _measured(self, everywhere: bool, generator: torch.Generator | None) -> bool:
        """Whether the rounding of the sketch itself is small."""
        probe = self._probe
        aim = self._least_root * _AIM / math.sqrt(self._count)
        self.noise = Noise.of(self.sites, probe.values, len(self._frozen.x), aim, everywhere)
        squares = Squares(self._frozen, self.noise, self._count, generator)
        sizes = [_root(s, t[0]) for s, t in zip(squares.of_sites, probe.values, strict=True)]
        self._rounding = DerivativeRounding(self._frozen, self.sites, squares.of_input.sqrt() * SLACK, sizes)
        self.kappa = self.noise.parts(self._rounding.of_sites)
        slack = self.kappa * self._errors_per_norm(len(self.sites))
        self._norms_per_root = _inverse(self._least_root - slack)
        quantiles = sketch.joint_quantiles(self._frozen.distances, 2, self._count, self._failure / 2)
        roots = [_root(s, t[0]) for s, t in zip(squares.of_layers, probe.neurons, strict=True)]
        self.norms = [_product(r, _inverse(c.sqrt() - slack[:, None])) for r, c in zip(roots, quantiles, strict=True)]
        factors = [self._errors_per_norm(count)[:, None] for count in self._rounding.sources]
        self.errors = [_product(n, factor) for n, factor in zip(self.norms, factors, strict=True)]
        return bool((slack < _MOST * self._least_root).all())

    def _errors_per_norm(self, sites: int) -> Tensor:
        """sum |J| d of whatever depends on so many sites, as a part of the norm of gradient and noise, [B]."""
        return math.sqrt(sites) / self.noise.scale * SLACK

    def of_neurons(self, layer: Tensor, neuron: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Bounds`."""
        if layer.size(1) > self._sensitivities.width:
            self._sensitivities = Sensitivities.of_ones(self._frozen, self.sites, layer.size(1))
        gradient, sums = self._sensitivities.of_neurons(layer, neuron, self._weights)
        own, rounded = sums.unbind(2)
        rounded = rounded + entries(self._rounding.of_layers, layer, neuron)
        of_gradient = _product(rounded, self._norms_per_root[:, None])
        errors = own * SLACK + _product(of_gradient, self._errors_per_norm(len(self.sites))[:, None])
        return gradient, errors, of_gradient * (self._longer * SLACK)


def _root(squares: Tensor, along: Tensor) -> Tensor:
    """An upper bound of the root of a sum of squares; those that underflowed were not 0 `along` another direction."""
    root = squares.sqrt() * SLACK
    return raised(torch.where(along == 0, root, root.clamp_min(SMALL)))


def _inverse(positive: Tensor) -> Tensor:
    """Infinite of what is not."""
    return positive.clamp_min(0).reciprocal() * SLACK


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of bounds: 0 times an infinite one is 0."""
    return (a * b * SLACK).nan_to_num(nan=0.0, posinf=torch.inf)
