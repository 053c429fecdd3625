"""Numbers: values and gradients to nine digits, whatever the size of what they are made of.

What is searched is tried as it is, and with bounds from float32, which small networks go without.
"""

import itertools
import math

import compare
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast
from llr_fast.certificates import bounds as bounds_of_norms
from llr_fast.certificates.bounds import Probe
from llr_fast.certificates.frozen import freeze

DTYPE = torch.float64


@pytest.fixture(params=["float64", "float32"])
def bounds(request, monkeypatch):
    if request.param == "float32":
        monkeypatch.setattr("llr_fast.certificates.bounds.FEW", 0)


def mlp(*sizes, scale=1.0, bias=True, activation=nn.ReLU):
    parts = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b, bias=bias), activation())]
    for layer in parts[::2]:
        layer.weight.data *= scale
    return nn.Sequential(*parts)


class Sum(nn.Module):
    """Units of very different sizes side by side."""

    def __init__(self, *scales):
        super().__init__()
        self.layers = nn.ModuleList(mlp(6, 5, scale=scale) for scale in scales)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], 1)


def nearly_equal(part):
    """Differences of nearly equal units."""
    first, second = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        first.bias.fill_(20.0)
        first.weight[4:] = first.weight[:4] + part * torch.randn(4, 6)
        second.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)], 1))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def coarsen(values):
    """To multiples of 1/256."""
    return values.mul_(256).round_().div_(256)


def zero_sum(common, bias=0.1):
    """Layers whose rows sum to zero, behind one whose units have a large part in common.

    Multiples of 1/256, so that what is left of the large part is the same in float64 however terms are added.
    """
    first, second, third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 5)
    with torch.no_grad():
        first.weight += common * torch.randn(1, 6)
        first.bias += 10 * common
        for layer in (first, second, third):
            coarsen(layer.weight)
            coarsen(layer.bias)
        for layer in (second, third):
            layer.weight[:, 0] -= layer.weight.sum(1)
            coarsen(layer.bias.uniform_(-bias, bias))
    return nn.Sequential(first, nn.ReLU(), second, nn.LeakyReLU(0.1), third, nn.ReLU())


def convolutional(scale=1.0):
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.LeakyReLU(0.3)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)),
    )
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
        model[3].weight *= scale
    return model.eval()


def normalised(variance):
    """Statistics of batch-norms that differ by many orders of magnitude."""
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 7), nn.BatchNorm1d(7), nn.ReLU())
    for layer in (model[1], model[4]):
        layer.running_var = variance ** torch.linspace(-1, 1, 7)
        layer.running_mean = layer.running_var.sqrt() * torch.randn(7)
    return model.eval()


def flat(n=2):
    return torch.randn(n, 6)


NETWORKS = {
    "ordinary": lambda: (mlp(6, 9, 7, 5), flat()),
    "wide": lambda: (mlp(6, 40, 3), flat()),
    "convolutional": lambda: (convolutional(), torch.randn(2, 1, 5, 5)),
    "large_convolutions": lambda: (convolutional(1e17), torch.randn(2, 1, 5, 5)),
    "small_convolutions": lambda: (convolutional(1e-25), torch.randn(2, 1, 5, 5)),
    "overflow": lambda: (mlp(*[6] * 9, scale=1e6, bias=False), flat().abs()),
    "overflow_of_squares": lambda: (mlp(6, 6, 6, scale=1e13, bias=False), flat()),
    "underflow": lambda: (mlp(*[6] * 5, scale=1e-24, bias=False), flat()),
    "underflow_of_squares": lambda: (mlp(6, 6, scale=1e-30, bias=False), flat()),
    "denormal": lambda: (mlp(6, 6, 6, scale=1e-20, bias=False), flat()),
    "very_small": lambda: (mlp(*[6] * 5, scale=1e-35, bias=False), flat()),
    "small_and_large": lambda: (mlp(6, 6, 6, 6, bias=False), 1e-20 * flat()),
    "far_away": lambda: (mlp(6, 6, 6, 6), 1e6 * flat()),
    "sizes_side_by_side": lambda: (Sum(1e-24, 1e-12, 1.0, 1e12, 1e19), flat()),
    "up_and_down": lambda: (
        nn.Sequential(mlp(6, 6, scale=1e20, bias=False), mlp(6, 6, scale=1e-25, bias=False), mlp(6, 6, bias=False)),
        flat(),
    ),
    "nearly_equal": lambda: (nearly_equal(1e-3), 0.1 * flat()),
    "nearly_equal_in_five_digits": lambda: (nearly_equal(1e-5), 0.1 * flat()),
    "zero_sum": lambda: (zero_sum(100.0), coarsen(flat())),
    "zero_sum_of_a_large_part": lambda: (zero_sum(1e4), coarsen(flat())),
    "slopes": lambda: (mlp(6, 9, 7, 5, activation=lambda: nn.LeakyReLU(1 / 3)), flat()),
    "small_slopes": lambda: (mlp(6, 6, 6, activation=lambda: nn.LeakyReLU(1e-9)), flat()),
    "trained_slopes": lambda: (mlp(6, 6, 6, activation=lambda: nn.PReLU(init=0.3)), flat()),
    "hard_sigmoids": lambda: (mlp(6, 6, 6, scale=3.0, activation=nn.Hardsigmoid), flat()),
    "normalised": lambda: (normalised(10.0), flat()),
    "normalised_by_tiny_variances": lambda: (normalised(1e12), flat()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_margins(bounds, name):
    torch.manual_seed(len(name))
    model, x = NETWORKS[name]()
    compare.margins_are_right(model, x, rtol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_norms(name):
    torch.manual_seed(len(name))
    model, x = NETWORKS[name]()
    compare.norms_are_right(model, x, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(monkeypatch, name):
    monkeypatch.setattr("llr_fast.certificates.bounds.FEW", 0)
    torch.manual_seed(len(name))
    compare.densities_are_right(*NETWORKS[name]())


@pytest.mark.parametrize("name", NETWORKS)
def test_margin_loss(name):
    """Its gradients are of the model's dtype, so that they may lie below or above what that holds."""
    torch.manual_seed(len(name))
    model, x = NETWORKS[name]()
    compare.margin_loss_is_right(model.double(), x.double(), rtol=1e-6)


@pytest.mark.parametrize("name", ["ordinary", "convolutional", "nearly_equal", "slopes", "normalised", "far_away"])
def test_margin_loss_of_float32(name):
    torch.manual_seed(len(name))
    compare.margin_loss_is_right(*NETWORKS[name](), rtol=1e-4)


@pytest.mark.parametrize("name", ["ordinary", "convolutional", "nearly_equal", "slopes", "normalised", "zero_sum"])
def test_roll(name):
    torch.manual_seed(len(name))
    model, x = NETWORKS[name]()
    compare.roll_is_right(model.double(), x.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["ordinary", "convolutional", "nearly_equal", "slopes", "trained_slopes", "zero_sum"])
def test_models_of_low_precision(bounds, name, dtype):
    """They are certified as the functions that their numbers define."""
    torch.manual_seed(len(name))
    model, x = NETWORKS[name]()
    model, x = model.to(dtype), x.to(dtype)
    compare.margins_are_right(model, x)
    compare.norms_are_right(model, x)


@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("p", compare.P)
@pytest.mark.parametrize("factor", [1e-120, 1e-45, 1e45, 1e120])
def test_float64_models_of_any_size(bounds, factor, p, method):
    torch.manual_seed(0)
    model = mlp(6, 6, 5, bias=False).double()
    wanted = llr_fast.margin(model, flat().double(), p, method="exact")
    torch.manual_seed(0)
    model = mlp(6, 6, 5, bias=False).double()
    x = flat().double()
    model[0].weight.data *= factor
    found = llr_fast.margin(model, x, p, method=method)
    torch.testing.assert_close(found.value, wanted.value, rtol=1e-9, atol=0)
    compare.close(found.gradient / factor, wanted.gradient)


@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("p", compare.P)
def test_values_beyond_float64_are_refused(p, method):
    model = mlp(*[6] * 5, scale=1e100, bias=False).double()
    with pytest.raises(ValueError, match=r"finite|range of float64"):
        llr_fast.margin(model, flat().double().abs() + 1, p, method=method)


@pytest.mark.parametrize("method", compare.METHODS)
@pytest.mark.parametrize("p", compare.P)
def test_a_margin_is_infinite_only_where_the_gradient_is_zero(bounds, p, method):
    """A tiny gradient bounds a region, however far away; one of exactly zero does not."""
    for weight, want in ((1e-30, 1e30), (1e-38, 1e38), (0.0, math.inf)):
        model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        model[0].weight.data.fill_(weight)
        model[0].bias.data.fill_(1.0)
        found = llr_fast.margin(model, torch.zeros(1, 1), p, method=method)
        assert found.value.item() == pytest.approx(want, rel=1e-6)
        assert (found.layer.item() == -1) == (weight == 0)


def test_constants_of_float32_keep_their_values(bounds):
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("mean", torch.full((6,), 0.1))

        def forward(self, x):
            h = (self.layer(x) - self.mean) / 0.3
            return F.leaky_relu(h * 0.7 + torch.tensor(0.2), 0.1).add(h, alpha=1 / 3).relu()

    torch.manual_seed(0)
    compare.margins_are_right(Affine(), flat())


class Pooled(nn.Module):
    """A chain of dense layers, and maxima of its outputs."""

    def __init__(self, maxima):
        super().__init__()
        self.chain, self.maxima = mlp(7, 6, 6, 9)[:-1], maxima

    def forward(self, x):
        return self.maxima(self.chain(x))


MAXIMA = {
    "windows": lambda h: F.max_pool1d(h.unsqueeze(1), 3, 2).sum(2),
    "all": lambda h: h.amax(1),
    "behind an axis": lambda h: h.unsqueeze(0).amax(2),
    "several rows of a sample": lambda h: h.view(-1, 3).amax(1).view(-1, 3),
}


class Forked(nn.Module):
    """A max-pooling of two layers of a chain."""

    def __init__(self):
        super().__init__()
        self.first, self.second = mlp(7, 6), mlp(6, 6)[:-1]

    def forward(self, x):
        h = self.first(x)
        return F.max_pool1d(torch.stack([h, self.second(h)], 2), 2)


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("scale", [1.0, 1e-200])
@pytest.mark.parametrize("maxima", MAXIMA.values(), ids=MAXIMA)
def test_bounds_of_what_a_maximum_adds_to_a_chain_hold(maxima, scale, dtype):
    torch.manual_seed(1)
    model, x = Pooled(maxima).double(), torch.randn(5, 7, dtype=DTYPE)
    model.chain[0].weight.data *= scale
    frozen = freeze(model, x, DTYPE)
    frozen.coarse = dtype
    probe = Probe.fixed(frozen)
    *hidden, last = bounds_of_norms.by_gram(frozen.topped_chain(), probe)
    *expected, norms = bounds_of_norms.exact_norms(frozen, probe, 2, None)
    for found, exact in zip(hidden, expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)
    assert (last >= norms).all() and last.mean() < 3 * norms.mean()
    assert frozen.chain() is None


@pytest.mark.parametrize("model", [Forked(), nn.Sequential(Pooled(MAXIMA["windows"]), nn.ReLU()), mlp(7, 6)])
def test_what_is_no_maximum_over_a_chain_is_none(model):
    assert freeze(model.double(), torch.randn(5, 7, dtype=DTYPE), DTYPE).topped_chain() is None
