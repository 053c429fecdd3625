"""Gaussian noise as large as rounding, by which a sketch shows what rounding does to all neurons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llr_fast.certificates.rigorous.sites import Site
from llr_fast.linearized.local import SLACK, gamma

_SHARE = 1 / 16  # of noise in the variance of tangents, about; more of it would hide the gradients


@dataclass(frozen=True)
class Noise:
    """What tangents take in at the sites: for each entry a Gaussian number times a coefficient.

    The coefficients are scale * sqrt(d D), where d is the error of an entry and D the sum of d over a site. With the
    derivatives J of a neuron, (sum |J| d)^2 <= number of sites * sum J^2 d D by Cauchy and Schwarz.

    Attributes:
        sites: by their numbers.
        errors: d, for each site [B, n]: its errors, some more where tangents are rounded by more.
        coefficients: for each site, of the shape of its value.
        scale: of each sample, [B].
    """

    sites: dict[int, Site]
    errors: list[Tensor]
    coefficients: list[Tensor]
    scale: Tensor

    @staticmethod
    def of(sites: dict[int, Site], along: list[Tensor], batch: int, slack: float, everywhere: bool) -> Noise:
        """For a `batch` of B, given the sites' tangents `along` a random direction, [1, B, ...].

        The rounding of tangents should move those of one direction by at most `slack` deviations, which takes some
        noise. Where they are 0 they are not rounded, and errors stay what they are, unless `everywhere`.
        """
        pairs = [(site, t.detach()[0]) for site, t in zip(sites.values(), along, strict=True)]
        scale = _scale(pairs, batch)
        errors, coefficients = [], []
        for site, tangents in pairs:
            samples, error = site.samples, site.error
            rounding = gamma(site.terms + 1) * math.sqrt(site.terms + 1) * samples.rows(tangents).abs().amax(1)
            least = samples.spread(rounding * math.sqrt(len(sites)) / (slack * scale), error)
            enough = torch.maximum(error, least if everywhere else torch.where(tangents == 0, 0.0, least))
            errors.append(samples.rows(enough))
            factor = errors[-1].sum(1).sqrt() * scale
            coefficients.append(enough.sqrt() * samples.spread(factor, error))
        return Noise(sites, errors, coefficients, scale)

    def parts(self, rounding: list[Tensor]) -> Tensor:
        """[B]: the largest part that what is given for each site, [B, n], is of its errors."""
        largest = torch.zeros_like(self.scale)
        for of_site, errors in zip(rounding, self.errors, strict=True):
            part = (of_site / errors).nan_to_num(nan=0.0, posinf=torch.inf)
            largest = torch.maximum(largest, part.amax(1))
        return largest * SLACK

    def added(self, tangents: Tensor, index: int, drawn: np.random.Generator) -> Tensor:
        """Tangents [K, *value.shape] of a site with their noise; where samples have an axis they share the numbers."""
        samples, shape = list(self.sites.values())[index].samples, list(tangents.shape)
        if samples.count > 1 and samples.dim == 0 and shape[1] == samples.count:
            shape[1] = 1
        numbers = torch.from_numpy(drawn.standard_normal(shape))
        into = numbers if numbers.shape == tangents.shape else torch.empty(tangents.shape, dtype=torch.float64)
        return torch.addcmul(tangents, numbers, self.coefficients[index], out=into)


def _scale(pairs: list[tuple[Site, Tensor]], batch: int) -> Tensor:
    """[B]: of noise that is some of what tangents are at the sites, and so mostly of what they are behind them."""
    load = torch.zeros(batch, dtype=torch.float64)
    for site, tangents in pairs:
        variance = site.errors.mean(1) * site.errors.sum(1)
        load = load + (variance / site.samples.rows(tangents).square().mean(1)).nan_to_num(nan=0.0, posinf=0.0)
    return (_SHARE / load).sqrt().nan_to_num(nan=1.0, posinf=1.0)
