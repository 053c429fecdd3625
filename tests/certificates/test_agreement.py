"""A certificate is of a function: what is none is refused by name, and what is one is not refused."""

import random
import threading
from dataclasses import dataclass

import compare
import numpy as np
import pytest
import torch
from networks import Apply
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import llr_fast
import llr_fast.linearized.rules  # fills the table, which is empty until a model is evaluated
from llr_fast.linearized.table import TABLE, Rule

DTYPE = torch.float64
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
CALLS = {
    "margin": lambda model: llr_fast.margin(model, X),
    "search": lambda model: llr_fast.margin(model, X, 1, method="search"),
    "norms": lambda model: llr_fast.gradient_norms(model, X),
    "directional": lambda model: llr_fast.directional_margin(model, X, X.flip(0)),
    "pattern": lambda model: llr_fast.activation_pattern(model, X),
    "density": lambda model: llr_fast.region_density(model, X, 0.1),
    "margin_loss": lambda model: llr_fast.MarginLoss(model)(X),
}


class Block(nn.Module):
    """A residual block with something of its own in the middle."""

    def __init__(self, middle):
        super().__init__()
        self.layer, self.middle = nn.Linear(6, 6), middle

    def forward(self, x):
        return x + self.middle(self.layer(x).relu())


def network(function):
    middle = function if isinstance(function, nn.Module) else Apply(function)
    return nn.Sequential(nn.Linear(6, 6), Block(middle), nn.ReLU(), nn.Linear(6, 2))


OWN, OWN_OF_NUMPY, OWN_OF_PYTHON = torch.Generator(), np.random.default_rng(0), random.Random(0)


def drop_path(x):
    keep = torch.rand(len(x), 1, dtype=x.dtype) < 0.7
    return x * keep / 0.7


RANDOM = {
    "drop_path": drop_path,
    "bernoulli": lambda x: x * torch.empty(len(x), 1, dtype=x.dtype).bernoulli_(0.5),
    "dropout_of_ones": lambda x: x * F.dropout(torch.ones(len(x), 6, dtype=x.dtype), 0.3, True),
    "noise": lambda x: x + 1e-3 * torch.randn(6, dtype=x.dtype),
    "noise_like": lambda x: x + torch.randn_like(x),
    "tiny_noise": lambda x: x + 1e-12 * torch.rand_like(x),
    "permutation": lambda x: x[:, torch.randperm(6)],
    "sampled_noise": lambda x: x + torch.distributions.Normal(0.0, 1.0).sample((6,)),
    "python": lambda x: x if random.random() < 2.0 else x * 2,
    "python_skip": lambda x: x if random.random() < 0.5 else 0 * x,
    "python_choice": lambda x: x * random.choice([1.0, 2.0]),
    "python_permutation": lambda x: x[:, random.sample(range(6), 6)],
    "numpy": lambda x: x * float(np.random.rand() + 1),
    "numpy_noise": lambda x: x + torch.from_numpy(np.random.randn(6)).to(x.dtype),
    "numpy_choice": lambda x: x[:, np.random.permutation(6)],
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_refused_by_the_module_that_draws_them(name):
    for train in (True, False):
        model = network(RANDOM[name]).train(train)
        with pytest.raises(ValueError, match=r"random numbers drawn in module '1\.middle'"):
            llr_fast.margin(model, X)


@pytest.mark.parametrize("call", CALLS)
def test_every_certificate_refuses_random_numbers(call):
    for name in ("drop_path", "tiny_noise", "python", "numpy_choice"):
        with pytest.raises(ValueError, match=r"random numbers drawn in module '1\.middle'"):
            CALLS[call](network(RANDOM[name]))


class StochasticDepth(nn.Module):
    def __init__(self, block, p):
        super().__init__()
        self.block, self.p = block, p

    def forward(self, x):
        if self.training and torch.rand(()) < self.p:
            return x
        return x + self.block(x)


class DropPath(nn.Module):
    def forward(self, x):
        return drop_path(x) if self.training else x


class OwnDropout(nn.Module):
    def forward(self, x):
        return x * (torch.rand_like(x) > 0.5) * 2 if self.training else x


SWITCHED = {
    "stochastic_depth_that_skips": lambda: StochasticDepth(nn.Linear(6, 6), 1.0),
    "stochastic_depth_that_stays": lambda: StochasticDepth(nn.Linear(6, 6), 0.0),
    "drop_path": DropPath,
    "own_dropout": OwnDropout,
}


@pytest.mark.parametrize("name", SWITCHED)
def test_random_layers_are_refused_in_training_and_certified_in_evaluation(name):
    model = network(SWITCHED[name]())
    with pytest.raises(ValueError, match=r"random numbers drawn in module '1\.middle'"):
        llr_fast.margin(model, X)
    for call in CALLS.values():
        call(model.eval())


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU])
def test_random_layers_of_torch_are_refused_in_training_and_certified_in_evaluation(layer):
    model = network(layer())
    with pytest.raises(ValueError, match=r"module '1\.middle'.*model\.eval\(\)"):
        llr_fast.margin(model, X)
    llr_fast.margin(model.eval(), X)


OWN_GENERATORS = {
    "randn": lambda x: x + torch.randn(6, dtype=x.dtype, generator=OWN),
    "permutation": lambda x: x * (torch.randperm(6, generator=OWN) + 1),
    "numpy": lambda x: x + float(OWN_OF_NUMPY.normal()),
    "python": lambda x: x * OWN_OF_PYTHON.random(),
}


@pytest.mark.parametrize("name", OWN_GENERATORS)
def test_numbers_of_a_generator_of_the_model_s_own_are_refused(name):
    """Nobody sees it move, but the plain model's output is another one."""
    for call in CALLS.values():
        with pytest.raises(ValueError, match="the plain model's output"):
            call(network(OWN_GENERATORS[name]))


def test_a_generator_that_starts_anew_in_each_call_is_a_function():
    noise = network(lambda x: x + torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=DTYPE).to(x.dtype))
    compare.margins_are_right(noise.double(), X.double())


def test_numbers_are_drawn_where_the_message_says():
    """Also where no tensor is computed there afterwards."""
    draw = Apply(lambda x: x if random.random() < 2 else 2 * x)

    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            random.random()
            return self.layer(x)

    for model, name in (
        (nn.Sequential(nn.Linear(6, 6), draw, nn.ReLU()), "1"),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), draw), "2"),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Decides()), "2"),
        (Decides(), "Decides"),
    ):
        with pytest.raises(ValueError, match=f"module '{name}'"):
            llr_fast.margin(model, X)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_random_numbers_of_other_threads_are_no_concern():
    stop = threading.Event()

    def draw():
        while not stop.wait(5e-4):
            torch.randn(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(5):
            llr_fast.margin(network(nn.Identity()), X)
    finally:
        stop.set()
        thread.join()


class Counts(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.calls, self.change = 0, change

    def forward(self, x):
        self.calls += 1
        return self.change(self.calls, x)


class MovingAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.average = None

    def forward(self, x):
        mean = x.mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        return x - self.average


STATES = {
    "counter": lambda: Counts(lambda n, x: x * n),
    "small_counter": lambda: Counts(lambda n, x: x * (1 + 1e-4 * n)),
    "toggle": lambda: Counts(lambda n, x: x if n % 2 else -x),
    "every_third": lambda: Counts(lambda n, x: x if n % 3 else 2 * x),
    "warm_up": lambda: Counts(lambda n, x: x * min(1.0, n / 10)),
    "added": lambda: Counts(lambda n, x: x + 0.01 * n),
}


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("name", STATES)
def test_states_are_refused(name, dtype):
    """Unless all evaluations of one call happened to find the same, as with a counter that acts rarely."""
    torch.manual_seed(0)  # of some networks no output depends on the block that has the state
    model = network(STATES[name]()).to(dtype)
    with pytest.raises(ValueError, match=r"state from call to call|plain model's output"):
        for _ in range(2):
            llr_fast.margin(model, X.to(dtype))


def test_a_mean_over_the_batch_is_refused():
    with pytest.raises(ValueError, match="mean"):
        llr_fast.margin(network(MovingAverage()), X)


ASKS = {
    "type": lambda x: x if type(x) is torch.Tensor else 2 * x,
    "class": lambda x: x if x.__class__ is torch.Tensor else 2 * x,
    "instance": lambda x: x if not isinstance(x, llr_fast.linearized.tensor.LinearizedTensor) else x.flip(1),
    "attribute": lambda x: x * 2 if hasattr(x, "linearization") else x,
    "shape": lambda x: x if type(x) is torch.Tensor else x[:, :5],
}


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("name", ASKS)
def test_questions_about_the_type_of_a_tensor_are_refused(name, dtype):
    model, x = network(ASKS[name]).to(dtype), X.to(dtype)
    if name == "shape":
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Apply(ASKS[name])).to(dtype)
    with pytest.raises(ValueError, match="type of its input"):
        llr_fast.margin(model, x)


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("method", ["auto", "exact", "search"])
def test_a_question_about_the_graph_is_refused(method, dtype):
    model = network(lambda x: x if x.grad_fn is None and not x.is_leaf else 0.5 * x).to(dtype)
    with compare.refused(llr_fast.NotPiecewiseLinearError, "grad_fn", "1.middle"):
        llr_fast.margin(model, X.to(dtype), method=method)


RIGHT = dict(TABLE)
WRONG = {
    "relu": lambda function, x, inplace=False: RIGHT[F.leaky_relu].run(F.leaky_relu, x, 0.02),
    "leaky_relu": lambda function, x, negative_slope=0.1, inplace=False: RIGHT[F.relu].run(F.relu, x),
    "linear": lambda function, x, weight, bias=None: RIGHT[F.linear].run(F.linear, x, weight, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_refused(monkeypatch, name, call, dtype):
    """As if torch had changed what the function means."""
    for function in {getattr(space, name, None) for space in (F, torch, torch._C._nn)} & set(TABLE):
        monkeypatch.setitem(TABLE, function, Rule(WRONG[name]))
    monkeypatch.setitem(globals(), "X", X.to(dtype))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)).to(dtype)
    with pytest.raises(ValueError, match="the plain model's output"):
        CALLS[call](model)


def deep(width, depth, seed, bias=True):
    torch.manual_seed(seed)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width, bias=bias), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, DTYPE])
@pytest.mark.parametrize("width, depth", [(16, 20), (300, 4), (64, 8)])
def test_ordinary_networks_are_not_refused(width, depth, dtype):
    for seed in range(3):
        model = deep(width, depth, seed).to(dtype)
        assert llr_fast.margin(model, torch.randn(4, width).to(dtype)).value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, DTYPE])
def test_convolutional_networks_are_not_refused(dtype):
    torch.manual_seed(0)
    parts = [part for _ in range(6) for part in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(2, 3, 8, 8).to(dtype)
    assert llr_fast.margin(model.eval().to(dtype), x).value.isfinite().all()


class Cancels(nn.Module):
    """Differences of nearly equal large numbers, of which little but rounding is left."""

    def __init__(self, offset, part=1e-5):
        super().__init__()
        self.layer, self.offset, self.part = nn.Linear(6, 8), offset, part

    def forward(self, x):
        h = self.layer(x)
        return ((h + self.offset) * (1 + self.part) - (h + self.offset)).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DTYPE])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
def test_networks_whose_outputs_cancel_are_not_refused(offset, dtype):
    torch.manual_seed(0)
    model = Cancels(offset)
    if dtype != torch.bfloat16:
        compare.margins_are_right(model.to(dtype), X.to(dtype), rtol=1e-5)
    else:
        llr_fast.margin(model.to(dtype), X.to(dtype))


@dataclass
class Answer:
    logits: torch.Tensor
    scale: float = 1.0


def masked(x):
    return x.masked_fill(torch.tensor([True] + [False] * 5), -torch.inf)


OUTPUTS = {
    "dict": lambda h: {"logits": h, "twice": [2 * h]},
    "dataclass": lambda h: Answer(h),
    "none": lambda h: None,
    "number": lambda h: (h, 3, "name"),
    "minus_infinity": masked,
    "both_infinities": lambda h: (masked(h), -masked(h)),
    "constant": lambda h: torch.ones(3),
    "integers": lambda h: (h, torch.arange(3)),
    "in_place": lambda h: h.mul_(2),
}


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("name", OUTPUTS)
def test_any_output_is_right(name, dtype):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), Apply(OUTPUTS[name])).to(dtype)
    compare.margins_are_right(model, X.to(dtype), (2,))
    state = Counts(lambda n, x: x * n)
    with pytest.raises(ValueError) if name not in ("none", "constant") else pytest.MonkeyPatch.context():
        llr_fast.margin(nn.Sequential(model[0], state, *model[1:]), X.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_weights_are_right(name, dtype):
    torch.manual_seed(0)
    normalise = getattr(parametrizations, name)
    model = nn.Sequential(normalise(nn.Linear(6, 8)), nn.ReLU(), normalise(nn.Linear(8, 5)), nn.ReLU()).to(dtype)
    compare.margins_are_right(model.eval(), X.to(dtype), rtol=1e-9 if dtype == DTYPE else 1e-4)


def test_compiled_parts_are_right():
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 5), nn.ReLU())
    compiled = nn.Sequential(*(torch.compile(part, backend="eager") for part in parts))
    wanted = llr_fast.margin(nn.Sequential(*parts), X).value
    compiled(X)
    for _ in range(2):
        assert torch.equal(llr_fast.margin(compiled, X).value, wanted)
        compiled(X)


def test_random_layers_train():
    """A loss, unlike a certificate, is of one draw."""
    for name in ("drop_path", "noise", "python_skip", "numpy_noise"):
        model = network(RANDOM[name])
        for options in ({"estimator": "exact"}, {"estimator": "exact", "gamma": 30}, {"estimator": "rademacher"}):
            output, penalty = llr_fast.ROLLLoss(model, **options)(X)
            (output.sum() + penalty).backward()
            assert penalty.isfinite()
