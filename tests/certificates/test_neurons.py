"""activation_pattern, directional_margin and gradient_norms."""

import math

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast

DTYPE = torch.float64


def same(got, expected, rtol=1e-8, atol=1e-10):
    torch.testing.assert_close(got.to(DTYPE), expected.to(DTYPE), rtol=rtol, atol=atol)


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("name", networks.NAMES)
def test_gradient_norms_equal_oracle(case, name, q):
    model, x, layers = case(name)
    found = llr_fast.gradient_norms(model, x, q)
    assert len(found) == len(layers[0])
    for i, layer in enumerate(found):
        assert isinstance(layer.name, str)
        distance = torch.stack([sample[i].distance for sample in layers])
        norm = torch.stack([sample[i].norm(q) for sample in layers])
        assert layer.distance.shape == layer.norm.shape == distance.shape
        if layers[0][i].pool:  # the order of a pool's neurons is free, but distance and norm belong together
            same(layer.distance.sort(1).values, distance.sort(1).values)
            same(layer.norm.sort(1).values, norm.sort(1).values)
            same((layer.distance * layer.norm).sum(1), (distance * norm).sum(1))
        else:
            same(layer.distance, distance)
            same(layer.norm, norm)


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("name", ["conv1d", "residual", "max_pool2d_of_relu", "recurrent_time_first"])
def test_gradient_norms_by_one_direction_at_a_time(case, monkeypatch, name, q):
    model, x, _ = case(name)
    whole = llr_fast.gradient_norms(model, x, q)
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    for part, expected in zip(llr_fast.gradient_norms(model, x, q), whole, strict=True):
        same(part.norm, expected.norm)


def test_gradient_norms_default_to_q_2(case):
    model, x, _ = case("conv1d")
    for given, default in zip(llr_fast.gradient_norms(model, x, 2), llr_fast.gradient_norms(model, x)):
        assert torch.equal(given.norm, default.norm)


@pytest.mark.parametrize("name", networks.NAMES)
def test_pattern_equals_oracle(case, name):
    model, x, layers = case(name)
    pattern = llr_fast.activation_pattern(model, x)
    assert not pattern.is_floating_point() and not pattern.requires_grad
    if name in networks.POOLS:
        assert pattern.shape[0] == x.shape[0]
    else:
        expected = torch.stack([torch.cat([layer.piece for layer in sample]) for sample in layers])
        assert torch.equal(pattern.long(), expected)


def test_pattern_of_an_activation_with_two_kinks():
    model = nn.Sequential(nn.Identity(), nn.ReLU6())
    x = torch.tensor([[-1.0, 0.0, 3.0, 6.0, 7.0]])
    assert llr_fast.activation_pattern(model, x).tolist() == [[0, 0, 1, 1, 2]]


def test_pattern_of_a_pool_tells_the_winner():
    model = nn.Sequential(nn.Identity(), nn.MaxPool1d(2))
    patterns = llr_fast.activation_pattern(model, torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]], [[3.0, 5.0]]]))
    assert not torch.equal(patterns[0], patterns[1]) and torch.equal(patterns[0], patterns[2])


@pytest.mark.parametrize("name", networks.NAMES)
def test_directional_margin_equals_oracle(case, name):
    model, x, layers = case(name)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=DTYPE)
        expected = torch.tensor(
            [oracle.directional_margin(sample, d) for sample, d in zip(layers, direction)], dtype=DTYPE
        )
        found = llr_fast.directional_margin(model, x, direction)
        assert found.dtype == DTYPE and found.shape == x.shape[:1] and not found.requires_grad
        same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_kink_a_neuron_is_on_the_piece_below(dtype):
    """So the kink is ahead of it upwards, at once, and not downwards; at both kinks of a Hardtanh."""
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=dtype)
    direction = torch.tensor([[2.0], [-2.0], [2.0], [-2.0]], dtype=dtype)
    relu = llr_fast.directional_margin(nn.ReLU(), x, direction, dtype=dtype)
    assert relu.tolist() == [0, math.inf, math.inf, 0.5]
    clipped = llr_fast.directional_margin(nn.Hardtanh(0, 1), x, direction, dtype=dtype)
    assert clipped.tolist() == [0, math.inf, 0, 0.5]


def test_directional_margin_scales_with_the_direction(case):
    model, x, _ = case("conv2d")
    direction = torch.randn_like(x)
    margin = llr_fast.directional_margin(model, x, direction)
    same(llr_fast.directional_margin(model, x, 4 * direction), margin / 4)
    assert (
        llr_fast.directional_margin(model, x, direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        >= llr_fast.margin(model, x).value * (1 - 1e-12)
    ).all()


def test_no_kink_ahead():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.zero_()
    x = torch.tensor([[2.0], [2.0], [2.0]], dtype=DTYPE)
    direction = torch.tensor([[1.0], [-0.5], [0.0]], dtype=DTYPE)
    assert llr_fast.directional_margin(model, x, direction).tolist() == [math.inf, 4.0, math.inf]


def test_directional_margin_of_a_float32_model():
    model, x = networks.build("residual")
    direction = torch.randn_like(x)
    expected = llr_fast.directional_margin(model, x, direction)
    same(llr_fast.directional_margin(model.float(), x.float(), direction.float()), expected, rtol=1e-3)


def test_directional_margin_along_the_gradient_is_the_margin(case):
    model, x, _ = case("decoder")
    margin = llr_fast.margin(model, x)
    towards = margin.boundary_point(x) - x
    same(llr_fast.directional_margin(model, x, towards), torch.ones(len(x)))


@pytest.mark.parametrize("name", ["relu", "residual", "recurrent_time_first", "frames", "time_distributed"])
def test_independent_of_batch_mates(case, name):
    model, x, _ = case(name)
    pattern, norms = llr_fast.activation_pattern(model, x), llr_fast.gradient_norms(model, x, 1)
    for b, sample in enumerate(x.split(1)):
        assert torch.equal(llr_fast.activation_pattern(model, sample)[0], pattern[b])
        for alone, together in zip(llr_fast.gradient_norms(model, sample, 1), norms):
            same(alone.norm[0], together.norm[b])
            same(alone.distance[0], together.distance[b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_neuron_that_stays_on_its_kink_has_none_ahead(dtype):
    """Up to rounding in the dtype of the values; of many neurons, whose sums round in other ways."""
    torch.manual_seed(0)
    weight, x, v = torch.randn(200, 7, dtype=DTYPE), torch.randn(1, 7, dtype=DTYPE), torch.randn(1, 7, dtype=DTYPE)
    v -= (v @ x.T) / (x @ x.T) * x
    basis = torch.linalg.qr(torch.cat([x, v]).T)[0]
    weight -= weight @ basis @ basis.T  # orthogonal to x and v but for rounding
    model = nn.Sequential(nn.Linear(7, 200, bias=False), nn.ReLU()).to(dtype)
    model[0].weight.data.copy_(weight)
    assert llr_fast.directional_margin(model, x.to(dtype), v.to(dtype), dtype=dtype).tolist() == [math.inf]


def test_a_kernel_that_changes_after_its_convolution_is_what_it_was():
    """A convolution's derivative is computed when it is used."""
    torch.manual_seed(0)
    kernel = torch.randn(2, 1, 3, dtype=torch.float64)

    def changing(x):
        own = kernel.clone()
        z = F.conv1d(x, own)
        own.mul_(-3)
        return z.relu()

    x, direction = torch.randn(2, 3, 1, 6, dtype=torch.float64)
    found = llr_fast.directional_margin(networks.Apply(changing), x, direction)
    expected = llr_fast.directional_margin(networks.Apply(lambda x: F.conv1d(x, kernel).relu()), x, direction)
    assert torch.equal(found, expected)
