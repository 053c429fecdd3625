"""Kinks that are none: where two pieces are the same function, or a neuron does not depend on x, no region ends."""

import math

import compare
import oracle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast

DTYPE = torch.float64
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(2), dtype=DTYPE)


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(5, 4), function

    def forward(self, x):
        return self.function(self.layer(x))


def median_of_three(h):
    a, b, c, _ = h.unbind(1)
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def sorting_network(h):
    a, b, c, d = h.unbind(1)
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    c, d = torch.minimum(c, d), torch.maximum(c, d)
    a, c = torch.minimum(a, c), torch.maximum(a, c)
    b, d = torch.minimum(b, d), torch.maximum(b, d)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    return torch.stack([a, b, c, d], 1)


def running_maximum(h):
    found = [h[:, 0]]
    for entry in h.unbind(1)[1:]:
        found.append(torch.maximum(found[-1], entry))
    return torch.maximum(torch.stack(found, 1), torch.stack(found, 1).flip(1))


# Each with what has the same kinks.
SAME = {
    "relu_of_relu": (lambda h: h.relu().relu(), F.relu),
    "abs_of_relu": (lambda h: h.relu().abs(), F.relu),
    "clamp_of_clamp": (lambda h: h.clamp(0, 1).clamp(-1, 2), lambda h: h.clamp(0, 1)),
    "relu6_of_clamp": (lambda h: F.relu6(h.clamp(0, 1)), lambda h: h.clamp(0, 1)),
    "maximum_with_its_relu": (lambda h: torch.maximum(h, h.relu()), F.relu),
}


@pytest.mark.parametrize("name", SAME)
def test_what_follows_adds_no_kinks_of_its_own(name):
    torch.manual_seed(0)
    model, twin = (Of(function).double() for function in SAME[name])
    twin.load_state_dict(model.state_dict())
    for p in compare.P:
        wanted = oracle.margin(twin, X[:6], p)
        for method in compare.METHODS:
            torch.testing.assert_close(llr_fast.margin(model, X[:6], p, method=method).value, wanted, rtol=1e-9, atol=0)


TIES = {
    "twice_the_same": lambda h: torch.maximum(h, h),
    "pool_of_repeated_entries": lambda h: F.max_pool1d(h.repeat_interleave(2, 1).unsqueeze(1), 2),
    "pool_of_pools": lambda h: F.max_pool1d(F.max_pool1d(h.unsqueeze(1), 2, 1), 2, 1),
    "pool_of_the_dead": lambda h: F.max_pool1d(h.relu().unsqueeze(1) * 0, 2),
    "median_of_three": median_of_three,
    "sorting_network": sorting_network,
    "running_maximum": running_maximum,
    "relu_of_a_constant": lambda h: (0 * h).relu() + h.abs(),
    "relu_of_a_difference": lambda h: (h - h).relu() + h.abs(),
    "dead_after_relu": lambda h: F.relu(-h.relu()),
    "pool_after_relu": lambda h: F.max_pool1d(h.relu().unsqueeze(1), 3, 1),
    "maximum_of_relus": lambda h: torch.maximum(h.relu(), h.flip(1).relu()),
    "maximum_with_zero_after_relu": lambda h: torch.maximum(h.relu(), torch.zeros((), dtype=h.dtype)),
    "minimum_and_maximum_of_the_same": lambda h: torch.maximum(h, torch.minimum(h, h.flip(1))),
    "clamp_to_one_point": lambda h: h.clamp(0.5, 0.5) + h,
    "hardshrink_of_zero": lambda h: F.hardshrink(h.relu() * 0, 0.5) + h.abs(),
}


@pytest.mark.parametrize("name", TIES)
def test_ties_bound_no_region(name):
    torch.manual_seed(1)
    model = Of(TIES[name]).double()
    direction = torch.randn_like(X)
    for p in compare.P:
        for method in compare.METHODS:
            assert (llr_fast.margin(model, X, p, method=method).value > 1e-6).all()
        for method in ("exact", "search"):
            assert not llr_fast.region_density(model, X, 0.0, p, method=method).any()
    assert (llr_fast.directional_margin(model, X, direction) > 1e-6).all()


@pytest.mark.parametrize("name", TIES)
def test_within_its_margin_a_network_with_ties_is_affine(name):
    """Of the plain model: at the middle of two points as near as the margin allows it is the mean of both."""
    torch.manual_seed(1)
    model, generator = Of(TIES[name]).double(), torch.Generator().manual_seed(3)
    margin = llr_fast.margin(model, X).value.clamp(max=1e3)
    for _ in range(20):
        step = torch.randn(X.shape, generator=generator, dtype=DTYPE)
        step *= 0.999 * (margin / step.norm(dim=1))[:, None]
        with torch.no_grad():
            middle, mean = model(X), (model(X + step) + model(X - step)) / 2
        torch.testing.assert_close(middle, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["median_of_three", "sorting_network", "pool_of_pools", "maximum_of_relus"])
def test_losses_of_networks_with_ties_are_finite(name):
    torch.manual_seed(1)
    model = Of(TIES[name]).double()
    for loss in (
        llr_fast.MarginLoss(model),
        llr_fast.ROLLLoss(model, estimator="exact"),
        llr_fast.ROLLLoss(model, estimator="rademacher", gamma=30),
    ):
        model.zero_grad()
        penalty = loss(X)[1]
        penalty.backward()
        assert penalty.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_a_network_of_ties_alone_is_affine_everywhere():
    model = Of(lambda h: torch.maximum(h, h) + torch.minimum(h, h.clone())).double()
    for p in compare.P:
        for method in compare.METHODS:
            found = llr_fast.margin(model, X, p, method=method)
            assert (found.value == math.inf).all() and (found.layer == -1).all() and not found.gradient.any()
    assert (llr_fast.directional_margin(model, X, X.flip(0)) == math.inf).all()
    assert llr_fast.MarginLoss(model)(X)[1] == 0
