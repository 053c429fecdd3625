"""Threads: each finds what it would find alone, and settings of the whole process are afterwards as before."""

import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import precisions
import pytest
import torch
from torch import backends, nn

import llr_fast

THREADS = 4


def network(seed=0):
    torch.manual_seed(seed)
    parts = nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*parts).eval()


X = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def at_once(calls):
    """All started at the same moment."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.exception() or future.result() for future in [pool.submit(run, call) for call in calls]]


def high():
    torch.set_float32_matmul_precision("high")
    backends.cudnn.allow_tf32 = False


def of_each_its_own():
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "ieee"
    backends.cuda.matmul.fp32_precision = "tf32"


def fails():
    model = nn.Sequential(network(), nn.Sigmoid())
    return llr_fast.margin(model, X)


def mixture(model):
    return [
        lambda: llr_fast.margin(model, X),
        lambda: llr_fast.margin(model, X, 1, method="search"),
        lambda: llr_fast.gradient_norms(model, X),
        fails,
        lambda: llr_fast.directional_margin(model, X, X.flip(0)),
        lambda: llr_fast.MarginLoss(model)(X),
        lambda: llr_fast.ROLLLoss(model, estimator="exact")(X),
    ]


@pytest.mark.parametrize("choose", [lambda: None, high, precisions.by_older_names, of_each_its_own])
def test_precisions_are_afterwards_as_before(choose):
    with precisions.restored():
        choose()
        before = precisions.current()
        for _ in range(3):
            at_once(mixture(network()))
            assert precisions.current() == before


def test_a_failing_thread_fails_alone():
    model = network()
    wanted = llr_fast.margin(model, X)
    found = at_once([fails, lambda: llr_fast.margin(model, X)] * THREADS)
    assert all(isinstance(error, llr_fast.NotPiecewiseLinearError) for error in found[::2])
    assert all(torch.equal(margin.value, wanted.value) for margin in found[1::2])


def test_threads_share_a_model():
    model = network()
    for p in (1, 2, float("inf")):
        wanted = llr_fast.margin(model, X, p, method="exact")
        for found in at_once([lambda p=p: llr_fast.margin(model, X, p, method="exact")] * THREADS):
            assert torch.equal(found.value, wanted.value) and torch.equal(found.gradient, wanted.gradient)


def test_threads_train_models_of_their_own():
    def train(model):
        loss = llr_fast.ROLLLoss(model, estimator="exact")
        for _ in range(3):
            loss.zero_grad()
            loss(X)[1].backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * (0 if parameter.grad is None else parameter.grad)
        return [parameter.detach() for parameter in model.parameters()]

    wanted = [train(network(seed)) for seed in range(THREADS)]
    found = at_once([functools.partial(train, network(seed)) for seed in range(THREADS)])
    for alone, together in zip(wanted, found):
        assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_grad_modes_are_those_of_each_thread():
    model = network()

    def without():
        with torch.no_grad():
            llr_fast.margin(model, X)
            return torch.is_grad_enabled()

    def inference():
        with torch.inference_mode():
            llr_fast.margin(model, X)
            return torch.is_inference_mode_enabled()

    def with_gradients():
        llr_fast.margin(model, X)
        return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

    assert at_once([without, inference, with_gradients] * 2) == [False, True, True] * 2


class Compiled:
    """A backend of torch.compile that counts the graphs it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def dynamo():
    import torch._dynamo

    assert "torch._dynamo" in sys.modules
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def stance():
    from torch._dynamo.eval_frame import _stance

    return _stance.stance


@pytest.mark.parametrize("chosen", ["default", "eager_on_recompile", "force_eager"])
def test_the_compiler_s_stance_is_afterwards_as_before(dynamo, chosen):
    model = network()
    torch.compiler.set_stance(chosen)
    for _ in range(3):
        at_once(mixture(model))
        assert stance() == chosen
    compiled = Compiled()
    torch.compile(lambda x: 2 * x + 1, backend=compiled)(torch.ones(3))
    assert compiled.graphs == (chosen == "default")


def test_compiled_models_are_compiled_again_afterwards(dynamo):
    model, compiled = network(), Compiled()
    run = torch.compile(model, backend=compiled)
    wanted = llr_fast.margin(model, X).value
    assert all(torch.equal(found.value, wanted) for found in at_once([lambda: llr_fast.margin(run, X)] * THREADS))
    assert compiled.graphs == 0
    torch.testing.assert_close(run(X), model(X))
    assert compiled.graphs == 1


def test_a_stance_that_others_set_meanwhile_stays(dynamo):
    """As by a context manager around the certificate."""
    model = network()
    with torch.compiler.set_stance("force_eager"):
        llr_fast.margin(model, X)
        assert stance() == "force_eager"
    assert stance() == "default"


def test_threads_that_draw_numbers_do_not_disturb_those_that_certify_the_same_model():
    model = network()
    expected = llr_fast.margin(model, X).value

    def work():
        for _ in range(20):
            torch.randn(1000)
            found = llr_fast.margin(model, X)
        return found

    for found in at_once([work] * THREADS):
        assert isinstance(found, llr_fast.Margin), found
        torch.testing.assert_close(found.value, expected)
