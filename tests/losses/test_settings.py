"""Ways in which models are trained and kept: each leads to the numbers of the plain model."""

import copy
import io
import pickle
from functools import partial

import networks
import oracle
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import llr_fast
from llr_fast.losses.totals import Summing

DTYPE = torch.float64
ESTIMATORS = ("exact", "rademacher")


def step(loss, x):
    """The penalty, and the gradients of a step from the same random numbers."""
    loss.zero_grad()
    torch.manual_seed(0)
    output, penalty = loss(x)
    (output.square().sum() + penalty).backward()
    return [penalty.detach(), *(None if p.grad is None else p.grad.clone() for p in loss.parameters())]


def same(got, expected, rtol=1e-8, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def convolutional():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    tail = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(16, 3))
    return nn.Sequential(head, tail).double(), torch.randn(4, 2, 4, 4, dtype=DTYPE)


class Checkpointed(nn.Module):
    """Every child under a checkpoint."""

    def __init__(self, model, reentrant=False):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x):
        for module in self.model:
            x = checkpoint(module, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("gamma", [100, 30])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_checkpoints_inside_the_model(estimator, gamma):
    """Exact: 32 axes, in chunks that are checkpointed themselves."""
    model, x = convolutional()
    plain, inside = (llr_fast.ROLLLoss(m, estimator=estimator, gamma=gamma) for m in (model, Checkpointed(model)))
    same(step(inside, x), step(plain, x))


def counting(method, calls):
    return lambda *arguments: (calls.append(1), method(*arguments))[1]


def test_tangents_are_checkpointed_with_the_values(monkeypatch):
    """Along random directions, the backward pass computes those of every activation again."""
    calls = []
    for name in ("ramp", "pool", "__call__"):
        monkeypatch.setattr(Summing, name, counting(getattr(Summing, name), calls))
    model, x = convolutional()
    for inside, wanted in ((model, 3), (Checkpointed(model), 6)):
        calls.clear()
        llr_fast.ROLLLoss(inside, estimator="rademacher")(x)[1].backward()
        assert len(calls) == wanted


def test_exact_axes_are_computed_one_chunk_at_a_time_and_twice(monkeypatch):
    chunks, along = [], llr_fast.losses.estimators.TrainingStep.squares_along
    seen = lambda self, directions, scale=1: (chunks.append(directions.shape[0]), along(self, directions, scale))[1]  # noqa: E731
    monkeypatch.setattr(llr_fast.losses.estimators.TrainingStep, "squares_along", seen)
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    model, x = convolutional()
    penalty = llr_fast.ROLLLoss(Checkpointed(model), estimator="exact")(x)[1]
    assert chunks == [1] * x[0].numel()
    penalty.backward()
    assert chunks == [1] * 2 * x[0].numel()


class BetweenConvolutions(nn.Module):
    """Checkpoints that begin, and one that ends, with what a convolution made."""

    def __init__(self, checkpointed):
        super().__init__()
        self.first, self.second, self.checkpointed = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), checkpointed

    def forward(self, x):
        run = partial(checkpoint, use_reentrant=False) if self.checkpointed else lambda part, h: part(h)
        h = run(lambda h: self.second(h.relu()), self.first(x))
        return run(lambda h: h.relu().flatten(1), h)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_checkpoints_between_convolutions(estimator):
    plain, inside = BetweenConvolutions(False).double(), BetweenConvolutions(True).double()
    inside.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 7, 7, dtype=DTYPE)
    losses = (llr_fast.ROLLLoss(model, estimator=estimator) for model in (inside, plain))
    same(*(step(loss, x) for loss in losses))


def test_margin_loss_with_checkpoints():
    model, x = convolutional()
    same(step(llr_fast.MarginLoss(Checkpointed(model)), x), step(llr_fast.MarginLoss(model), x))
    names = llr_fast.margin(Checkpointed(model), x).layer_names
    assert len(names) == len(llr_fast.margin(model, x).layer_names)


def test_checkpoints_update_batch_statistics_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())).double()
    x, once = torch.randn(6, 5, dtype=DTYPE), copy.deepcopy(model)
    once(x)
    step(llr_fast.ROLLLoss(Checkpointed(model), estimator="rademacher"), x)
    same(model[0][1].running_mean, once[0][1].running_mean)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("kind", ["reentrant", "function"])
def test_custom_autograd_functions_are_refused(kind, place):
    model, x = convolutional()
    part = networks.Apply(Doubled.apply) if kind == "function" else Checkpointed(nn.Sequential(nn.ReLU()), True)
    model = nn.Sequential(part, model) if place == "first" else nn.Sequential(model, part)
    for loss in (llr_fast.ROLLLoss(model), llr_fast.MarginLoss(model)):
        with pytest.raises(llr_fast.NotPiecewiseLinearError, match=r"custom autograd function.*use_reentrant=False"):
            loss(x)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_micro_batches_equal_the_batch(estimator):
    model, x = convolutional()
    loss = llr_fast.ROLLLoss(model, estimator=estimator, generator=torch.Generator())
    parts = x.split(2)
    for seed, part in enumerate(parts):
        loss.generator.manual_seed(seed)
        (loss(part)[1] / len(parts)).backward()
    found = [p.grad for p in model.parameters()]
    if estimator == "exact":
        expected = torch.autograd.grad(oracle.roll_penalty(model, x), list(model.parameters()), allow_unused=True)
    else:  # one batch draws its directions at once; the same ones, for each part
        signs = [torch.Generator().manual_seed(seed) for seed in range(len(parts))]
        penalties = [llr_fast.ROLLLoss(model, estimator=estimator, generator=g)(p)[1] for g, p in zip(signs, parts)]
        expected = torch.autograd.grad(sum(penalties) / 2, list(model.parameters()), allow_unused=True)
    for got, wanted in zip(found, expected):
        same(got, torch.zeros_like(got) if wanted is None else wanted) if got is not None else None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_memory_formats(estimator):
    model, x = convolutional()
    loss = llr_fast.ROLLLoss(model, estimator=estimator)
    expected = step(loss, x)
    strided = torch.randn(4, 2, 4, 8, dtype=DTYPE)[..., ::2].copy_(x)
    same(step(loss, strided), expected)
    same(step(loss, x.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)), expected)
    model.to(memory_format=torch.channels_last)
    same(step(loss, x.to(memory_format=torch.channels_last)), expected)
    same(step(llr_fast.MarginLoss(model), x.to(memory_format=torch.channels_last)), step(llr_fast.MarginLoss(model), x))


@pytest.mark.parametrize("make", [lambda m: llr_fast.ROLLLoss(m, estimator="exact"), llr_fast.MarginLoss])
def test_frozen_and_shared_parameters(make):
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 2)).double()
    model[0].bias.requires_grad_(False)
    x = torch.randn(4, 3, dtype=DTYPE)
    penalty = oracle.roll_penalty if make is not llr_fast.MarginLoss else oracle.margin_penalty
    make(model)(x)[1].backward()
    expected = torch.autograd.grad(penalty(model, x), [shared.weight, model[0].weight])
    same([shared.weight.grad, model[0].weight.grad], list(expected))
    assert model[0].bias.grad is None


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(name, monkeypatch):
    """In training, spectral_norm moves its vectors once for each step, whatever the number of evaluations."""
    torch.manual_seed(0)
    first = getattr(parametrizations, name)(nn.Linear(20, 6))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double().train()
    reference, x = copy.deepcopy(model), torch.randn(3, 20, dtype=DTYPE)
    reference(x)
    reference.eval()
    monkeypatch.setattr(llr_fast.losses.estimators.TrainingStep, "chain", None)  # all axes, in chunks
    llr_fast.ROLLLoss(model, estimator="exact")(x)[1].backward()
    expected = oracle.roll_penalty(reference, x)
    names, parameters = zip(*reference.named_parameters())
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for key, wanted in zip(names, gradients):
        got = model.get_parameter(key).grad
        same(torch.zeros_like(wanted) if got is None else got, wanted)
    for key, buffer in reference.named_buffers():
        same(model.get_buffer(key), buffer)


def test_margin_loss_needs_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU()).train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        llr_fast.MarginLoss(model)(torch.randn(8, 3))


def test_batch_statistics_are_constants_of_the_step():
    """The penalty and the gradients of its norms are those of the network with the statistics of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU()).double().train()
    x, fixed = torch.randn(8, 3, dtype=DTYPE), copy.deepcopy(model).eval()
    before = fixed[0](x).detach()
    fixed[1].running_mean.copy_(before.mean(0))
    fixed[1].running_var.copy_(before.var(0, correction=0))
    loss = llr_fast.ROLLLoss(model, C=0.0, estimator="exact")
    output, penalty = loss(x)
    same(output, fixed(x))
    same(penalty, oracle.roll_penalty(fixed, x, C=0.0))
    parameters = [model[0].weight, model[1].weight, model[3].weight]
    wanted = [fixed[0].weight, fixed[1].weight, fixed[3].weight]
    same(torch.autograd.grad(penalty, parameters), torch.autograd.grad(oracle.roll_penalty(fixed, x, C=0.0), wanted))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dropout_is_the_same_for_values_and_tangents(estimator):
    """With one input, every estimator is exact; the oracle draws the same masks for the joint batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4), nn.ReLU()).double().train()
    x = torch.randn(1, 1, dtype=DTYPE)
    torch.manual_seed(5)
    output, penalty = llr_fast.ROLLLoss(model, estimator=estimator, generator=torch.Generator())(x)
    torch.manual_seed(5)
    expected = oracle.roll_penalty(model, x)
    same(penalty, expected)
    torch.manual_seed(5)
    same(output, model(x))


def test_eval_inside_a_training_wrapper():
    model, x = networks.build("residual")
    loss = llr_fast.ROLLLoss(model, estimator="exact").train()
    model.eval()
    same(loss(x)[1], oracle.roll_penalty(model, x))
    assert loss.training and not model.training


def copies(loss):
    yield copy.deepcopy(loss)
    yield pickle.loads(pickle.dumps(loss))
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)
    other = llr_fast.ROLLLoss(copy.deepcopy(loss.model), estimator="rademacher", generator=torch.Generator())
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(loss.state_dict())
    other.generator.set_state(loss.generator.get_state())
    yield other


def test_copies_go_on_like_the_original():
    """deepcopy, pickle and torch.save keep the generator's state; with a state_dict it is saved on its own."""
    model, x = convolutional()
    loss = llr_fast.ROLLLoss(model, estimator="rademacher", generator=torch.Generator().manual_seed(3))
    loss(x)
    found = list(copies(loss))
    assert all(copied.model is not model for copied in found)
    expected = step(loss, x)
    for copied in found:
        same(step(copied, x), expected, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(loss.state_dict().values(), model.state_dict().values()))


def test_lam_and_gamma_follow_a_schedule():
    model, x = convolutional()
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    for lam, gamma in [(0.0, 100), (0.5, 100), (0.5, 40), (1.0, 0)]:
        loss.lam, loss.gamma = lam, gamma
        same(loss(x)[1], oracle.roll_penalty(model, x, lam=lam, gamma=gamma))
    loss.gamma = 101
    with pytest.raises(ValueError, match=r"gamma.*101"):
        loss(x)
    distance = llr_fast.MarginLoss(model)
    distance.lam = 0.25
    same(distance(x)[1], oracle.margin_penalty(model, x, lam=0.25))


def test_interrupted_run_continues():
    """Weights, optimiser and the generator's state are all that a run needs to go on as if nothing had happened."""

    def run(loss, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            output, penalty = loss(x)
            (F.cross_entropy(output, torch.tensor([0, 1, 2, 0])) + penalty).backward()
            optimizer.step()

    model, x = convolutional()
    fresh = copy.deepcopy(model)
    loss = llr_fast.ROLLLoss(model, estimator="rademacher", generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(loss.parameters())
    run(loss, optimizer, 2)
    saved = copy.deepcopy([loss.state_dict(), optimizer.state_dict(), loss.generator.get_state()])
    run(loss, optimizer, 2)
    other = llr_fast.ROLLLoss(fresh, estimator="rademacher", generator=torch.Generator())
    resumed = torch.optim.Adam(other.parameters())
    for part, state in zip((other, resumed), saved):
        part.load_state_dict(state)
    other.generator.set_state(saved[2])
    run(other, resumed, 2)
    for got, wanted in zip(other.parameters(), loss.parameters()):
        assert torch.equal(got, wanted)


DROPOUTS = {
    "Dropout": (nn.Dropout(0.1), (4, 3, 8)),
    "Dropout1d": (nn.Dropout1d(0.2), (4, 20, 2)),
    "Dropout2d": (nn.Dropout2d(0.2), (4, 20, 1, 2)),
    "Dropout3d": (nn.Dropout3d(0.2), (4, 20, 2, 1, 1)),
    "function": (networks.Apply(lambda x: F.dropout(x, 0.1)), (4, 20)),
    "in place": (nn.Dropout(0.3, inplace=True), (4, 20)),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_that_of_the_plain_model(name, estimator):
    """At the same seed it drops the same entries: as many, and others in each sample."""
    drop, shape = DROPOUTS[name]
    model = nn.Sequential(networks.Apply(lambda x: 2 * x), drop, nn.LeakyReLU(0.1)).train()
    x, own = torch.ones(shape, dtype=DTYPE), torch.Generator().manual_seed(0)
    torch.manual_seed(5)
    output, penalty = llr_fast.ROLLLoss(model, C=0.0, estimator=estimator, generator=own)(x)
    torch.manual_seed(5)
    expected = model(x)
    assert 0 < (expected == 0).double().mean() < 0.5 and not torch.equal(expected[0], expected[1])
    same(output, expected)
    same(penalty, expected.square().mean())  # each neuron's gradient has one entry


class LocalNoGrad(nn.Module):
    """Without gradients of the model's own choice: of a convolution, and with `of_all` of the batch norm behind it."""

    def __init__(self, of_all):
        super().__init__()
        self.conv, self.norm, self.of_all = nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2).eval(), of_all
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x)
            x = self.norm(x) if self.of_all else x
        return (x if self.of_all else self.norm(x)).relu()


@pytest.mark.parametrize("of_all", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "axis"])
@pytest.mark.parametrize("gamma", [100, 50])
def test_no_grad_inside_a_model(gamma, estimator, of_all):
    """Parameters inside have no gradient, others have that of a model in which those inside are frozen."""
    torch.manual_seed(0)
    model, x = LocalNoGrad(of_all).double(), torch.randn(3, 2, 6, dtype=DTYPE)
    penalty = llr_fast.ROLLLoss(model, gamma=gamma, estimator=estimator, samples=12)(x)[1]
    expected = oracle.roll_penalty(nn.Sequential(model.conv, model.norm, nn.ReLU()), x, gamma=gamma)
    same(penalty, expected)
    inside = [*model.conv.parameters(), *(model.norm.parameters() if of_all else ())]
    outside = [] if of_all else list(model.norm.parameters())
    assert penalty.requires_grad is not of_all
    if not of_all:
        assert torch.autograd.grad(penalty, inside, allow_unused=True, retain_graph=True) == (None,) * len(inside)
        same(torch.autograd.grad(penalty, outside), torch.autograd.grad(expected, outside))
