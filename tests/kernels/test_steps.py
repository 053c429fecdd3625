"""Training steps on a GPU: nothing waits for it, the compiler's graphs replay, and half precision trains."""

import copy

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch.nn.functional import cross_entropy

import llr_fast

pytestmark = [pytest.mark.triton, pytest.mark.gpu]


@pytest.fixture(autouse=True)
def fresh(gpu):
    torch._dynamo.reset()
    yield
    torch.cuda.set_sync_debug_mode("default")


def build():
    """Batch-norm in training mode, overlapping windows, a PReLU for each channel; a batch and its labels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 6, 3)),
        *(nn.PReLU(6), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 9), nn.ReLU6(), nn.Linear(9, 4)),
    )
    return model.cuda(), torch.randn(8, 3, 12, 12, device="cuda"), torch.arange(8).cuda() % 4


def step_of(loss):
    def step(x, y):
        output, penalty = loss(x)
        return cross_entropy(output, y) + penalty

    return step


def results(step, loss, x, y):
    torch.manual_seed(1)
    loss.zero_grad()
    value = step(x, y)
    value.backward()
    return [value.detach().clone(), *(p.grad.clone() for p in loss.parameters())]


@pytest.mark.parametrize("estimator, gamma", [("rademacher", 100), ("rademacher", 30), ("axis", 100)])
def test_a_sampled_step_never_waits(estimator, gamma):
    model, x, y = build()
    loss = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for warm in (True, False):  # what the first step makes is kept
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        optimizer.zero_grad()
        step_of(loss)(x, y).backward()
        optimizer.step()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("estimator, gamma", [("rademacher", 100), ("exact", 100), ("exact", 30)])
def test_a_compiled_step(estimator, gamma, mode):
    model, x, y = build()
    loss = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma)
    with config.patch(fallback_random=True):  # so that both draw the same directions
        compiled = torch.compile(step_of(loss), mode=mode, fullgraph=True)
        for _ in range(4):  # the second run is recorded, later ones replay it
            x = torch.randn_like(x)
            expected = results(step_of(loss), loss, x, y)
            found = results(compiled, loss, x, y)
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sampled_step_against_float64_on_the_cpu(channels_last, same_directions):
    model, x, y = build()
    wide = copy.deepcopy(model).double().cpu()
    loss = llr_fast.ROLLLoss(wide, estimator="rademacher")
    expected = results(step_of(loss), loss, x.double().cpu(), y.cpu())
    if channels_last:
        model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    found = results(step_of(loss), loss, x, y)
    for ours, wanted in zip(found, expected, strict=True):
        scale = wanted.abs().amax().item()  # of what float32 adds up, whose rounding small gradients share
        torch.testing.assert_close(ours.cpu().double(), wanted, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_in_half_precision(dtype):
    model, x, y = build()
    loss, scaler = llr_fast.ROLLLoss(model, estimator="rademacher", lam=0.1), torch.amp.GradScaler("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            value = step_of(loss)(x, y)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(value.item())
    assert values[-1] < values[0]
