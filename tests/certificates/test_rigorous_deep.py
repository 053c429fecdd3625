"""Enclosures of deep networks: bounds from noise at every operation, against 80 bits and worst errors."""

import math

import long_double
import numpy as np
import pytest
import torch
from long_double import LONG, Residual, dense, needs_80_bits
from torch import nn

import llr_fast
from llr_fast.certificates.frozen import freeze
from llr_fast.certificates.rigorous.derivative_rounding import DerivativeRounding
from llr_fast.certificates.rigorous.enclosure import sure_distances
from llr_fast.certificates.rigorous.sensitivities import Sensitivities, weights_of
from llr_fast.certificates.rigorous.sites import Site, sites_of
from llr_fast.certificates.rigorous.sketched import SketchedBounds
from llr_fast.linearized import local
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.operations import Activated

NORMS = [1, 2, math.inf]
GAIN = 6**0.5
SEEDS = 40  # of each case


def chain(seed):
    return dense([6, *[12] * (8 + seed % 17), 2], seed, GAIN, batch=2)


def residual(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = lambda: Residual(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10, bias=False))  # noqa: E731
        parts = [part for _ in range(4 + seed % 6) for part in (block(), nn.ReLU())]
        return nn.Sequential(nn.Linear(5, 10), nn.ReLU(), *parts, nn.Linear(10, 2)), torch.randn(2, 5)


def convolutional(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = lambda: Residual(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))  # noqa: E731
        parts = [part for _ in range(3) for part in (block(), nn.ReLU())]
        first = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        return nn.Sequential(first, nn.ReLU(), *parts, nn.Flatten(), nn.Linear(27, 4), nn.ReLU()), torch.rand(
            2, 2, 6, 6
        )


def halves(seed, sizes=(6, 12, 12, 12, 12, 12, 2)):
    """Half of the neurons do not depend on the input, but are rounded."""
    model, x = dense([*sizes], seed, GAIN, batch=2)
    for i, layer in enumerate(model[::2]):
        some = torch.arange(len(layer.bias)) >= len(layer.bias) // 2
        before = torch.arange(layer.in_features) >= layer.in_features // 2
        layer.weight.data *= (some[:, None] == before) if i else ~some[:, None]
    return model, x


KINDS = [chain, residual, convolutional, halves]


def misses(model, x, p, seed) -> int:
    generator = torch.Generator().manual_seed(seed)
    found = llr_fast.margin(model, x, p, method="search", rigorous=True, generator=generator)
    assert found.proven.all() and not found.exact.any()
    low, high = found.lower.numpy().astype(LONG), found.upper.numpy().astype(LONG)
    assert ((high - low) <= 1e-4 * high).all()
    truth = [long_double.margin(model, sample, p) for sample in x]
    return sum(not a <= value <= b for a, value, b in zip(low, truth, high, strict=True))


@needs_80_bits
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_true_margins_are_enclosed(kind, p):
    assert sum(misses(*kind(seed), p, seed) for seed in range(SEEDS if p == 2 else SEEDS // 4)) == 0


def sketched(frozen, seed=0, q=2, count=14):
    return SketchedBounds(frozen, q, count, 1e-10, torch.Generator().manual_seed(seed))


@needs_80_bits
@pytest.mark.parametrize("kind", KINDS)
def test_errors_and_norms_of_all_neurons_are_bounded(kind):
    for seed in range(SEEDS // 2):
        model, x = kind(seed)
        frozen = freeze(model, x, torch.float64, bounds=True)
        bounds = sketched(frozen, seed)
        for i, sample in enumerate(x):
            truth, _, _ = long_double.layers(model, sample)
            for layer, (value, jacobian), errors, norms in zip(
                frozen.layers, truth, bounds.errors, bounds.norms, strict=True
            ):
                assert (np.abs(layer.z[i].flatten().numpy().astype(LONG) - value) <= errors[i].numpy()).all()
                assert (np.sqrt((jacobian**2).sum(1)) <= norms[i].numpy()).all()
                assert (errors[i] <= 1e-7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_errors_of_the_sizes_allowed_move_a_value_by_more(kind):
    """The worst ones, delta = d sign(J), move it by the sum of |J| d, for which each neuron is back-propagated."""
    for seed in range(3):
        frozen = freeze(*kind(seed), torch.float64, bounds=True)
        bounds = sketched(frozen, seed)
        sensitivities = Sensitivities.of_ones(frozen, bounds.sites, 1)
        errors = weights_of([site.errors for site in bounds.sites.values()])
        for index, layer in enumerate(frozen.layers):
            for neuron in range(layer.distance.size(1)):
                where = torch.full((2, 1), index), torch.full((2, 1), neuron)
                _, worst = sensitivities.of_neurons(*where, errors)
                assert (worst[:, 0, 0] <= bounds.errors[index][:, neuron]).all()
                assert (bounds.of_neurons(*where)[1] >= worst[..., 0]).all()


def normalised(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(4)
        norm.running_var.uniform_(), norm.running_mean.normal_()
        inside = nn.Conv2d(2, 4, 3, padding=1), norm, Residual(nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.LeakyReLU()
        last = nn.Flatten(), nn.Linear(16, 3), nn.ReLU()
        return nn.Sequential(*inside, nn.AvgPool2d(2), *last).eval(), torch.rand(2, 2, 4, 4)


@pytest.mark.parametrize("kind", [residual, normalised, halves])
def test_sites_take_in_the_errors_of_all_operations(kind):
    """sum |J| d is the same whether errors are handed on or not."""
    frozen = freeze(*kind(1), torch.float64, bounds=True)
    sites = sites_of(frozen.tape)
    entries = {entry.results[0]: entry for entry in frozen.tape.up_to_last_activation()}
    rounded = {
        n: Site(entry.local.error, 0, entry.local.samples)
        for n, entry in entries.items()
        if entry.local.error is not None
    }
    assert len(sites) < len(rounded) or kind is halves
    where = torch.full((2, 1), len(frozen.layers) - 1), torch.tensor([[0], [1]])
    of_sites, of_all = (
        Sensitivities.of_ones(frozen, some, 1).of_neurons(*where, weights_of([site.errors for site in some.values()]))[
            1
        ]
        for some in (sites, rounded)
    )
    torch.testing.assert_close(of_sites, of_all, rtol=1e-4, atol=0)
    assert (of_sites >= of_all).all() and (of_all > 0).all()


def test_bounds_are_nearly_attained():
    """By neurons that the input does not move: noise shows what errors do, and nothing else."""
    frozen = freeze(*halves(0, (6, 80, 80, 80, 80, 2)), torch.float64, bounds=True)
    bounds = sketched(frozen, count=200)
    errors = weights_of([site.errors for site in bounds.sites.values()])
    for neuron in range(40, 80):
        where = torch.full((2, 1), 3), torch.full((2, 1), neuron)
        _, worst = Sensitivities.of_ones(frozen, bounds.sites, 1).of_neurons(*where, errors)
        assert (worst[:, 0, 0] <= bounds.errors[3][:, neuron]).all()
        assert (bounds.errors[3][:, neuron] <= 10 * worst[:, 0, 0]).all()


def replayed(frozen, sites, directions):
    """The tangents of all sites and of the neurons of all layers along directions [K, B, ...]."""
    at_sites, neurons = [], []

    def do(entry, operands):
        if isinstance(entry.operation, Activated):
            neurons.append(operands[0].tangents.flatten(2))
        results = entry.operation.apply(*operands)
        if entry.results[0] in sites:
            at_sites.append(results[0].tangents)
        return results

    with torch.no_grad():
        frozen.tape.walk(Directions(directions), do)
    return at_sites, neurons


@pytest.mark.parametrize("kind", [chain, residual, normalised])
def test_rounding_of_derivatives_is_bounded(kind, monkeypatch):
    """Forwards and backwards in float32, whose errors float64 shows."""
    for seed in range(4):
        frozen = freeze(*kind(seed), torch.float64, bounds=True)
        sites, x = sites_of(frozen.tape), frozen.x
        direction = torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(seed))
        axes = torch.eye(x[0].numel(), dtype=torch.float64).view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        along, exact = replayed(frozen, sites, direction.double())
        _, coarse = replayed(frozen, sites, direction)
        norms = [tangents.square().sum(0).sqrt() for tangents in replayed(frozen, sites, axes)[0]]
        with monkeypatch.context() as patched:
            patched.setattr(local, "UNIT", 2.0**-24)
            ahead = DerivativeRounding(frozen, sites, direction[0].double().abs(), [t[0].abs() for t in along])
            back = DerivativeRounding(frozen, sites, torch.ones_like(x[0], dtype=torch.float64), norms)
        weights = weights_of(ahead.of_sites, back.of_sites)
        fine, float32 = (Sensitivities(frozen, sites, direction.to(dtype)) for dtype in (torch.float64, torch.float32))
        for index, values in enumerate(exact):
            for neuron in range(min(6, values.size(2))):
                where = torch.full((2, 1), index), torch.full((2, 1), neuron)
                gradient, sums = fine.of_neurons(*where, weights)
                wrong = float32.of_neurons(*where, weights.float())[0] - gradient
                assert ((coarse[index] - values)[0, :, neuron].abs() <= sums[:, 0, 0]).all()
                own = back.of_layers[index][:, neuron]
                assert (wrong.flatten(1).norm(dim=1) <= sums[:, 0, 1] + own).all()


@needs_80_bits
def test_bounds_that_are_too_small_are_noticed(monkeypatch):
    monkeypatch.setattr(local, "UNIT", 2.0**-53 / 2**12)
    assert sum(misses(*chain(seed), 2, seed) for seed in range(10)) > 3


def near_kinks(seed):
    """Values of some neurons of each layer are about as large as the rounding of float32."""
    model, x = dense([8, *[32] * 9, 2], seed, GAIN, batch=1)
    generator = torch.Generator().manual_seed(seed)
    z = x
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                few = torch.randint(len(layer.bias), (2,), generator=generator)
                exact = nn.functional.linear(z.double(), layer.weight.double(), layer.bias.double())[0]
                layer.bias[few] -= (exact[few] * (1 + 1e-8 * torch.randn(2, generator=generator))).float()
            z = layer(z)
    return model, x


def test_signs_that_float32_gets_wrong_are_never_proven(monkeypatch):
    """Values and their bounds in float32, whose errors float64 shows; derivatives in float64."""
    wrong = caught = 0
    for seed in range(60):
        model, x = near_kinks(seed)
        with monkeypatch.context() as patched:
            patched.setattr(local, "UNIT", 2.0**-24)
            frozen = freeze(model, x, torch.float32, compared=False, bounds=True)
        truth = freeze(model.double(), x.double(), torch.float64, compared=False)
        bounds = sketched(frozen, seed)
        for layer, exact, sure, errors in zip(
            frozen.layers, truth.layers, sure_distances(frozen, bounds), bounds.errors, strict=True
        ):
            flipped = (layer.z > 0) != (exact.z > 0)
            assert not (flipped & (sure > 0)).any()
            assert ((layer.z.double() - exact.z).abs() <= errors).all()
            wrong += int(flipped.sum())
            if (sure == 0).any():  # behind it nothing is concluded
                caught += int(flipped.any())
                break
    assert wrong > 10 and caught > 5
