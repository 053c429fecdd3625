"""diagnose, on networks of every kind, and on models with several faults at once."""

import math

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.reports import diagnosis as module


@pytest.mark.parametrize("name", networks.NAMES)
def test_networks_of_every_kind_are_supported(name):
    model, x = networks.build(name)
    found = llr_fast.diagnose(model, x)
    assert found.supported and not found.refused and not found.problem, str(found)
    assert found.value_error < 1e-12 and found.gradient_error < 1e-7  # torch rounds that of hardsigmoid
    neurons = sum(call.neurons * call.times for call in found.calls)
    assert neurons == sum(layer.distance.numel() for layer in llr_fast.gradient_norms(model, x))


class Faulty(nn.Module):
    """Three faults, the first of which hides the others from a margin."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.ReLU())

    def forward(self, x):
        h = self.inner(x)
        h = h * h
        h -= h.mean(0, keepdim=True)
        return F.relu(h) + self.inner(h)


def test_all_refusals_are_shown_at_once():
    model, x = Faulty(), torch.randn(3, 4)
    found = llr_fast.diagnose(model, x)
    assert [(c.module, c.function, c.times) for c in found.refused] == [
        ("inner.1", "gelu", 2),
        ("Faulty", "mul", 1),
        ("Faulty", "mean", 1),
    ]
    assert "samples" in found.refused[2].why
    assert not found.supported and math.isnan(found.value_error)
    text = str(found)
    assert text.count("REFUSED") == 3 and "not supported: 3 kinds" in text and "linear, 12 neurons, kinks at 0" in text
    with pytest.raises(llr_fast.NotPiecewiseLinearError, match="gelu"):
        llr_fast.margin(model, x)


def test_one_sample_mixes_with_none():
    assert [c.function for c in llr_fast.diagnose(Faulty(), torch.randn(1, 4)).refused] == ["gelu", "mul"]


@pytest.mark.parametrize(
    "layer, why",
    [
        (nn.BatchNorm1d(4), "training mode"),
        (networks.Apply(lambda x: x + torch.randn(4)), "random"),
    ],
)
def test_what_is_no_function_is_named(layer, why):
    found = llr_fast.diagnose(nn.Sequential(nn.Linear(4, 4), layer), torch.randn(3, 4))
    assert not found.supported and why in found.problem + "".join(c.why for c in found.refused)
    assert why in str(found)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    llr_fast.diagnose(model, torch.randn(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_rule_that_is_wrong_shows_as_a_difference(monkeypatch):
    monkeypatch.setattr(Evaluation, "collect", lambda self, activation, linearization: linearization)
    found = llr_fast.diagnose(nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(3, 4))
    assert found.gradient_error > 0.01 and not found.supported and "difference to plain autograd" in str(found)


def test_float32_agrees_to_rounding():
    found = llr_fast.diagnose(nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(3, 4))
    assert found.supported and 0 < max(found.value_error, found.gradient_error) < 1e-5 < module._TOLERANCE


@pytest.mark.parametrize("x, error", [([1.0], TypeError), (torch.tensor([[math.nan]]), ValueError)])
def test_wrong_input_is_refused(x, error):
    with pytest.raises(error, match="x: expected"):
        llr_fast.diagnose(nn.Linear(1, 1), x)
