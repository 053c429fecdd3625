"""Sums over all neurons along random directions: every network, step after step, and only what is needed."""

import networks
import oracle
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.linearized.directions import Directions

DTYPE = torch.float64


def penalty_and_gradients(loss, x, seed=0):
    loss.generator = torch.Generator().manual_seed(seed)
    penalty = loss(x)[1]
    parameters = list(loss.parameters())
    return penalty, torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", networks.NAMES)
def test_all_axes_are_exact_in_every_step(name):
    """The first step and those after it, which know where the last activation is.

    Up to what torch's own slope of hardsigmoid lacks of 1 / 6.
    """
    model, x = networks.build(name)
    loss = llr_fast.ROLLLoss(model, C=0.7, estimator="axis", samples=x[0].numel())
    expected = oracle.roll_penalty(model, x, C=0.7)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True, materialize_grads=True)
    for seed in range(3):
        torch.testing.assert_close(penalty_and_gradients(loss, x, seed), (expected, wanted), rtol=1e-7, atol=1e-9)


class Deepening(nn.Module):
    """Takes `depth` layers, with a branch around each activation."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.branch = nn.Linear(5, 5)
        self.depth = depth

    def forward(self, x):
        for layer in self.layers[: self.depth]:
            first = torch.nn.functional.leaky_relu(layer(x), 0.1)
            x = self.branch(x) + torch.cat([first.chunk(2, 1)[1], first], 1)[:, :5]
        return x


@pytest.mark.parametrize("then", [1, 2, 4])
def test_networks_whose_depth_changes(then):
    torch.manual_seed(0)
    model, x = Deepening(2).double(), torch.randn(3, 5, dtype=DTYPE)
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    for depth in (2, then, 2, 4):
        model.depth = depth
        fresh = penalty_and_gradients(llr_fast.ROLLLoss(model, estimator="rademacher"), x)
        torch.testing.assert_close(penalty_and_gradients(loss, x), fresh)


def test_nothing_is_computed_behind_the_last_activation(monkeypatch):
    model = nn.Sequential(
        *(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 5), nn.ReLU()),
        *(nn.Linear(5, 8), nn.Unflatten(1, (2, 4)), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 3)),
    )
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    made = []
    init = Directions.__init__
    monkeypatch.setattr(Directions, "__init__", lambda self, t: (made.append(tuple(t.shape)), init(self, t))[1])
    for behind in (True, False):
        made.clear()
        loss(torch.randn(2, 4))
        assert ((1, 2, 3) in made, (1, 2, 8) in made) == (behind, behind)
        assert (1, 2, 5) in made


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_memory_order_stays(order):
    """Values behind an activation lie as they did before it, and so do tangents."""
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.LeakyReLU())
    model[2].register_forward_pre_hook(lambda _, args: seen.extend([args[0].value, *args[0].linearization.tangents]))
    x = torch.randn(2, 3, 8, 8).to(memory_format=order)
    llr_fast.ROLLLoss(model.to(memory_format=order), estimator="rademacher")(x)
    assert len(seen) == 2 and all(t.is_contiguous(memory_format=order) for t in seen)
