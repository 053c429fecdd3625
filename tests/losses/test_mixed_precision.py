"""Autocast and models in bfloat16: gradients mostly as good as those of plain PyTorch in the same precision.

Not always: where rounding puts a neuron on the other side of its kink, either of the two can be far off alone. So
medians over many networks are compared.
"""

import copy

import oracle
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.losses.totals import Summing

SEEDS = 15


def dense():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.LeakyReLU(0.1), nn.Linear(20, 3))
    return model, torch.randn(6, 20)


def convolutional():
    body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.PReLU()
    head = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)
    return nn.Sequential(*body, *head).eval(), torch.randn(6, 1, 4, 4)


def results(penalty, model):
    found = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return [penalty.detach().double(), *(g.double() for g in found)]


@pytest.fixture(params=[dense, convolutional])
def case(request):
    torch.manual_seed(0)
    return request.param()


def networks(make, dtype):
    """Models with their inputs, and the same in float64."""
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model, x = make()
        model, x = model.to(dtype), x[:2].to(dtype)
        yield model, x, copy.deepcopy(model).double(), x.double()


def errors(found, exact):
    """Of penalty and gradient, relative."""
    pairs = [(found[0], exact[0]), (torch.cat([g.flatten() for g in r[1:]]) for r in (found, exact))]
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs])


def compare(ours, plain):
    """The errors of many networks, [SEEDS, 2]."""
    assert ours[:, 0].max() <= 2**-8
    assert ours[:, 1].median() <= plain[:, 1].median() <= 0.02


@pytest.mark.parametrize(
    "make, ways",
    [
        (dense, [("chain", "auto"), ("chain", "reference"), ("axes", "auto")]),
        (convolutional, [("axes", "auto"), ("axes", "reference")]),
    ],
)
def test_autocast(make, ways, monkeypatch):
    ours, plain = {way: [] for way in ways}, []
    for model, x, exact_model, exact_x in networks(make, torch.float32):
        exact = results(oracle.roll_penalty(exact_model, exact_x), exact_model)
        with torch.autocast("cpu", torch.bfloat16):
            plain.append(errors(results(oracle.roll_penalty(model, x), model), exact))
        for (by, backend), found in ours.items():
            with torch.autocast("cpu", torch.bfloat16), llr_fast.backend(backend), monkeypatch.context() as patch:
                if by == "axes":
                    patch.setattr(llr_fast.losses.estimators.TrainingStep, "chain", None)
                output, penalty = llr_fast.ROLLLoss(model, estimator="exact")(x)
            assert (output.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
            found.append(errors(results(penalty, model), exact))
    for found in ours.values():
        compare(torch.stack(found), torch.stack(plain))


def test_tangents_are_low_and_statistics_single(case, monkeypatch):
    model, x = case
    seen = []

    def noting(method):
        def collect(summing, *arguments):
            found = method(summing, *arguments)
            seen.append((arguments[-1].dtype, found[-1].sums.dtype))
            return found

        return collect

    for name in ("ramp", "__call__"):
        monkeypatch.setattr(Summing, name, noting(getattr(Summing, name)))
    with torch.autocast("cpu", torch.bfloat16):
        llr_fast.ROLLLoss(model, estimator="rademacher")(x)
    assert {measured for _, measured in seen} == {torch.float32}
    assert {tangents for tangents, _ in seen[1:]} == {torch.bfloat16}


@pytest.mark.parametrize("gamma", [100, 40])
def test_model_in_bfloat16(gamma):
    ours, plain = [], []
    for model, x, exact_model, exact_x in networks(dense, torch.bfloat16):
        exact = results(oracle.roll_penalty(exact_model, exact_x, gamma=gamma), exact_model)
        plain.append(errors(results(oracle.roll_penalty(model, x, gamma=gamma), model), exact))
        output, penalty = llr_fast.ROLLLoss(model, estimator="exact", gamma=gamma)(x)
        assert (output.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
        ours.append(errors(results(penalty, model), exact))
    compare(torch.stack(ours), torch.stack(plain))


def test_margin_loss_in_autocast(case):
    model, x = case
    expected = llr_fast.MarginLoss(model)(x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        output, penalty = llr_fast.MarginLoss(model)(x)
    assert (output.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(penalty, expected, rtol=0.5, atol=1e-3)
    penalty.backward()


def test_certificates_do_not_follow_autocast(case):
    model, x = case
    expected = llr_fast.margin(model, x).value
    with torch.autocast("cpu", torch.bfloat16):
        found = llr_fast.margin(model, x).value
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_certificates_in_low_precision_are_refused(case):
    model, x = case
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"dtype: expected one of torch\.float32, torch\.float64, got torch"):
            llr_fast.margin(model, x, dtype=dtype)
    assert llr_fast.margin(model, x, dtype=torch.float32).value.dtype == torch.float32
