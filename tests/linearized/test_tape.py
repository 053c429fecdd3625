"""What a tape replays is what one evaluation of the network computes, and it holds no more tangents than that."""

import weakref

import networks
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.certificates.evaluation import layers_of
from llr_fast.certificates.frozen import freeze
from llr_fast.linearized.directions import Directions, axes
from llr_fast.linearized.operations import Activated, Batched, Parts
from llr_fast.linearized.tape import Tape, Taped
from llr_fast.norms import Statistic, norm

DTYPE = torch.float64


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model(x)


@pytest.mark.parametrize("statistic", [*Statistic, None])
@pytest.mark.parametrize("name", networks.NAMES)
def test_a_replay_measures_what_an_evaluation_does(name, statistic):
    model, x = networks.build(name)
    directions = torch.randn(3, *x.shape, dtype=DTYPE)
    layers = layers_of(model, x, Directions(directions), DTYPE)
    frozen = freeze(model, x, DTYPE)
    for _ in range(2):
        if statistic is None:
            found, expected = frozen.tangents(Directions(directions)), [layer.tangents for layer in layers]
        else:
            found = frozen.statistics([Directions(directions)], statistic)
            expected = [Directions(layer.tangents).measured(statistic) for layer in layers]
        for measured, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(measured, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "residual", "recurrent_time_first", "max_pool2d"])
def test_a_replay_is_differentiable_by_the_directions(name):
    model, x = networks.build(name)
    with torch.inference_mode():
        frozen = freeze(model, x, DTYPE)
    directions = torch.zeros(1, *x.shape, dtype=DTYPE, requires_grad=True)
    last = frozen.tangents(Directions(directions))[-1]
    (gradient,) = torch.autograd.grad(last[0, 0, 0], directions)
    every_axis = axes(x[:1], 0, x[0].numel(), DTYPE)
    expected = freeze(model, x[:1], DTYPE).tangents(every_axis)[-1][:, 0, 0].view_as(x[0])
    torch.testing.assert_close(gradient[0, 0], expected)
    assert gradient[0, 1:].count_nonzero() == 0


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("p", [1, 2])
def test_a_margin_evaluates_the_network_once_and_as_it_is(monkeypatch, method, p):
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)  # one direction at a time
    model, x = networks.build("conv2d", batch=1)
    counting = Counting(model)
    llr_fast.margin(counting, x, p, method=method)
    assert counting.calls == 2


alive: weakref.WeakSet = weakref.WeakSet()


class Number:
    """A linearization that is a number, and knows how many of its kind are alive."""

    def __init__(self, value):
        self.value = value
        alive.add(self)

    def batched(self, function):
        return Number(function(self.value))

    def pointwise(self, function, shape, *others):
        return Number(function(self.value, *(other.value for other in others)))

    def parts(self, function, count):
        return [Number(v) for v in function(self.value)]


def activate(number, slope):
    return Number(slope * number.value), (number.value, len(alive))


def test_linearizations_are_let_go_after_their_last_use():
    tape = Tape(DTYPE)
    eight = Taped(tape)
    for _ in range(3):
        eight = eight.batched(lambda v: 2 * v)
    sixteen = eight.pointwise(lambda a, b: a + b, (1,), eight)  # the same operand twice
    second = sixteen.parts(lambda v: (v, -v), 2)[1]
    second.activated(torch.ones(())).batched(lambda v: 1 / 0)  # beyond the last layer: left out
    assert [type(entry.operation) for entry in tape.entries][-3:] == [Parts, Activated, Batched]
    for _ in range(2):
        found = list(tape.replay(Number(1), activate))
        assert found == [(-16, 2)]  # the layer's and its result


def test_an_operand_is_kept_for_its_later_use():
    tape = Tape(DTYPE)
    start = Taped(tape)
    sum_of_both = start.batched(lambda v: 2 * v).pointwise(lambda a, b: a + b, (1,), start)
    sum_of_both.activated(torch.ones(()))
    assert [value for value, _ in tape.replay(Number(1), activate)] == [3]


def test_a_network_without_layers_measures_nothing():
    assert list(Tape(DTYPE).replay(Number(1), activate)) == []


WEIGHTED = {
    "dense": lambda: nn.Linear(6, 4),
    "dense_with_batch_norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)),
    "tiny": lambda: scaled(nn.Linear(6, 4).double(), 1e-200),
    "huge": lambda: scaled(nn.Linear(6, 4).double(), 1e200),
    "dead": lambda: scaled(nn.Linear(6, 4), 0),
    "convolution": lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1),
    "convolution_with_batch_norm": lambda: nn.Sequential(nn.Conv1d(2, 2, 2, dilation=2, groups=2), nn.BatchNorm1d(2)),
}


def scaled(layer, factor):
    layer.weight.data.mul_(factor)
    return layer


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("name", WEIGHTED)
def test_norms_of_a_first_layer_are_those_of_its_weights(name, q):
    torch.manual_seed(0)
    first = WEIGHTED[name]().double().eval()
    for module in first.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
    x = torch.randn(3, 2, 6, dtype=DTYPE) if "convolution" in name else torch.randn(3, 6, dtype=DTYPE)
    frozen = freeze(nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.ReLU()), x, DTYPE)
    gradients = frozen.tangents(axes(x, 0, x[0].numel(), DTYPE))[0].movedim(0, -1)
    found = frozen.norms_of_weights(q, DTYPE)
    assert list(found) == [0]
    expected = norm(gradients.flatten(0, 1), q).view(len(x), -1)
    torch.testing.assert_close(found[0], expected, atol=0, rtol=1e-10)


def test_a_tangent_that_rounding_makes_zero_does_not_void_a_cauchy_bound():
    tangents = torch.tensor([[3.0, 0.0], [2.0, 2.0]]).unsqueeze(1)
    (large, small) = Directions(tangents).activated_and_measured(torch.ones(1, 2), Statistic.SUM_LOG_ABS)[1][0]
    assert large.isfinite() and small.isfinite()
    torch.testing.assert_close(small, (torch.tensor(3 * torch.finfo(torch.float32).eps) * 2).log())


def test_a_deferred_convolution_keeps_its_kernel():
    tangents, kernel = torch.randn(1, 1, 1, 6), torch.randn(2, 1, 3)
    expected = torch.nn.functional.conv1d(tangents[0], kernel)
    deferred = Directions(tangents).convolved(torch.nn.functional.conv1d, kernel)
    kernel.mul_(2)
    assert torch.equal(deferred.tangents[0], expected)


def test_small_factors_of_a_batch_norm_do_not_void_the_search(monkeypatch):
    """Their squares are no numbers of float32."""
    monkeypatch.setattr("llr_fast.certificates.bounds.FEW", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten()).eval()
    model[1].weight.data = torch.tensor([1.0, 1e-24])
    model[1].bias.data = torch.tensor([5.0, 1e-26])
    x = torch.randn(2, 1, 8)
    exact, search = (llr_fast.margin(model, x, method=method).value for method in ("exact", "search"))
    torch.testing.assert_close(search, exact, rtol=1e-9, atol=0)
