"""What the tests of refusals share: an input, a network around a block, and how a case states what becomes of it.

A case is refused or supported, and says which; a refusal by another class of error, or one that names another function,
fails as an acceptance does.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import networks
import oracle
import torch
from compare import refused
from torch import nn

import llr_fast

DTYPE = torch.float64
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
C4 = torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=DTYPE)


def inside(block: nn.Module) -> nn.Module:
    """The block as module 'block.act', behind a hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1))
    return nn.Sequential(OrderedDict(first=first, block=nn.Sequential(OrderedDict(act=block)))).double().eval()


RELU = inside(nn.ReLU())


class Refused(NamedTuple):
    """What runs, the class of the error, and the names that its message mentions: of functions and of modules."""

    run: Callable
    error: type[Exception]
    names: tuple[str, ...]


def no_rule(run: Callable, function: str) -> Refused:
    """Refused by NotPiecewiseLinearError for this function of torch, in module 'block.act'."""
    return Refused(run, llr_fast.NotPiecewiseLinearError, (function, "block.act"))


def mixes(run: Callable, function: str) -> Refused:
    """Refused by MixedSamplesError for this function of torch, in module 'block.act'."""
    return Refused(run, llr_fast.MixedSamplesError, (function, "block.act"))


CERTIFICATES = {
    "margin": llr_fast.margin,
    "margin_exact": lambda model, x: llr_fast.margin(model, x, method="exact"),
    "margin_search": lambda model, x: llr_fast.margin(model, x, method="search"),
    "directional_margin": lambda model, x: llr_fast.directional_margin(model, x, torch.ones_like(x)),
    "gradient_norms": llr_fast.gradient_norms,
    "gradient_norms_1": lambda model, x: llr_fast.gradient_norms(model, x, 1),
    "activation_pattern": llr_fast.activation_pattern,
}


def check_refused(case: Refused, model: nn.Module | None = None, x: torch.Tensor = X):
    """By every certificate; the model is the case's function as a block, unless another one is given."""
    model = inside(networks.Apply(case.run)) if model is None else model
    for certificate in CERTIFICATES.values():
        with refused(case.error, *case.names):
            certificate(model, x)


def check_supported(function: Callable, plain: Callable | None = None):
    """The neurons and margins are the oracle's.

    `plain` is the same function for the oracle, where autograd or the oracle does not follow how it is written.
    """
    model, reference = (inside(networks.Apply(f)) for f in (function, plain or function))
    samples = [oracle.neurons(reference, sample) for sample in X.split(1)]
    found = llr_fast.gradient_norms(model, X, 1)
    for neurons, layers in (
        ([n.distance for n in found], [[n.distance for n in s] for s in samples]),
        ([n.norm for n in found], [[n.norm(1) for n in s] for s in samples]),
    ):
        expected = torch.stack([torch.cat(sample) for sample in layers])
        torch.testing.assert_close(torch.cat(neurons, 1).sort(1).values, expected.sort(1).values, rtol=1e-8, atol=1e-12)
    expected = torch.stack([torch.cat([layer.margin(2) for layer in sample]).min() for sample in samples])
    for method in ("exact", "search"):
        value = llr_fast.margin(model, X, method=method).value
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12)
