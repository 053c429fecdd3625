"""What the exact methods hold in memory: copies of the weights by Gram matrices, one chunk of tangents by axes."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(os.fspath(Path(__file__).parents[2]))  # for the package benches

import llr_fast
from benches import networks, providers
from benches.memory import peak_of_tensors

BUDGET = 2**22  # for a chunk; a few percent of what all axes together take


def beyond_plain_step(model, x, gamma=100):
    """Bytes of tensors that an exact ROLL step holds beyond a step without it."""
    roll, plain = llr_fast.ROLLLoss(model, estimator="exact", gamma=gamma), providers.cross_entropy(model, x)
    with_roll, without = (providers.step(model, loss) for loss in (lambda: roll(x)[1] + plain(), plain))
    return peak_of_tensors(with_roll, "cpu") - peak_of_tensors(without, "cpu")


@pytest.mark.parametrize("gamma", [100, 25])
def test_gram_matrices_grow_by_copies_of_the_first_weight(gamma):
    """As of its gradient; Jacobians would take one for each layer and sample."""
    torch.manual_seed(0)
    for size in (100, 1000, 10000):
        model, x = networks.mlp(size, 60, 60, 60, 10), torch.randn(8, size)
        assert beyond_plain_step(model, x, gamma) <= 300e3 + 3 * model[0].weight.nbytes


class Skipping(nn.Module):
    """Dense layers, of which one is skipped: no chain."""

    def __init__(self, size):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(size, 50), nn.Linear(50, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.second(x).relu())


@pytest.fixture(params=[(2, 3, 8, 8), (2, 3, 16, 16), (8, 300), (8, 3000)], ids=str)
def by_axes(request, monkeypatch):
    """A model that is no chain of dense layers, and its input."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", BUDGET)
    torch.manual_seed(0)
    x = torch.randn(request.param)
    return (networks.convnet(3, x.size(-1)) if x.dim() == 4 else Skipping(x.size(-1))), x


def test_a_step_holds_one_chunk_of_axes(by_axes):
    assert beyond_plain_step(*by_axes) <= BUDGET


def test_large_affine_intermediates_come_on_top(monkeypatch):
    """The chunks are chosen by the number of neurons, of which an enlarged image between them has none."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", BUDGET)
    torch.manual_seed(0)
    enlarged = nn.Upsample(scale_factor=4), nn.AvgPool2d(4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *enlarged, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    assert BUDGET < beyond_plain_step(model, torch.randn(2, 3, 8, 8)) <= 16 * BUDGET  # an image of 16 times the pixels


@pytest.mark.parametrize("q", [1, 2])
def test_a_certificate_holds_one_chunk_of_axes(by_axes, q):
    model, x = by_axes
    values = sum(norms.norm.numel() for norms in llr_fast.gradient_norms(model, x, q)) * 8
    weights = 3 * sum(parameter.nbytes for parameter in model.parameters())  # the tape's own, and those in float64
    assert peak_of_tensors(lambda: llr_fast.gradient_norms(model, x, q), "cpu") <= BUDGET + 8 * values + weights
