"""Autocast and models in bfloat16: no more than twice the error of plain PyTorch in the same precision."""

import copy

import oracle
import pytest
import torch
from torch import nn

import llr_fast

ROUNDING = 2**-8  # of bfloat16


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
    """model, x, and the penalty with its gradients in float64"""
    torch.manual_seed(0)
    model, x = request.param()
    exact = copy.deepcopy(model).double()
    return model, x, results(oracle.roll_penalty(exact, x.double()), exact)


def check(found, plain, exact):
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 0.1 * ROUNDING * truth.norm()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("by", ["chain", "axes"])
def test_autocast(case, by, backend, monkeypatch):
    model, x, exact = case
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    if by == "axes":
        monkeypatch.setattr(llr_fast.estimators.Step, "gram", None)
    with torch.autocast("cpu", torch.bfloat16), llr_fast.backend(backend):
        output, penalty = loss(x)
        assert output.dtype == model(x).dtype == torch.bfloat16
        plain = oracle.roll_penalty(model, x)
    assert penalty.dtype == torch.float32
    check(results(penalty, model), results(plain, model), exact)


def test_tangents_are_low_and_statistics_single(case, monkeypatch):
    model, x, _ = case
    seen = []
    evaluate = llr_fast.estimators.Brackets.collect

    def collect(self, function, x, kinks, piece, measured):
        seen.append((x.linearization.dtype, measured.dtype))
        return evaluate(self, function, x, kinks, piece, measured)

    monkeypatch.setattr(llr_fast.estimators.Brackets, "collect", collect)
    with torch.autocast("cpu", torch.bfloat16):
        llr_fast.ROLLLoss(model, estimator="rademacher")(x)
    assert {measured for _, measured in seen} == {torch.float32}
    assert {tangents for tangents, _ in seen[1:]} == {torch.bfloat16}


@pytest.mark.parametrize("gamma", [100, 40])
def test_model_in_bfloat16(gamma):
    torch.manual_seed(0)
    model, x = dense()
    model, x = model.bfloat16(), x.bfloat16()
    exact = copy.deepcopy(model).double()
    truth = results(oracle.roll_penalty(exact, x.double(), gamma=gamma), exact)
    plain = results(oracle.roll_penalty(model, x, gamma=gamma), model)
    output, penalty = llr_fast.ROLLLoss(model, estimator="exact", gamma=gamma)(x)
    assert (output.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    check(results(penalty, model), plain, truth)


def test_margin_loss_in_autocast(case):
    model, x, _ = case
    expected = llr_fast.MarginLoss(model)(x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        output, penalty = llr_fast.MarginLoss(model)(x)
    assert (output.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(penalty, expected, rtol=0.5, atol=1e-3)
    penalty.backward()


def test_certificates_do_not_follow_autocast(case):
    model, x, _ = case
    expected = llr_fast.margin(model, x).value
    with torch.autocast("cpu", torch.bfloat16):
        found = llr_fast.margin(model, x).value
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_certificates_in_low_precision_are_refused(case):
    model, x, _ = case
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"dtype: expected one of torch\.float32, torch\.float64, got torch"):
            llr_fast.margin(model, x, dtype=dtype)
    assert llr_fast.margin(model, x, dtype=torch.float32).value.dtype == torch.float32
