"""A certificate is of a function: the model as it is, in float64, with the constants that it makes of its weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast

X = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.9, -0.4]])


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand(x.shape)


class Remembering(nn.Module):
    """A state that no module knows of: how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Asking(nn.Module):
    def forward(self, x):
        return 2 * x if type(x) is torch.Tensor else x


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize(
    "part, match",
    [(Noisy, "'noise'.*random|random.*'noise'"), (Remembering, "keeps a state"), (Asking, "asks for the type")],
)
def test_what_is_no_function_is_refused(part, match, method):
    model = nn.Sequential()
    model.add_module("first", nn.Linear(3, 4))
    model.add_module("noise", part())
    model.add_module("last", nn.ReLU())
    with pytest.raises(ValueError, match=match):
        llr_fast.margin(model, X, method=method)


class Counted(nn.Module):
    """Its output is a small difference of large numbers."""

    def __init__(self, size):
        super().__init__()
        self.size, self.calls = size, 0

    def forward(self, x):
        self.calls += 1
        return (x.relu() + self.size * x) - self.size * x


@pytest.mark.parametrize("size, calls", [(1.0, 2), (1e5, 5)])
def test_the_comparison_costs_a_pass_of_the_plain_model_or_three_evaluations_more(size, calls):
    model = Counted(size)
    torch.testing.assert_close(llr_fast.margin(model, X[:1]).value, X[:1].abs().amin(1).double())
    assert model.calls == calls


class Standardised(nn.Linear):
    def forward(self, x):
        return F.linear(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


def test_constants_are_made_in_the_dtype_of_the_model():
    """With weights that are nearly equal, the float64 twin is another network."""
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 4), nn.ReLU())
    model[0].weight.data = 1 + 1e-6 * torch.randn(4, 3)
    twin = copy.deepcopy(model).double()
    weight = model[0].weight.detach()
    rounded = (((weight - weight.mean()) / weight.std()).double(), model[0].bias.detach().double())
    expected = (F.linear(X.double(), *rounded).abs() / rounded[0].norm(dim=1)).amin(1)
    torch.testing.assert_close(llr_fast.margin(model, X).value, expected, rtol=1e-12, atol=0)
    other = llr_fast.margin(twin, X).value
    assert ((other - expected).abs() > 0.01 * expected).all()


def test_gradients_beyond_float64_are_refused():
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2)), nn.ReLU()).double()
    for layer in model[:2]:
        nn.init.constant_(layer.weight, 1e200)
    with pytest.raises(ValueError, match="gradients within the range of float64"):
        llr_fast.margin(model, torch.full((1, 1), 1e-200, dtype=torch.float64))
