"""Certificates and losses by the Triton kernels, against plain torch on the CPU."""

import copy
import math
from functools import partial

import networks
import pytest
import torch
from ops import operator_cases as oc
from torch.nn.functional import cross_entropy

import llr_fast

pytestmark = pytest.mark.triton
# A chain of dense layers, convolutions with batch-norm, and a residual block.
NETWORKS = ["relu", "conv2d", "residual"]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def build(name, device):
    """A model and its input, in float64, on the CPU and on a device."""
    model, x = networks.build(name)
    return (model, x), (copy.deepcopy(model).to(device), x.to(device))


def step(loss, x):
    """Output, penalty and the gradients by the parameters, on the CPU."""
    output, penalty = loss(x)
    gradients = torch.autograd.grad(
        output.square().sum() + penalty, list(loss.parameters()), allow_unused=True, materialize_grads=True
    )
    return [t.detach().cpu() for t in (output, penalty, *gradients)]


def on_the_cpu(function):
    with llr_fast.backend("reference"):
        return function()


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_margin(name, p, method, by_triton):
    plain, ours = build(name, by_triton)
    expected = on_the_cpu(partial(llr_fast.margin, *plain, p=p, method=method))
    found = llr_fast.margin(*ours, p=p, method=method)
    assert found.value.device.type == by_triton
    for field in ("value", "layer", "offset", "gradient"):  # circular padding makes some neurons equal to others
        torch.testing.assert_close(getattr(found, field).cpu(), getattr(expected, field), **TOLERANCE)


@pytest.mark.parametrize("gamma", [100, 30])
@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_roll(name, estimator, gamma, by_triton, same_directions):
    results = []
    for run, (model, x) in zip((on_the_cpu, lambda step: step()), build(name, by_triton)):
        torch.manual_seed(0)
        loss = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma, samples=3)
        results.append(run(partial(step, loss, x)))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_against_float64_on_the_cpu(name, channels_last, by_triton):
    """A margin, which is computed in float64 from what float32 holds, and a step of ROLL, which is not."""
    _, (model, x) = build(name, by_triton)
    model, x = model.float(), x.float()
    wide = copy.deepcopy(model).double().cpu(), x.double().cpu()
    expected = on_the_cpu(
        lambda: (llr_fast.margin(*wide).value, step(llr_fast.ROLLLoss(wide[0], estimator="exact"), wide[1]))
    )
    if channels_last and x.dim() == 4:
        model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    found = llr_fast.margin(model, x).value.cpu(), step(llr_fast.ROLLLoss(model, estimator="exact"), x)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=0)
    oc.assert_close(found[1], expected[1], torch.float32)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_steps_are_equal_to_the_last_bit(estimator, by_triton):
    _, (model, x) = build("relu", by_triton)
    loss = llr_fast.ROLLLoss(model.float(), estimator=estimator)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(step(loss, x.float()))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_compiled_around_the_loss(by_triton):
    _, (model, x) = build("relu", by_triton)
    loss, y = llr_fast.ROLLLoss(model, estimator="exact"), torch.zeros(len(x), dtype=torch.long, device=by_triton)

    def call(x):
        output, penalty = loss(2 * x)
        return cross_entropy(output, y) + penalty

    compiled = torch.compile(call, backend="inductor" if by_triton == "cuda" else "aot_eager")
    results = []
    for function in (call, compiled):
        value = function(x)
        results.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
@pytest.mark.parametrize("name", ["relu", "residual"])
def test_autocast(name, estimator, by_triton):
    _, (model, x) = build(name, by_triton)
    loss, x = llr_fast.ROLLLoss(model.float(), estimator=estimator, gamma=100), x.float()
    penalties = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast(by_triton, torch.bfloat16, enabled=enabled):
            output, penalty = loss(x)
        penalty.backward()
        penalties.append(penalty.detach())
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32) and penalty.dtype == torch.float32
    torch.testing.assert_close(*penalties, rtol=0.05, atol=0)
