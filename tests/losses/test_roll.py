import copy
import itertools
import math

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast
from llr_fast.losses import estimators

DTYPE = torch.float64
LOSS_NETWORKS = [
    "relu",
    "prelu",
    "prelu_each_channel",
    "leaky_relu",
    "hardtanh",
    "abs",
    "maximum",
    "reused",
    "concatenating",
    "weight_norm",
    "conv1d",
    "conv3d",
    "residual",
    "recurrent_batch_first",
    "recurrent_projected_first",
    "time_distributed",
    "frames",
    "max_pool1d_padded",
    "max_pool2d_of_relu",
]


def gradients(penalty, model):
    parameters = list(model.parameters())
    return torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)


def same(got, expected, rtol=1e-8, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("gamma", [100, 50, 10, 0])
@pytest.mark.parametrize("name", LOSS_NETWORKS)
def test_roll_equals_oracle(name, gamma):
    model, x = networks.build(name)
    output, penalty = llr_fast.ROLLLoss(model, lam=0.7, C=1.3, gamma=gamma, estimator="exact")(x)
    expected = oracle.roll_penalty(model, x, lam=0.7, C=1.3, gamma=gamma)
    assert penalty.shape == ()
    same(penalty, expected)
    same(output, model(x))
    for got, wanted in zip(gradients(penalty, model), gradients(expected, model)):
        same(got, wanted)


@pytest.mark.parametrize("name", LOSS_NETWORKS)
def test_margin_loss_equals_oracle(name):
    model, x = networks.build(name)
    output, penalty = llr_fast.MarginLoss(model, lam=0.7)(x)
    expected = oracle.margin_penalty(model, x, lam=0.7)
    same(penalty, expected)
    same(output, model(x))
    for got, wanted in zip(gradients(penalty, model), gradients(expected, model)):
        same(got, wanted)


def penalty_of(loss, key, x):
    return lambda parameter: torch.func.functional_call(loss, {key: parameter}, (x,))[1]


@pytest.mark.parametrize("gamma", [100, 30, 0])
@pytest.mark.parametrize("name", ["relu", "prelu", "conv1d"])
def test_gradcheck(name, gamma):
    model, x = networks.build(name)
    wrapped = llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")
    for key, parameter in wrapped.named_parameters():
        if key.endswith(("0.weight", "0.bias", "1.weight")):
            assert torch.autograd.gradcheck(penalty_of(wrapped, key, x), parameter.detach().clone().requires_grad_())


def test_gradcheck_of_margin_loss():
    model, x = networks.build("relu")
    wrapped = llr_fast.MarginLoss(model)
    key, weight = next(iter(wrapped.named_parameters()))
    weight = weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty_of(wrapped, key, x), weight)


@pytest.mark.parametrize("estimator", ["axis", "rademacher"])
@pytest.mark.parametrize("name", ["relu", "conv1d", "recurrent_time_first", "max_pool2d_of_relu"])
def test_estimators_are_unbiased(name, estimator):
    """Penalty and its gradient (along two random directions in parameter space) within four standard errors."""
    model, x = networks.build(name)
    generator = torch.Generator().manual_seed(1)
    loss = llr_fast.ROLLLoss(model, C=0.5, estimator=estimator, samples=2, generator=generator)
    probes = [[torch.randn(p.shape, generator=generator, dtype=DTYPE) for p in model.parameters()] for _ in range(2)]

    def statistics(penalty):
        grads = gradients(penalty, model)
        return torch.stack([penalty.detach()] + [sum((g * v).sum() for g, v in zip(grads, probe)) for probe in probes])

    draws = torch.stack([statistics(loss(x)[1]) for _ in range(200)])
    error = draws.mean(0) - statistics(oracle.roll_penalty(model, x, C=0.5))
    deviation = draws.std(0)
    assert (deviation > 0).all()
    assert (error.abs() <= 4 * deviation / math.sqrt(len(draws))).all(), error / (deviation / math.sqrt(len(draws)))


@pytest.mark.parametrize("name", ["relu", "conv1d", "recurrent_time_first"])
def test_more_samples_spread_less(name):
    model, x = networks.build(name)

    def spread(samples):
        generator = torch.Generator().manual_seed(0)
        loss = llr_fast.ROLLLoss(model, C=0.0, estimator="rademacher", samples=samples, generator=generator)
        with torch.no_grad():
            return torch.stack([loss(x)[1] for _ in range(100)]).std().item()

    assert 2.5 < spread(1) / spread(16) < 6.5  # 4, up to the noise of a standard deviation from 100 draws


def test_one_axis_of_one_is_exact():
    model, x = networks.build("one_input")
    for estimator in ("axis", "rademacher"):
        penalty = llr_fast.ROLLLoss(model, estimator=estimator)(x)[1]
        same(penalty, oracle.roll_penalty(model, x))


@pytest.mark.parametrize("estimator", ["axis", "rademacher", "auto"])
@pytest.mark.parametrize("gamma", [100, 25, 0])
def test_every_estimator_trains(estimator, gamma):
    model, x = networks.build("residual")
    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator=estimator, samples=3)
    output, penalty = loss(x)
    same(output, model(x))
    assert penalty.isfinite() and penalty > 0
    (F.cross_entropy(output, torch.tensor([0, 1, 0])) + penalty).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("gamma", [50, 0])
def test_many_directions_approach_the_exact_top(gamma):
    model, x = networks.build("relu")
    generator = torch.Generator().manual_seed(0)
    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator="rademacher", samples=3000, generator=generator)
    with torch.no_grad():
        penalty = loss(x)[1]
    same(penalty, oracle.roll_penalty(model, x, gamma=gamma).detach(), rtol=0.1)


def test_top_percent_is_rounded_up_to_one_neuron():
    """15 neurons: 1% is one neuron, as is gamma = 0; 7% is two"""
    model, x = networks.build("relu")

    def penalty(gamma):
        return llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")(x)[1]

    assert torch.equal(penalty(0), penalty(1)) and torch.equal(penalty(1), penalty(6.6))
    same(penalty(7), oracle.roll_penalty(model, x, gamma=7))
    assert penalty(7) < penalty(1)


@pytest.mark.parametrize("name", ["relu", "conv1d", "recurrent_time_first"])
@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
def test_without_grad_mode_the_value_is_the_same(name, make):
    model, x = networks.build(name)
    options = {"estimator": "exact"} if make is llr_fast.ROLLLoss else {}
    loss = make(model, **options)
    with torch.no_grad():
        output, penalty = loss(x)
    assert not penalty.requires_grad and not output.requires_grad
    same(penalty, loss(x)[1].detach())


def test_lam_scales_and_zero_switches_off():
    model, x = networks.build("relu")
    one = llr_fast.ROLLLoss(model, lam=1.0, estimator="exact")(x)[1]
    same(llr_fast.ROLLLoss(model, lam=3.0, estimator="exact")(x)[1], 3 * one)
    off = llr_fast.ROLLLoss(model, lam=0.0, estimator="exact")(x)[1]
    assert off == 0
    same(llr_fast.MarginLoss(model, lam=3.0)(x)[1], 3 * llr_fast.MarginLoss(model)(x)[1])


def test_samples_with_an_infinite_margin_contribute_nothing():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU()).double()
    model[0].weight.data.zero_()
    _, penalty = llr_fast.MarginLoss(model)(torch.randn(4, 1, dtype=DTYPE))
    assert penalty == 0
    penalty.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("make", [lambda m: llr_fast.ROLLLoss(m, estimator="exact"), llr_fast.MarginLoss])
def test_wraps_the_model_itself(make):
    """Parameters, state, mode and gradients are those of the wrapped model; nothing else is learnt or saved."""
    model, x = networks.build("residual")
    loss = make(model)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in model.parameters()}
    assert len(loss.state_dict()) == len(model.state_dict())
    loss.train()
    assert model.training
    loss.eval()
    assert not model.training
    before = copy.deepcopy(model.state_dict())
    output, penalty = loss(x)
    (output.sum() + penalty).backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(output) is torch.Tensor and type(penalty) is torch.Tensor
    restored = make(networks.build("residual", seed=1)[0])
    restored.load_state_dict(loss.state_dict())
    same(restored(x)[1], penalty)


def test_two_losses_before_one_backward():
    model, x = networks.build("conv1d")
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    (loss(x)[1] + loss(x[:1])[1]).backward()
    expected = gradients(oracle.roll_penalty(model, x) + oracle.roll_penalty(model, x[:1]), model)
    for parameter, wanted in zip(model.parameters(), expected):
        same(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, wanted)


def test_frozen_parameters_receive_nothing():
    model, x = networks.build("relu")
    model[0].requires_grad_(False)
    llr_fast.ROLLLoss(model, estimator="exact")(x)[1].backward()
    assert model[0].weight.grad is None
    same(model[2].weight.grad, gradients(oracle.roll_penalty(model, x), model[2])[0])


def test_a_few_steps_widen_the_margin():
    model, x = networks.build("relu", batch=16)
    loss = llr_fast.ROLLLoss(model, lam=1.0, estimator="exact")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = llr_fast.margin(model, x).value.median()
    for _ in range(100):
        optimizer.zero_grad()
        loss(x)[1].backward()
        optimizer.step()
    assert llr_fast.margin(model, x).value.median() > 2 * before


def test_float32():
    model, x = networks.build("residual")
    expected = oracle.roll_penalty(model, x).float()
    output, penalty = llr_fast.ROLLLoss(model.float(), estimator="exact")(x.float())
    assert output.dtype == penalty.dtype == torch.float32
    same(penalty, expected, rtol=1e-4)


def test_global_random_state_is_used_when_there_is_no_generator():
    model, x = networks.build("conv1d")
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    torch.manual_seed(3)
    first = loss(x)[1]
    torch.manual_seed(3)
    assert torch.equal(first, loss(x)[1])


@pytest.mark.parametrize("name", ["conv1d", "max_pool2d_of_relu", "recurrent_time_first"])
@pytest.mark.parametrize("gamma", [100, 20])
def test_one_direction_at_a_time(monkeypatch, name, gamma):
    """The memory budget cuts the axes into chunks; penalty and gradients stay what they are."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    model, x = networks.build(name)
    penalty = llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")(x)[1]
    expected = oracle.roll_penalty(model, x, gamma=gamma)
    same(penalty, expected)
    for got, wanted in zip(gradients(penalty, model), gradients(expected, model)):
        same(got, wanted)


@pytest.mark.parametrize("estimator", ["exact", "auto", "rademacher", "axis"])
@pytest.mark.parametrize("gamma", [100, 20])
@pytest.mark.parametrize("name", ["relu", "conv1d"])
def test_a_step_runs_the_model_once(monkeypatch, estimator, gamma, name):
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    model, x = networks.build(name)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator=estimator)
    for steps in (1, 2):
        loss(x)[1].backward()
        assert len(calls) == steps


def test_local_modes_reach_the_tangents():
    """Where the model switches autocast or gradients off, they are off for the tangents of that part too."""

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(40, 30), nn.Linear(30, 20), nn.Linear(20, 2)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                x = self.first(x).relu()
            with torch.no_grad():
                x = self.second(x).relu()
            return self.third(x).relu()

    model, x = Local(), torch.randn(3, 40)
    found = []
    for gamma in (100, 99.999):  # along directions at once, and from a tape
        loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator="rademacher", generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            penalty = loss(x)[1]
        assert torch.autograd.grad(penalty, model.second.weight, retain_graph=True, allow_unused=True) == (None,)
        found.append((penalty.detach(), *torch.autograd.grad(penalty, [model.first.weight, model.third.weight])))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
@pytest.mark.parametrize("gamma", [100, 20])
def test_batch_statistics_are_updated_once(estimator, gamma):
    """In training mode, one forward of the loss counts as one forward of the model."""
    model, x = networks.build("residual")
    once = copy.deepcopy(model).train()
    output = once(x)
    loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator=estimator).train()
    found, penalty = loss(x)
    same(found, output)
    penalty.backward()
    for (key, value), expected in zip(model.named_buffers(), once.buffers()):
        torch.testing.assert_close(value, expected, msg=key)


@pytest.mark.parametrize("budget", [1, 2**29])
def test_dropout_is_drawn_once(monkeypatch, budget):
    """Hinge, norms and output are those of one network, not of several draws of it."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", budget)
    torch.manual_seed(0)
    drop = nn.Dropout(0.5)
    model = nn.Sequential(drop, nn.Linear(4, 6), nn.ReLU()).double()
    model[1].weight.data.copy_(torch.eye(6, 4))
    model[1].bias.data.fill_(100.0)
    x = torch.ones(8, 4, dtype=DTYPE)
    output, penalty = llr_fast.ROLLLoss(model, C=0.0, estimator="exact").train()(x)
    kept = (output[:, :4] - 100) / x  # 0 or 2: the neuron's gradient with respect to its own input
    same(penalty, kept.square().sum() / output.numel())


def test_margin_loss_of_tiny_gradients():
    model, x = networks.build("relu")
    scaled = nn.Sequential(networks.Apply(lambda x: x * 1e-15), model)
    penalty = llr_fast.MarginLoss(scaled)(x * 1e15)[1]
    same(penalty * 1e-15, oracle.margin_penalty(model, x))


def test_margin_loss_refuses_second_derivatives():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    penalty = llr_fast.MarginLoss(model)(torch.randn(2, 3))[1]
    with pytest.raises(NotImplementedError, match="MarginLoss: create_graph=True is not supported"):
        torch.autograd.grad(penalty, model[0].weight, create_graph=True)


def test_bounds_of_no_axes_are_numbers():
    x = torch.randn(3, 4)
    numbers, tensors = (
        llr_fast.ROLLLoss(nn.Sequential(nn.Linear(4, 6), networks.Apply(function)), estimator="exact")
        for function in (lambda z: z.clamp(-0.3, 0.4), lambda z: z.clamp(torch.tensor(-0.3), torch.tensor(0.4)))
    )
    tensors.load_state_dict(numbers.state_dict())
    torch.testing.assert_close(numbers(x)[1], tensors(x)[1])


class TwoHeads(nn.Module):
    """Of 20 inputs: no chain, and the last layer depends on none but its own parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(20, 6), nn.Linear(20, 5)

    def forward(self, x):
        return torch.cat([self.first(x).relu(), self.second(x).relu()], 1)


@pytest.mark.parametrize("gamma", [100, 20])
def test_several_heads_by_one_direction_at_a_time(monkeypatch, gamma):
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    torch.manual_seed(0)
    model, x = TwoHeads().double(), torch.randn(3, 20, dtype=DTYPE)
    penalty = llr_fast.ROLLLoss(model, gamma=gamma, estimator="exact")(x)[1]
    expected = oracle.roll_penalty(model, x, gamma=gamma)
    same(penalty, expected)
    for got, wanted in zip(gradients(penalty, model), gradients(expected, model)):
        same(got, wanted)


@pytest.mark.parametrize("budget", [1, 2**29])
@pytest.mark.parametrize("estimator", ["exact", "axis"])
def test_detach_cuts_parameters_but_not_the_network(monkeypatch, budget, estimator):
    """The norms are those of the whole network; behind the cut they train what lies behind it alone."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", budget)
    torch.manual_seed(0)
    front, back = (nn.Sequential(nn.Linear(20, n), nn.LeakyReLU(0.1), nn.Linear(n, 20)).double() for n in (6, 4))
    x = torch.randn(3, 20, dtype=DTYPE)
    cut = nn.Sequential(front, networks.Apply(torch.Tensor.detach), back)
    penalty = llr_fast.ROLLLoss(cut, estimator=estimator, samples=20)(x)[1]
    same(penalty, oracle.roll_penalty(nn.Sequential(front, back), x))
    found = torch.autograd.grad(penalty, [front[0].weight, back[0].weight])
    same(found[0], torch.autograd.grad(0.6 * oracle.roll_penalty(front, x), front[0].weight)[0])
    frozen = copy.deepcopy(front).requires_grad_(False)
    same(found[1], torch.autograd.grad(oracle.roll_penalty(nn.Sequential(frozen, back), x), back[0].weight)[0])


def test_other_directions_choose_than_score():
    """All norms are 1. Estimates are chi-squared of one degree: their mean is 1, and their largest of 64 about 7."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 64, bias=False).double()
    nn.init.orthogonal_(linear.weight)
    loss = llr_fast.ROLLLoss(
        nn.Sequential(linear, nn.ReLU()),
        C=0.0,
        gamma=0,
        estimator="rademacher",
        generator=torch.Generator().manual_seed(0),
    )
    penalty = loss(torch.randn(1000, 64, dtype=DTYPE))[1].item()
    assert abs(penalty - 1) < 4 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("gamma", [100, 30])
@pytest.mark.parametrize("name", ["relu", "conv1d"])
def test_all_axes_are_exact(name, gamma):
    """Each axis is taken once at most."""
    model, x = networks.build(name)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        loss = llr_fast.ROLLLoss(model, gamma=gamma, estimator="axis", samples=x[0].numel(), generator=generator)
        same(loss(x)[1], oracle.roll_penalty(model, x, gamma=gamma))


def test_auto_is_exact_where_that_costs_less_than_the_samples():
    """16 inputs of a network that is no chain cost 16 passes; 32 cost as much as two directions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()).double()
    x = torch.randn(3, 1, 32, dtype=DTYPE)
    expected = oracle.roll_penalty(model, x)
    for samples, exact in ((1, False), (2, True), (5, True)):
        loss = llr_fast.ROLLLoss(model, estimator="auto", samples=samples)
        loss(x)  # which tells the cost
        assert torch.allclose(loss(x)[1], expected, rtol=1e-9) == exact


@pytest.mark.parametrize("draw", [estimators.random_signs, estimators.random_axes])
def test_every_sample_has_directions_of_its_own(draw):
    directions, _ = draw(torch.zeros(6, 40, dtype=DTYPE), 3, torch.Generator().manual_seed(0))
    tangents = directions.tangents
    for i, j in itertools.combinations(range(6), 2):
        assert not torch.equal(tangents[:, i], tangents[:, j])
    assert len(tangents.flatten(0, 1).unique(dim=0)) > 12


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("estimator", ["axis", "rademacher"])
def test_estimates_of_equal_entries_are_exact(estimator, samples):
    """Of gradients along single axes, all of one length and one for each axis, any direction tells the sum."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU()).double()
    model[0].weight.data.copy_(3 * torch.eye(8).flip(0))
    penalty = llr_fast.ROLLLoss(model, C=0.0, estimator=estimator, samples=samples)(torch.randn(4, 8, dtype=DTYPE))[1]
    same(penalty, torch.full_like(penalty, 9.0))


def test_margin_loss_divides_by_all_samples():
    """Half of them have an infinite margin."""

    def gated(x):
        return x * (torch.arange(len(x)) % 2).to(DTYPE)[:, None]

    torch.manual_seed(0)
    linear, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=DTYPE)
    expected = oracle.margin_penalty(nn.Sequential(linear, nn.ReLU()), x[1::2]) / 2
    same(llr_fast.MarginLoss(nn.Sequential(networks.Apply(gated), linear, nn.ReLU()))(x)[1], expected)


@pytest.mark.parametrize("estimator", ["exact", "axis"])
@pytest.mark.parametrize("gamma", [100, 50])
@pytest.mark.parametrize("trained", [False, True])
def test_a_weight_that_changes_after_the_convolution(trained, gamma, estimator):
    """It is what it was at the convolution."""

    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3).requires_grad_(trained)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            weight = self.conv.weight.clone()
            y = F.conv1d(x, weight, self.conv.bias)
            with torch.no_grad():
                weight.zero_()
            return self.head(y.relu().flatten(1)).relu()

    torch.manual_seed(0)
    model, x = Changing().double(), torch.randn(3, 2, 6, dtype=DTYPE)
    plain = nn.Sequential(model.conv, nn.ReLU(), nn.Flatten(), model.head, nn.ReLU())
    penalty = llr_fast.ROLLLoss(model, gamma=gamma, estimator=estimator, samples=12)(x)[1]
    found = torch.autograd.grad(penalty, model.head.weight)
    expected = oracle.roll_penalty(plain, x, gamma=gamma)
    same(penalty, expected)
    same(found, torch.autograd.grad(expected, model.head.weight))
