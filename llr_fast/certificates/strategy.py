"""Which method finds the margins of a batch, and the bounds that it begins with."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from llr_fast import cost, norms
from llr_fast.certificates import bounds, search
from llr_fast.certificates.bounds import NormBounds, Probe
from llr_fast.certificates.frozen import Frozen
from llr_fast.checks import check_choice, check_generator, check_range
from llr_fast.linearized.gram import Chain, Topped

Method = Literal["exact", "search", "auto"]
METHODS: tuple[Method, ...] = get_args(Method)
_SHARPER = 4  # times as many directions, where many neurons are left


@dataclass(frozen=True)
class Options:
    """Those of `margin` that say what is searched, and how."""

    p: float
    method: Method
    failure_probability: float
    generator: torch.Generator | None

    def checked(self) -> Options:
        """As numbers; raises what `margin` does."""
        p = check_choice("p", self.p, norms.NORMS)
        check_choice("method", self.method, METHODS)
        failure_probability = check_range("failure_probability", self.failure_probability, 1e-300, 0.5)
        check_generator(self.generator)
        return Options(p, self.method, failure_probability, self.generator)

    @property
    def q(self) -> float:
        """Of the norm of gradients."""
        return norms.dual(self.p)

    @property
    def by_gram(self) -> bool:
        """Whether Gram matrices serve, where there is a chain."""
        return self.p == 2 and self.method != "search"

    def exact(self, frozen: Frozen, chain: Chain | Topped | None) -> bool:
        """Whether norms are computed, from the chain or from all axes, and not searched."""
        return self.method == "exact" or (self.method == "auto" and _exact_is_cheaper(frozen, chain))


def _exact_is_cheaper(frozen: Frozen, chain: Chain | Topped | None) -> bool:
    axes = frozen.x[0].numel()
    if axes <= cost.SEARCH_PASSES or axes * sum(layer.z.numel() for layer in frozen.layers) <= cost.FEW_DERIVATIVES:
        return True
    return chain is not None and cost.gram(chain.weights) <= cost.SEARCH_PASSES * cost.forward(chain.weights)


@dataclass(frozen=True)
class Bounded:
    """A network around x [B, ...] and upper bounds of the norms of all gradients, `exact` or searched."""

    model: nn.Module
    frozen: Frozen
    q: float
    exact: bool
    bounds: NormBounds
    probe: Probe

    @staticmethod
    def by(options: Options, model: nn.Module, frozen: Frozen) -> Bounded:
        q, generator = options.q, options.generator
        chain = (frozen.chain() or frozen.topped_chain()) if options.by_gram else None
        exact = options.exact(frozen, chain)
        if exact:
            probe = Probe.fixed(frozen)
            upper = bounds.exact_norms(frozen, probe, q, None) if chain is None else bounds.by_gram(chain, probe)
            probe = Probe(probe.fine, None)  # few candidates are left
            return Bounded(model, frozen, q, exact, NormBounds(upper), probe)
        probe = Probe.random(frozen, q, generator)
        draw = partial(bounds.by_search, frozen, probe, q, options.failure_probability / 2, generator)
        return Bounded(model, frozen, q, exact, NormBounds(draw(), functools.cache(partial(draw, _SHARPER))), probe)

    def nearest(self) -> search.Nearest:
        """Of all neurons."""
        return search.nearest(self.model, self.frozen, self.bounds, self.probe, self.q)

    def nearest_in_turn(self) -> tuple[search.Nearest, search.Nearest]:
        """Of all neurons but those of the last layer, and of all."""
        *below, last = self.bounds.upper
        nothing = [torch.zeros_like(bound) for bound in self.bounds.upper]  # which never bounds a region
        of_hidden, of_last = (replace(self.bounds, upper=b) for b in ([*below, nothing[-1]], [*nothing[:-1], last]))
        hidden = search.nearest(self.model, self.frozen, of_hidden, self.probe, self.q)
        return hidden, search.nearest(self.model, self.frozen, of_last, self.probe, self.q, hidden)
