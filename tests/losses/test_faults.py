"""What happens when something is wrong: each case raises at once or has a stated value, and leaves nothing behind."""

import copy
import math
from unittest.mock import Mock

import networks
import pytest
import torch
from torch import nn

import llr_fast

DTYPE = torch.float64
LOSSES = {
    "exact": lambda model: llr_fast.ROLLLoss(model, estimator="exact"),
    "top": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher", gamma=30),
    "rademacher": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher"),
    "margin": llr_fast.MarginLoss,
}


@pytest.fixture(params=LOSSES)
def make(request):
    return LOSSES[request.param]


def gradients(loss, x):
    loss.zero_grad()
    output, penalty = loss(x)
    (output.sum() + penalty).backward()
    return penalty, [p.grad for p in loss.parameters() if p.grad is not None]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["exact", "rademacher", "top"])
def test_nan_in_the_batch_reaches_the_penalty(name, broken):
    """As it reaches any other loss: a check would make a GPU wait in every step."""
    model, x = networks.build("conv1d")
    x[1, 0, 3] = broken
    assert not LOSSES[name](model)(x)[1].isfinite()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_in_the_batch_has_no_margin(broken):
    model, x = networks.build("conv1d")
    x[1, 0, 3] = broken
    with pytest.raises(ValueError, match="x: expected finite values, got 1"):
        llr_fast.MarginLoss(model)(x)


def test_dead_network(make):
    """No neuron depends on the input: the penalty is that of the hinge alone, and gradients stay finite."""
    model, x = networks.build("relu")
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1.0)
    model[2].bias.data.fill_(-0.5)
    loss = make(model)
    penalty, found = gradients(loss, x)
    if isinstance(loss, llr_fast.MarginLoss):
        assert penalty == 0
    else:
        wanted = 0.5 if loss.gamma < 100 else 7 * 0.5 / 15  # 7 of 15 neurons are at a distance of 0.5
        torch.testing.assert_close(penalty, torch.tensor(wanted, dtype=DTYPE))
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("network", ["relu", "residual", "frames"])
def test_batch_of_one(make, network):
    model, x = networks.build(network)
    (penalty, found), (first, _) = gradients(make(model), x[:1]), gradients(make(model), x[:1])
    assert penalty.isfinite() and first.isfinite() and all(g.isfinite().all() for g in found)
    exact = llr_fast.ROLLLoss(model, estimator="exact")
    each = torch.stack([exact(sample)[1] for sample in x.split(1)])
    torch.testing.assert_close(exact(x)[1], each.mean())


def test_one_value_for_each_channel_has_no_batch_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    with pytest.raises(ValueError, match="expected more than one value for each channel"):
        llr_fast.ROLLLoss(model)(torch.randn(1, 3))


def test_empty_batch(make):
    model, x = networks.build("relu")
    with pytest.raises(ValueError, match=r"x: expected shape .* at least one sample"):
        make(model)(x[:0])


def test_on_a_kink(make):
    """Such a neuron is on the piece below: it passes no gradient on, its hinge is 1, and its margin is 0."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    model[0].weight.data = torch.eye(2, dtype=DTYPE)
    loss = make(model)
    penalty, found = gradients(loss, torch.tensor([[0.0, 5.0]], dtype=DTYPE))
    if isinstance(loss, llr_fast.MarginLoss):
        assert penalty == 0
    else:  # squared norms 1 and 1, hinges 1 and 0
        assert penalty == (2 if loss.gamma < 100 else 1.5)
    assert all(g.isfinite().all() for g in found)
    assert model[2].weight.grad[0, 0] == 0


def test_device_mismatch(make):
    model, x = networks.build("relu")
    with pytest.raises(ValueError, match="x: expected a tensor on the model's device cpu, got one on meta"):
        make(model)(x.to("meta"))


class Random(nn.Module):
    """Moves the random numbers and its buffers."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(20, 4).double(), nn.BatchNorm1d(4).double()

    def forward(self, x):
        return nn.functional.dropout(self.norm(self.linear(x)), 0.5, True).relu()


@pytest.mark.parametrize(
    "owner, name", [(nn.BatchNorm1d, "forward"), (llr_fast.linearized.directions.Directions, "activated_and_totalled")]
)
def test_interruption_leaves_nothing_behind(owner, name):
    """After an interruption in the model or in its tangents, the next step gives what it would have given."""
    x, model = torch.randn(5, 20, dtype=DTYPE), Random()
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    state = copy.deepcopy(model.state_dict())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, Mock(side_effect=KeyboardInterrupt))
        loss(x)
    model.load_state_dict(state)
    torch.manual_seed(0)
    found = loss(x)[1]
    model.load_state_dict(state)
    torch.manual_seed(0)
    expected = llr_fast.ROLLLoss(model, estimator="exact")(x)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert type(torch.relu(x)) is torch.Tensor
