"""The oracle against cases worked out by hand."""

import math

import networks
import oracle
import torch
import torch.nn.functional as F
from torch import nn


def test_one_relu_neuron():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    model[0].weight.data = torch.tensor([[3.0, -4.0]]).double()
    model[0].bias.data = torch.tensor([1.0]).double()
    x = torch.tensor([[2.0, 0.5]]).double()  # z = 6 - 2 + 1 = 5
    assert oracle.margin(model, x, 2).tolist() == [1.0]
    assert oracle.margin(model, x, 1).tolist() == [5 / 4]
    assert oracle.margin(model, x, math.inf).tolist() == [5 / 7]
    assert oracle.roll_penalty(model, x, lam=2.0).item() == 50.0
    layers = oracle.neurons(model, x)
    assert oracle.directional_margin(layers, torch.tensor([-1.0, 0.0]).double()) == 5 / 3
    assert oracle.directional_margin(layers, torch.tensor([1.0, 0.0]).double()) == math.inf


def test_dead_units_leave_later_layers_without_gradient():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.fill_(-3.0)
    x = torch.ones(1, 1).double()
    first, second = oracle.neurons(model, x)
    assert first.margin(2).tolist() == [2.0] and second.margin(2).tolist() == [math.inf]


def test_padded_pool_compares_real_entries_only():
    x = torch.tensor([[[-1.0, -4.0, -2.0]]]).double()
    (layer,) = oracle.neurons(
        networks.Apply(lambda x: F.max_pool1d(x, 2, stride=2, padding=1)), x
    )  # windows {-1}, {-4, -2}
    assert layer.z.tolist() == [2.0]
    assert layer.gradient.tolist() == [[0.0, -1.0, 1.0]]


def test_pool_windows_are_those_of_torch():
    x = torch.randn(1, 2, 7, 6).double()
    for kernel, stride, padding, dilation, ceil_mode in [
        (2, 2, 0, 1, False),
        (3, 2, 1, 1, True),
        ((3, 2), (2, 1), (1, 0), 1, False),
        (2, 1, 0, 2, False),
        (2, 3, 1, 3, True),
    ]:
        call = oracle.Arguments((x, kernel, stride, padding, dilation, ceil_mode), {})
        rows, columns = oracle.sliding_windows(x.shape[-2:], call)
        winners = torch.stack([torch.stack([x[0, :, i][:, :, j].amax((1, 2)) for j in columns], 1) for i in rows], 1)
        assert torch.equal(winners[None], F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode))
    rows, columns = oracle.adaptive_windows(x.shape[-2:], oracle.Arguments((x, (3, 4)), {}))
    winners = torch.stack([torch.stack([x[0, :, i][:, :, j].amax((1, 2)) for j in columns], 1) for i in rows], 1)
    assert torch.equal(winners[None], F.adaptive_max_pool2d(x, (3, 4)))


def test_in_place_activation_is_read_before_it_runs():
    (layer,) = oracle.neurons(
        networks.Apply(lambda x: F.relu(x * 2, inplace=True)), torch.tensor([[-1.0, 3.0]]).double()
    )
    assert layer.z.tolist() == [-2.0, 6.0] and layer.piece.tolist() == [0, 1]
    assert layer.gradient.tolist() == [[2.0, 0.0], [0.0, 2.0]]
