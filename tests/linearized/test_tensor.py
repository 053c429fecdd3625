"""One evaluation, one world: no tensor of an evaluation is used in another one or is left in the model."""

import contextlib
import copy
import io
import pickle
import threading
import weakref
from typing import NamedTuple

import compare
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import llr_fast
from llr_fast.linearized.tensor import LinearizedTensor

DTYPE = torch.float64
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Part(NamedTuple):
    name: str
    tensor: torch.Tensor


class Holder:
    """An object that is no module."""

    held = None


KEPT: list = []


class Keeps(nn.Module):
    """Stores a hidden tensor in one of many ways."""

    def __init__(self, way="attribute"):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(6, 6), nn.Linear(6, 6), way
        self.feature, self.features, self.named, self.fails = None, [], {}, False
        self.holder, self.last = Holder(), nn.Identity()
        self.register_buffer("seen", None, persistent=False)
        self.eval()  # in training, layers may not change their buffers

    def forward(self, x):
        h = self.first(x).relu()
        KEEP[self.way](self, h)
        if self.fails:
            raise KeyError("the model's own")
        return self.second(h).relu()


def in_a_buffer(model, h):
    model.seen = h


def in_a_list(model, h):
    model.features.append(h)


def in_a_nest(model, h):
    model.named["parts"] = [Part("h", h), {"again": (h, h[:, :2])}]


def in_another_module(model, h):
    model.last.stored = 2 * h


def in_an_object(model, h):
    model.holder.held = h


def in_a_global_list(model, h):
    KEPT.append(h)


def in_a_function(model, h):
    model.named["later"] = lambda: h


def as_an_attribute(model, h):
    model.feature = h


def with_a_cycle(model, h):
    model.features[:] = [h, model.features]


KEEP = {
    "attribute": as_an_attribute,
    "buffer": in_a_buffer,
    "list": in_a_list,
    "nest": in_a_nest,
    "module": in_another_module,
    "object": in_an_object,
    "global": in_a_global_list,
    "function": in_a_function,
    "cycle": with_a_cycle,
}
FOUND = {
    "attribute": lambda model: [model.feature],
    "buffer": lambda model: [model.seen],
    "list": lambda model: model.features,
    "nest": lambda model: [model.named["parts"][0].tensor, *model.named["parts"][1]["again"]],
    "module": lambda model: [model.last.stored],
    "object": lambda model: [model.holder.held],
    "global": lambda model: KEPT,
    "function": lambda model: [model.named["later"]()],
    "cycle": lambda model: model.features[:1],
}
CALLS = {
    "margin": lambda model: llr_fast.margin(model, X),
    "exact": lambda model: llr_fast.margin(model, X, 1, method="exact"),
    "search": lambda model: llr_fast.margin(model, X, 1, method="search"),
    "one": lambda model: llr_fast.margin(model, X[:1], float("inf")),
    "directional": lambda model: llr_fast.directional_margin(model, X, X.flip(0)),
    "norms": lambda model: llr_fast.gradient_norms(model, X),
    "pattern": lambda model: llr_fast.activation_pattern(model, X),
    "density": lambda model: llr_fast.region_density(model, X, 0.1),
    "segment": lambda model: llr_fast.regions_along(model, X[:1], X[1:2]),
    "count": lambda model: llr_fast.count_linear_regions(model, [X]),
    "margin_loss": lambda model: llr_fast.MarginLoss(model)(X)[1].backward(),
    "roll": lambda model: llr_fast.ROLLLoss(model, estimator="exact")(X)[1].backward(),
    "roll_top": lambda model: llr_fast.ROLLLoss(model, estimator="exact", gamma=20)(X)[1].backward(),
    "roll_sampled": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher")(X)[1].backward(),
}


@pytest.fixture(autouse=True)
def no_tensors_of_other_tests():
    KEPT.clear()
    yield
    KEPT.clear()


def plain(tensors):
    assert tensors and all(type(t) is torch.Tensor and t.dtype == torch.float32 for t in tensors)
    return tensors


def copies_work(model):
    for name in ("later", "holder"):  # functions of functions have no pickle
        model.named.pop(name, None)
    copied = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied.append(torch.load(file, weights_only=False))
    other = Keeps(model.way)
    other.load_state_dict(model.state_dict(), strict=False)
    wanted = model(X)
    for twin in (*copied, other):
        assert torch.equal(twin(X), wanted)
    assert type(wanted) is torch.Tensor


@pytest.mark.parametrize("way", KEEP)
@pytest.mark.parametrize("call", CALLS)
def test_what_a_model_stores_is_plain_afterwards(call, way):
    torch.manual_seed(0)
    model = Keeps(way)
    CALLS[call](model)
    wanted = model.first(X).relu()
    for found in plain(FOUND[way](model)):
        if found.shape == wanted.shape and way != "module" and "segment" not in call:
            torch.testing.assert_close(found.detach(), wanted.detach())
    if "roll" not in call and call != "margin_loss":
        copies_work(model)


@pytest.mark.parametrize("way", KEEP)
def test_a_model_that_stores_has_the_margin_of_one_that_does_not(way):
    torch.manual_seed(0)
    model = Keeps(way)
    compare.margins_are_right(nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU()), X, (2,), ("auto",))
    wanted = llr_fast.margin(nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU()), X).value
    for _ in range(2):
        assert torch.equal(llr_fast.margin(model, X).value, wanted)


@pytest.mark.parametrize("way", KEEP)
@pytest.mark.parametrize("call", ["margin", "roll", "roll_sampled", "margin_loss", "directional"])
def test_what_a_model_stores_is_plain_after_an_error(call, way):
    model = Keeps(way)
    model.fails = True
    with pytest.raises(KeyError, match="the model's own"):
        CALLS[call](model)
    plain(FOUND[way](model))
    model.fails = False
    if call in ("margin", "directional"):  # torch copies no tensors with a history
        copies_work(model)
    CALLS[call](model)


def test_what_a_model_stores_is_plain_after_a_refusal():
    model = nn.Sequential(Keeps(), nn.Sigmoid())
    for call in ("margin", "roll", "margin_loss"):
        with pytest.raises(llr_fast.NotPiecewiseLinearError, match="sigmoid"):
            CALLS[call](model)
        plain([model[0].feature])


@pytest.mark.parametrize("call", CALLS)
def test_what_hooks_store_is_plain_afterwards(call):
    model, found = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU()), []
    model[0].register_forward_hook(lambda module, inputs, output: found.append((inputs[0], output)))
    model[2].register_forward_pre_hook(lambda module, inputs: found.append(inputs))
    CALLS[call](model)
    assert all(type(tensor) is torch.Tensor for pair in found for tensor in pair)


READ = {
    "add": lambda h, earlier: h + earlier,
    "first": lambda h, earlier: earlier - h,
    "cat": lambda h, earlier: torch.cat([earlier[:, :3], h[:, 3:]], 1),
    "instead": lambda h, earlier: earlier.clone(),
}


class Reads(nn.Module):
    """Adds what an earlier call stored."""

    def __init__(self, store, mode="add"):
        super().__init__()
        self.first, self.second, self.store, self.mode = nn.Linear(6, 6), nn.Linear(6, 6), store, mode

    def forward(self, x):
        h = fresh = self.first(x).relu()
        if self.store and self.store[-1].shape == h.shape:
            h = READ[self.mode](h, self.store[-1])
        self.store.append(fresh)
        return self.second(h).relu()


@pytest.mark.parametrize("mode", ["add", "first"])
@pytest.mark.parametrize("method", ["exact", "search", "auto"])
def test_a_model_that_reads_what_an_earlier_call_stored_is_refused(method, mode):
    """Also at its first call, in which the model is evaluated more than once."""
    model = Reads([], mode)
    for x in (X, X, X.flip(0), X[:1], X[1:2]):
        with pytest.raises(ValueError, match="state from call to call"):
            llr_fast.margin(model, x, method=method)
    assert all(type(t) is torch.Tensor for t in model.store)


@pytest.mark.parametrize("mode", READ)
@pytest.mark.parametrize("call", ["norms", "directional"])
def test_a_model_that_reads_what_was_stored_for_another_batch_is_refused(call, mode):
    model = Reads([], mode)
    model(X.flip(0))
    with pytest.raises(ValueError, match="state from call to call"):
        CALLS[call](model)


@contextlib.contextmanager
def in_the_middle(evaluated):
    """Another thread's evaluation, stopped in the middle: gives a tensor of it."""
    reached, go_on, found = threading.Event(), threading.Event(), []

    class Stops(nn.Module):
        def forward(self, x):
            found.append(x.relu())
            reached.set()
            assert go_on.wait(30)
            return x

    thread = threading.Thread(target=lambda: evaluated(Stops()))
    thread.start()
    assert reached.wait(30)
    try:
        yield found[0]
    finally:
        go_on.set()
        thread.join()


class Adds(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.layer, self.other = nn.Linear(6, 6), [other]

    def forward(self, x):
        return (self.layer(x) + self.other[0]).relu()


@pytest.mark.parametrize("call", ["margin", "search", "norms", "roll", "roll_sampled"])
@pytest.mark.parametrize("evaluated", ["one", "roll_sampled"])
def test_a_tensor_of_another_thread_is_refused(call, evaluated):
    outer = {
        "one": lambda model: llr_fast.activation_pattern(model, X[:1]),
        "roll_sampled": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher")(X),
    }[evaluated]
    with in_the_middle(outer) as foreign:
        assert isinstance(foreign, LinearizedTensor)
        with pytest.raises(llr_fast.NotPiecewiseLinearError, match=r"add in module .* earlier\s+evaluation"):
            CALLS[call](Adds(foreign))


def test_a_tensor_that_outlives_its_evaluation_is_refused():
    """One that a weak reference holds cannot be made plain. The plain model, which a margin runs too, stores others."""
    stored, references = [], []

    class Weak(Keeps):
        def forward(self, x):
            h = self.first(x).relu()
            references.append(weakref.ref(h))
            stored.append(lambda: h)
            return self.second(h).relu()

    llr_fast.margin(Weak(), X)
    outliving = [kept for kept in (held() for held in stored) if isinstance(kept, LinearizedTensor)]
    assert outliving
    for kept in outliving:
        with pytest.raises(llr_fast.NotPiecewiseLinearError, match="kept from an earlier"):
            kept + 1
        with pytest.raises(llr_fast.NotPiecewiseLinearError, match="kept from an earlier"):
            llr_fast.margin(Adds(kept), X)


class Checkpointed(Keeps):
    """Of parts that are computed again in the backward pass; one of them takes a tensor out of its closure."""

    def forward(self, x):
        def part(h):
            KEEP[self.way](self, h)
            return self.second(h + 0.5 * first).relu()

        first = self.first(x).relu()
        return checkpoint(part, first, use_reentrant=False)


class Plain(Checkpointed):
    def forward(self, x):
        first = self.first(x).relu()
        return self.second(first + 0.5 * first).relu()


@pytest.mark.parametrize("way", KEEP)
@pytest.mark.parametrize("call", ["roll", "roll_top", "roll_sampled", "margin_loss"])
def test_checkpoints_with_closures_train(call, way):
    torch.manual_seed(0)
    model, twin = Checkpointed(way), Plain()
    twin.load_state_dict(model.state_dict(), strict=False)
    for each in (model, twin):
        torch.manual_seed(7)
        CALLS[call](each)
    for (name, got), wanted in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(got.grad, wanted.grad, msg=name)
    held = FOUND[way](model)
    if way in ("attribute", "buffer", "list", "nest", "module"):
        plain(held)
    CALLS[call](model)
    assert torch.equal(model(X), twin(X))


def numbers(result, model):
    if isinstance(result, llr_fast.Margin):
        return [result.value, result.gradient]
    return [p.grad for p in model.parameters()] if result is None else [neurons.norm for neurons in result]


@pytest.mark.parametrize("call", ["margin", "search", "norms", "roll", "roll_top", "roll_sampled", "margin_loss"])
def test_a_second_call_finds_the_same(call):
    torch.manual_seed(0)
    model = Keeps("nest")
    torch.manual_seed(3)
    first = numbers(CALLS[call](model), model)
    model.zero_grad()
    torch.manual_seed(3)
    second = numbers(CALLS[call](model), model)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
