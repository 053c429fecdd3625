"""Enclosures of margins, against 80-bit numbers and against errors made as bad as the bounds allow."""

import math

import long_double
import networks
import numpy as np
import pytest
import torch
from long_double import LONG, dense, needs_80_bits
from torch import nn

import llr_fast
from llr_fast.certificates.frozen import freeze
from llr_fast.certificates.rigorous.sensitivities import Sensitivities, weights_of
from llr_fast.certificates.rigorous.sites import sites_of
from llr_fast.linearized import local

NORMS = [1, 2, math.inf]
REFUSED = {"rrelu", "decoder"}  # that have a function whose coefficients are rounded


def true_margins(model: nn.Module, x: torch.Tensor, p: float) -> list[np.longdouble]:
    return [long_double.margin(model, sample, p) for sample in x]


def misses(model: nn.Module, x: torch.Tensor, truth: list, p: float, **options) -> int:
    found = llr_fast.margin(model, x, p, rigorous=True, generator=torch.Generator().manual_seed(0), **options)
    assert found.proven.all() and found.unproven == [None] * len(x)
    low, high = found.lower.numpy().astype(LONG), found.upper.numpy().astype(LONG)
    assert ((high - low) <= 1e-6 * high).all()
    return sum(not lower <= value <= upper for lower, value, upper in zip(low, truth, high, strict=True))


@needs_80_bits
@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("seed", range(10))
def test_true_margins_of_dense_chains_are_enclosed(seed, p, method):
    sizes = [[3, 5, 2], [6, 8, 8, 3], [10, 40, 40, 40, 2], [4, 9, 9, 9, 9, 9, 2]][seed % 4]
    model, x = dense(sizes, seed)
    assert misses(model, x, true_margins(model, x, p), p, method=method) == 0


@needs_80_bits
def test_bounds_that_are_too_small_are_noticed(monkeypatch):
    monkeypatch.setattr(local, "UNIT", 2.0**-53 / 2**14)
    missed = 0
    for seed in range(10):
        model, x = dense([9, 60, 60, 60, 60, 3], seed)
        missed += misses(model, x, true_margins(model, x, 2), 2, method="exact")
    assert missed > 3


@pytest.mark.parametrize("method", ["auto", "search"])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", networks.NAMES)
def test_networks_of_every_kind(name, p, method):
    model, x = networks.build(name)
    value = llr_fast.margin(model, x, p, method="exact").value
    try:
        found = llr_fast.margin(model, x, p, method=method, rigorous=True, generator=torch.Generator().manual_seed(0))
    except llr_fast.NotPiecewiseLinearError as error:
        assert "rigorous=True" in str(error) and name in REFUSED
        return
    torch.testing.assert_close(found.value, value)
    assert (found.lower <= value * (1 + 1e-9)).all() and (found.upper >= value * (1 - 1e-9)).all()
    assert (
        found.proven.all() and ((found.upper - found.lower)[value < math.inf] <= 1e-6 * value[value < math.inf]).all()
    )


def test_worst_errors_attain_the_bound(monkeypatch):
    """Local errors of the sizes allowed, with the signs of their effects, move the value by all that is allowed."""
    monkeypatch.setattr(local, "UNIT", 2.0**-40)
    model, x = dense([5, 12, 12, 12, 2], 3)
    model, x = model.double(), x[:1].double()
    frozen = freeze(model, x, torch.float64, bounds=True)
    errors = [entry.local.error for entry in frozen.tape.up_to_last_activation() if entry.local.error is not None]
    assert len(errors) == 3
    weights = [(layer.weight.detach(), layer.bias.detach()) for layer in model if isinstance(layer, nn.Linear)]

    def values(*shifts: torch.Tensor) -> torch.Tensor:
        z = x
        for (weight, bias), shift in zip(weights, shifts):
            z = nn.functional.linear(z if z is x else z.relu(), weight, bias) + shift
        return z

    sites = sites_of(frozen.tape)
    sensitivities, local_errors = (
        Sensitivities.of_ones(frozen, sites, 1),
        weights_of([site.errors for site in sites.values()]),
    )
    for neuron in range(12):
        _, allowed = sensitivities.of_neurons(torch.tensor([[2]]), torch.tensor([[neuron]]), local_errors)
        shifts = [torch.zeros_like(e, requires_grad=True) for e in errors]
        signs = torch.autograd.grad(values(*shifts)[0, neuron], shifts)
        worst = [e * s.sign() for e, s in zip(errors, signs, strict=True)]
        moved = values(*worst)[0, neuron] - values(*shifts)[0, neuron]
        assert math.isclose(moved.item(), allowed.item(), rel_tol=1e-4)


def test_unproven_signs_are_named():
    """A sum that cancels to less than its rounding."""
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
        model[0].bias.zero_()
    x = torch.tensor([[1.0, 2.0**-60, -1.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    found = llr_fast.margin(model, x, rigorous=True)
    assert found.proven.tolist() == [False, True] and found.unproven == [(0, 0), None]
    assert found.lower[0] == 0 and 2.0**-60 / 3**0.5 <= found.upper[0] < 1e-14
    assert 0 < found.lower[1] <= 6 / 3**0.5 <= found.upper[1]


def test_behind_an_unproven_sign_nothing_is_concluded():
    """The kink of the second layer is nearer, but whether it is there is not known."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(2.0**-60)
        model[2].weight.fill_(1.0), model[2].bias.fill_(2.0**-70)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    found = llr_fast.margin(model, x, rigorous=True)
    assert found.unproven == [(0, 0)] and found.lower == 0 and 2.0**-60 / 2**0.5 <= found.upper < 1e-14
    assert found.value == llr_fast.margin(model, x).value


def test_deep_networks_are_enclosed_or_named():
    model, x = dense([6, *[24] * 40, 2], 1)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(6**0.5)  # so that values keep their size
    found = llr_fast.margin(model, x, rigorous=True)
    assert (found.lower <= found.value).all() and ((found.lower == 0) | found.proven).all()
    assert [u is None for u in found.unproven] == found.proven.tolist()
    torch.testing.assert_close(found.value, llr_fast.margin(model, x).value)


def test_no_kinks():
    found = llr_fast.margin(nn.Linear(3, 2), torch.ones(2, 3), rigorous=True)
    assert found.lower.isinf().all() and found.upper.isinf().all() and found.proven.all()


def test_small_numbers_do_not_underflow():
    model, x = dense([4, 6, 6, 2], 0)
    model = model.double()
    with torch.no_grad():
        for scale in (1e-140, 1e-160):
            model[0].weight.mul_(scale), model[0].bias.mul_(scale), model[2].bias.mul_(scale)
            found = llr_fast.margin(model, x.double(), rigorous=True)
            assert (found.lower <= found.value).all() and (found.upper >= found.value).all()


def test_the_default_has_no_enclosure():
    model, x = dense([3, 4, 2], 0)
    found = llr_fast.margin(model, x)
    assert found.lower is None and found.upper is None and found.proven is None and found.unproven is None


def test_values_in_float32_are_refused():
    model, x = dense([3, 4, 2], 0)
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float64 with rigorous=True, got torch\.float32"):
        llr_fast.margin(model, x, dtype=torch.float32, rigorous=True)


@needs_80_bits
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("seed", range(8))
def test_true_distances_of_decisions_are_enclosed(seed, p):
    """Of random networks, and of others whose decisions are nearer than their kinks."""
    model, x = dense([[3, 5, 2], [6, 8, 8, 3], [10, 40, 40, 4], [2, 9, 9, 3]][seed % 4], seed)
    if seed >= 4:
        for layer in model[:-1:2]:
            nn.init.constant_(layer.bias, 50.0)
        with torch.no_grad():
            model[-1].bias -= model(x.mean(0))
    found = llr_fast.robustness(model, x, p, rigorous=True, generator=torch.Generator().manual_seed(0))
    assert found.proven.all() and (seed < 4 or found.exact.all())
    for i, sample in enumerate(x):
        region, decision = long_double.margin(model, sample, p), long_double.lead(model, sample, p)
        low, high = LONG(found.lower[i].item()), LONG(found.upper[i].item())
        nearest = min(region, decision)
        assert nearest * (1 - LONG(1e-6)) <= low <= nearest
        if decision < region:
            assert decision <= high <= decision * (1 + LONG(1e-6))
            logits = model.double()(found.adversarial[i : i + 1]).topk(2).values[0]
            assert (logits[0] - logits[1]).abs() < 1e-9
            model.float()
        else:
            assert high == np.inf and found.adversarial[i].isnan().all()


def test_a_class_that_is_not_proven():
    """Two logits that are equal but for rounding; of the classes that are asked for none is known to be right."""
    model = nn.Sequential(nn.Linear(7, 2)).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0].flip(0), model[0].bias[0]
    x = torch.rand(1, 7).double().expand(2, -1).clone()
    x = x + x.flip(1)
    found = llr_fast.robustness(model, x, y=torch.tensor([0, 1]), rigorous=True)
    assert not found.proven.any() and (found.lower == 0).all()


def test_enclosed_robustness_is_of_one_region_and_of_the_labels():
    model, x = dense([6, 8, 8, 3], 1)
    with pytest.raises(ValueError, match="regions: expected 1 with rigorous=True, got None"):
        llr_fast.robustness(model, x, regions=None, rigorous=True)
    predicted = model(x).argmax(1)
    found = llr_fast.robustness(model, x, y=(predicted + 1) % 3, rigorous=True)
    assert (found.lower == 0).all() and (found.upper == 0).all() and found.exact.all()
    assert llr_fast.robustness(model, x).proven is None
