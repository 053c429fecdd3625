"""Lazy regularisation: the penalty in every k-th training step, k times."""

import copy

import networks
import pytest
import torch
from torch import nn

import llr_fast

ESTIMATORS = ["exact", "rademacher", "axis", "auto"]


def build(**options):
    model, x = networks.build("conv2d")
    return llr_fast.ROLLLoss(model.train(), generator=torch.Generator().manual_seed(0), **options), x


def penalties(loss, x, steps):
    return [loss(x)[1].item() for _ in range(steps)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gamma", [100, 20])
def test_every_third_step_has_three_penalties(estimator, gamma):
    loss, x = build(every=3, estimator=estimator, gamma=gamma)
    always, _ = build(estimator=estimator, gamma=gamma)
    first, second = penalties(always, x, 2)
    assert penalties(loss, x, 5) == pytest.approx([3 * first, 0, 0, 3 * second, 0], rel=1e-12)
    assert loss.steps == 5


def test_other_steps_run_the_plain_model():
    loss, x = build(every=2)
    loss(x)
    seen = []
    loss.model.register_forward_pre_hook(lambda _, args: seen.append(type(args[0])))
    output, penalty = loss(x)
    assert seen == [torch.Tensor] and torch.equal(output, loss.model(x))
    gradients = torch.autograd.grad(output.sum() + penalty, list(loss.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_penalties_of_both_kinds_of_steps_have_one_dtype(dtype):
    loss = llr_fast.ROLLLoss(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(dtype), every=2, estimator="rademacher")
    first, second = loss(torch.randn(2, 3, dtype=dtype))[1], loss(torch.randn(2, 3, dtype=dtype))[1]
    assert (first.dtype, first.shape) == (second.dtype, second.shape)


def test_batch_statistics_are_updated_once_in_every_step():
    found = []
    for every in (1, 2):
        model, x = networks.build("residual")
        loss = llr_fast.ROLLLoss(model.train(), every=every, estimator="rademacher")
        for _ in range(3):
            loss(x)
        found.append(dict(model.named_buffers()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("how", ["evaluation", "no_grad"])
def test_outside_of_training_every_call_has_one_penalty(how):
    loss, x = build(every=4, estimator="exact")
    loss.train(how != "evaluation")
    expected = build(estimator="exact")[0].train(loss.training)(x)[1].item()
    with torch.set_grad_enabled(how != "no_grad"):
        assert penalties(loss, x, 3) == pytest.approx([expected] * 3)
    assert loss.steps == 0


def test_a_resumed_run_and_a_copy_go_on():
    loss, x = build(every=3, estimator="exact")
    expected = penalties(loss, x, 4)
    resumed, _ = build(every=3, estimator="exact")
    resumed.steps = loss.steps
    expected = penalties(copy.deepcopy(loss), x, 4)
    assert penalties(resumed, x, 4) == expected and penalties(loss, x, 4) == expected
    assert [penalty > 0 for penalty in expected] == [False, False, True, False]


def test_it_follows_a_schedule():
    loss, x = build(every=1, estimator="exact")
    assert penalties(loss, x, 2)[1] > 0
    loss.every = 4
    assert [penalty > 0 for penalty in penalties(loss, x, 4)] == [False, False, True, False]


def test_two_micro_batches_are_a_batch_on_the_average():
    """Of two micro-batches the first has the penalty, twice: over an epoch all samples have as much of it."""
    loss, x = build(every=2, estimator="exact")
    whole = llr_fast.ROLLLoss(loss.model, estimator="exact")
    first, second = x[:1], x[1:2]
    halves = [loss(part)[1] / 2 for part in (first, second)]
    assert sum(halves).item() == pytest.approx(whole(first)[1].item())


def test_a_step_that_raises_does_not_count():
    loss, x = build(every=2)
    with pytest.raises(ValueError):
        loss(x[:, :, :1])
    assert loss.steps == 0


@pytest.mark.parametrize("every", [0, -1])
def test_no_such_step(every):
    with pytest.raises(ValueError, match=f"every: expected at least 1, got {every}"):
        llr_fast.ROLLLoss(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), every=every)


def test_only_whole_steps():
    with pytest.raises(TypeError, match="every: expected an integer, got"):
        llr_fast.ROLLLoss(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), every=1.5)
