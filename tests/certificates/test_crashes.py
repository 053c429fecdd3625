"""Inputs on which the library raised an error of its own: each has an answer, and the right one."""

import math

import compare
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast

DTYPE = torch.float64


def convolutional():
    parts = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.ReLU()
    return nn.Sequential(*parts)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def dense():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU())


def trains(model, x):
    for options in ({}, {"gamma": 30}):
        for estimator in ("exact", "axis", "rademacher", "auto"):
            model.zero_grad()
            llr_fast.ROLLLoss(model, estimator=estimator, samples=2, **options)(x)[1].backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("frozen", [[0], [0, 2], [2], [5], [0, 2, 5]])
def test_frozen_layers_of_convolutions(frozen):
    torch.manual_seed(0)
    model, x = convolutional().double(), images(2, 1, 6, 6).double()
    for index in frozen:
        model[index].requires_grad_(False)
    compare.margins_are_right(model, x)
    if len(frozen) < 3:
        compare.roll_is_right(model, x[:1])
        trains(model, x)
    else:
        for estimator in ("exact", "rademacher"):
            assert llr_fast.ROLLLoss(model, estimator=estimator)(x)[1].isfinite()


@pytest.mark.parametrize("frozen", [[0], [0, 2], [2], [0, 4]])
def test_frozen_layers_of_a_chain(frozen):
    torch.manual_seed(0)
    model, x = dense().double(), images(3, 6).double()
    for index in frozen:
        model[index].requires_grad_(False)
    compare.roll_is_right(model, x)
    compare.margin_loss_is_right(model, x)
    trains(model, x)


FIRST = {
    "clamp": lambda x: x.clamp(0.2, 0.8),
    "clamp_by_tensors": lambda x: torch.maximum(x, torch.full((), 0.3, dtype=x.dtype)),
    "abs": lambda x: (x - 0.5).abs(),
    "max_pool": lambda x: F.max_pool2d(x, 2, 1),
    "hardtanh": lambda x: F.hardtanh(2 * x - 1),
    "relu": lambda x: (x - 0.5).relu(),
    "window_of_one": lambda x: F.max_pool2d(x, 1),
    "one_entry_for_each_window": lambda x: F.adaptive_max_pool2d(x, 6),
}


class After(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first, self.rest = first, nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))

    def forward(self, x):
        return self.rest(self.first(x))


@pytest.mark.parametrize("name", FIRST)
def test_a_piecewise_function_of_the_input_itself(name):
    torch.manual_seed(0)
    model, x = After(FIRST[name]), images(2, 1, 6, 6)
    model(x)
    model, x = model.double(), x.double()
    compare.margins_are_right(model, x)
    compare.margin_loss_is_right(model, x[:1])
    compare.roll_is_right(model, x[:1], gammas=(30,))
    trains(model, x)
    for call in (llr_fast.directional_margin, llr_fast.regions_along):
        call(model, x, x.flip(0))


class SometimesSkips(nn.Module):
    """A chain of dense layers in some steps only."""

    def __init__(self, steps):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(40, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.steps = list(steps)

    def forward(self, x):
        h = self.first(x).relu()
        branch = self.middle(h).relu()
        return self.last({"chain": branch, "sum": h + branch, "skip": h}[self.steps.pop(0)]).relu()


@pytest.mark.parametrize("gamma", [100, 30])
@pytest.mark.parametrize("estimator", ["exact", "auto"])
def test_stochastic_depth_of_every_step(estimator, gamma):
    torch.manual_seed(0)
    steps = ["chain", "sum", "skip", "sum", "chain", "skip", "chain"]
    model, x = SometimesSkips(steps).double(), torch.randn(2, 40, dtype=DTYPE)
    loss = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma)
    for step in steps:
        model.zero_grad()
        penalty = loss(x)[1]
        penalty.backward()
        model.steps[:0] = [step] * len(x)
        wanted = compare.oracle.roll_penalty(model, x, gamma=gamma)
        if estimator == "exact":
            compare.close(penalty.detach(), wanted.detach())


class Padded(nn.Module):
    def __init__(self, pad, kernel):
        super().__init__()
        self.conv, self.pad, self.kernel = nn.Conv2d(1, 2, 3), pad, kernel

    def forward(self, x):
        return F.max_pool2d(F.pad(self.conv(x).relu(), self.pad, value=-math.inf), self.kernel, 2)


@pytest.mark.parametrize("pad", [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 2), (3, 3, 0, 0)])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_of_minus_infinity(pad, kernel):
    torch.manual_seed(0)
    model, x = Padded(pad, kernel).double(), images(2, 1, 6, 6).double()
    compare.margins_are_right(model, x)
    trains(model, x)


class Follows(nn.Module):
    """Constants of the model that follow the input in dtype or device, some of which it keeps."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.make, self.kept = nn.Linear(4, 4), make, None

    def forward(self, x):
        self.kept = self.make(torch.linspace(0, 1, 4), x)
        return (self.layer(x) + self.layer(self.kept)).relu()


FOLLOWS = {
    "to": lambda c, x: c.to(x),
    "to_dtype": lambda c, x: c.to(x.dtype),
    "to_device": lambda c, x: c.to(x.device, x.dtype),
    "type_as": lambda c, x: c.type_as(x),
    "new_tensor": lambda c, x: x.new_tensor([0.1, 0.2, 0.3, 0.4]),
    "new_ones": lambda c, x: x.new_ones(4) * c.type_as(x),
    "zeros_like": lambda c, x: torch.zeros_like(x) + c.to(x),
    "full_like": lambda c, x: torch.full_like(x, 0.3),
}


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("name", FOLLOWS)
def test_constants_that_follow_the_input_and_are_kept(name, dtype):
    torch.manual_seed(0)
    model, x = Follows(FOLLOWS[name]).to(dtype), torch.randn(3, 4).to(dtype)
    wanted = llr_fast.margin(model, x).value
    assert type(model.kept) is torch.Tensor and model.kept.dtype == dtype
    compare.margins_are_right(model, x, rtol=1e-9 if dtype == DTYPE else 1e-4)
    llr_fast.ROLLLoss(model)(x)[1].backward()
    assert torch.equal(llr_fast.margin(model, x).value, wanted)


CERTIFICATES = {
    "margin": lambda model, x: llr_fast.margin(model, x).value,
    "search": lambda model, x: llr_fast.margin(model, x, method="search").value,
    "norms": lambda model, x: torch.cat([neurons.norm for neurons in llr_fast.gradient_norms(model, x)], 1),
    "pattern": llr_fast.activation_pattern,
    "density": lambda model, x: llr_fast.region_density(model, x, 0.2),
    "directional": lambda model, x: llr_fast.directional_margin(model, x, x.flip(0)),
    "segment": lambda model, x: llr_fast.regions_along(model, x[:1], x[1:2])[0].t,
}


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("name", CERTIFICATES)
def test_models_and_inputs_made_in_inference_mode(name, make):
    torch.manual_seed(0)
    model, x = make(), images(3, 6) if make is dense else images(3, 1, 6, 6)
    wanted = CERTIFICATES[name](model, x)
    with torch.inference_mode():
        made = make()
        made.load_state_dict(model.state_dict())
        other = x.clone()
    torch.testing.assert_close(CERTIFICATES[name](made.eval(), other), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CERTIFICATES)
def test_inside_compiled_functions(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = dense().eval(), images(3, 6)
    wanted = CERTIFICATES[name](model, x)
    call = torch.compile(lambda x: 2 * CERTIFICATES[name](model, x + 0.0), backend="eager")
    for _ in range(2):
        torch.testing.assert_close(call(x), 2 * wanted, rtol=1e-9, atol=0)


def test_counts_and_reports_inside_compiled_functions():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x, y = dense().eval(), images(8, 6), torch.arange(8) % 3
    for call in (
        lambda x: llr_fast.count_linear_regions(model, [x], progress=False),
        lambda x: llr_fast.evaluate(model, [(x, y)], progress=False).regions,
        lambda x: llr_fast.gradient_distortion(model, x, y, 0.0, samples=2, population=4, progress=False).expected,
    ):
        wanted = call(x)
        found = torch.compile(call, backend="eager")(x)
        assert torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted


def as_a_context():
    return torch.device("meta")


class AsTheDefault:
    def __enter__(self):
        torch.set_default_device("meta")

    def __exit__(self, *exception):
        torch.set_default_device(None)


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("default", [as_a_context, AsTheDefault])
def test_another_default_device(default, make):
    """Nothing is made there: the model and its input are elsewhere."""
    torch.manual_seed(0)
    model, x = make(), torch.rand(3, 6) if make is dense else torch.rand(3, 1, 6, 6)
    wanted = {name: call(model, x) for name, call in CERTIFICATES.items()}
    penalties = [llr_fast.ROLLLoss(model, estimator="exact")(x)[1], llr_fast.MarginLoss(model)(x)[1]]
    with default():
        for name, expected in wanted.items():
            found = CERTIFICATES[name](model, x)
            assert found.device.type == "cpu"
            assert (found - expected).abs().max().item() <= 1e-9 * expected.abs().max().item()
        for loss, penalty in zip((llr_fast.ROLLLoss(model, estimator="exact"), llr_fast.MarginLoss(model)), penalties):
            again = loss(x)[1]
            again.backward()
            assert abs(again.item() - penalty.item()) < 1e-6 * abs(penalty.item())
        for options in ({"estimator": "rademacher"}, {"estimator": "axis", "gamma": 30}):
            llr_fast.ROLLLoss(model, **options)(x)[1].backward()
