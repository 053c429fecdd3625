"""A wrong argument is refused before any work, by a message that names it, what was expected and what was got."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import networks
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import llr_fast
from llr_fast.plot import plot_margins, plot_regions, plot_stability_bounds

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
PLANAR = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
X, Y = torch.randn(3, 4), torch.tensor([0, 2, 1])
LOSSES = [llr_fast.ROLLLoss, llr_fast.MarginLoss]
ENTRIES = {
    "margin": llr_fast.margin,
    "gradient_norms": llr_fast.gradient_norms,
    "activation_pattern": llr_fast.activation_pattern,
    "directional_margin": lambda model, x: llr_fast.directional_margin(model, x, x),
    "regions_along": lambda model, x: llr_fast.regions_along(model, x, x),
    "region_density": lambda model, x: llr_fast.region_density(model, x, 1.0),
    "gradient_distortion": lambda model, x: llr_fast.gradient_distortion(model, x, Y, 1.0),
    "count_linear_regions": lambda model, x: llr_fast.count_linear_regions(model, [x]),
    "evaluate": lambda model, x: llr_fast.evaluate(model, [x]),
    "ROLLLoss": lambda model, x: llr_fast.ROLLLoss(model)(x),
    "MarginLoss": lambda model, x: llr_fast.MarginLoss(model)(x),
    "plot_regions": lambda model, x: plot_regions(model, extent=(0, 1, 0, 1)),
    "plot_stability_bounds": lambda model, x: plot_stability_bounds(model, x, 0),
}


def evaluate(model, loader, **options):
    return llr_fast.evaluate(model, loader, progress=False, **options)


@pytest.mark.parametrize("entry", ENTRIES)
def test_losses_are_no_models(entry):
    for make in LOSSES:
        with pytest.raises(TypeError, match=rf"model: expected the network, got a {make.__name__} .*pass loss\.model$"):
            ENTRIES[entry](make(MODEL), X)
    with pytest.raises(TypeError, match=r"pass loss\.module\.model$"):
        ENTRIES[entry](nn.DataParallel(llr_fast.ROLLLoss(MODEL)), X)


@pytest.mark.parametrize("make", LOSSES)
def test_a_loss_inside_the_model(make):
    with pytest.raises(TypeError, match=r"model: expected a network, got one that calls a loss .*pass loss\.model$"):
        make(nn.Sequential(make(MODEL)))(X)


COMPILED = {
    "scripted": lambda: torch.jit.script(MODEL),
    "traced": lambda: torch.jit.trace(MODEL, X),
    "function": lambda: torch.jit.trace(torch.relu, X),
    "part": lambda: nn.Sequential(torch.jit.trace(MODEL, X)),
    "exported": lambda: torch.export.export(MODEL, (X,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_ahead_of_time(kind):
    model = COMPILED[kind]()
    for entry in ENTRIES.values():
        with pytest.raises(TypeError, match=r"model: .* (scripted or traced|exported); pass the eager model$"):
            entry(model, X)


def test_symbolic_traces_are_models():
    traced = torch.fx.symbolic_trace(MODEL)
    assert torch.equal(llr_fast.margin(traced, X).value, llr_fast.margin(MODEL, X).value)
    assert torch.equal(llr_fast.ROLLLoss(traced)(X)[1], llr_fast.ROLLLoss(MODEL)(X)[1])


def test_model_is_no_class():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got type"):
        llr_fast.margin(nn.ReLU, X)


def of_parameters(loss):
    return lambda parameters: torch.func.functional_call(loss, parameters, (X,))[1]


TRANSFORMS = {
    "vmap": lambda loss: torch.vmap(lambda x: loss(x[None])[1])(X),
    "grad": lambda loss: torch.func.grad(of_parameters(loss))(dict(loss.named_parameters())),
    "jvp": lambda loss: torch.func.jvp(lambda x: loss(x)[1], (X,), (X,)),
}


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_functional_transforms(name, make):
    with pytest.raises(RuntimeError, match=rf"torch\.func transforms, here {name}, .*loss\.backward\(\)"):
        TRANSFORMS[name](make(MODEL))


@pytest.mark.parametrize("make", LOSSES)
def test_functional_call_without_a_transform(make):
    loss = make(MODEL)
    assert torch.equal(of_parameters(loss)(dict(loss.named_parameters())), loss(X)[1])


def test_certificates_have_no_derivative():
    with pytest.raises(RuntimeError, match="here grad"):
        torch.func.grad(lambda x: llr_fast.margin(MODEL, x).value.sum())(X)


NUMBERS = {
    "p": lambda v: llr_fast.margin(MODEL, X, v).p,
    "p of evaluate": lambda v: next(iter(evaluate(MODEL, [X], p=(v,)).margins)),
    "q": lambda v: llr_fast.gradient_norms(MODEL, X, v)[0].norm.sum().item(),
    "radius": lambda v: llr_fast.region_density(MODEL, X, v).sum().item(),
    "radius of gradient_distortion": lambda v: (
        llr_fast.gradient_distortion(
            MODEL, X, Y, v, None, samples=2, population=2, generations=1, generator=torch.Generator().manual_seed(0)
        ).evaluations
    ),
    "percentiles": lambda v: evaluate(MODEL, [X], percentiles=[v]).percentiles[0],
    "std": lambda v: evaluate(MODEL, [X], std=v).percentile(2)[50],
    "lam": lambda v: llr_fast.ROLLLoss(MODEL, lam=v).lam,
    "C": lambda v: llr_fast.ROLLLoss(MODEL, C=v).C,
    "gamma": lambda v: llr_fast.ROLLLoss(MODEL, gamma=v).gamma,
    "lam of MarginLoss": lambda v: llr_fast.MarginLoss(MODEL, lam=v).lam,
}
COUNTS = {
    "samples": lambda v: llr_fast.ROLLLoss(MODEL, samples=v).samples,
    "directions": lambda v: llr_fast.region_density(MODEL, X, 1.0, method="exact", directions=v).sum().item(),
    "generations": lambda v: (
        llr_fast.gradient_distortion(MODEL, X, Y, 1.0, None, samples=2, population=2, generations=v).evaluations
    ),
}


@pytest.mark.parametrize("value", [np.float64(2), np.float32(2), np.int64(2)], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_numbers(name, value):
    found = NUMBERS[name](value)
    assert found == NUMBERS[name](2) and type(found) in (int, float)


@pytest.mark.parametrize("name", COUNTS)
def test_integers_of_numpy_are_integers(name):
    assert COUNTS[name](np.int64(2)) == COUNTS[name](2)


@pytest.mark.parametrize("value", [torch.tensor(2), torch.tensor([1.0, 2.0]), np.array(2.0), True, "2"], ids=repr)
@pytest.mark.parametrize("name", [name for name in (*NUMBERS, *COUNTS) if name != "std"])
def test_tensors_booleans_and_words_are_no_numbers(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{name.split()[0]}: expected .*got ['\w]") as error:
        (NUMBERS | COUNTS)[name](value)
    one_entry = isinstance(value, (torch.Tensor, np.ndarray)) and not value.ndim
    assert str(error.value).endswith("pass its .item()") == one_entry


def test_options_that_change_between_steps_are_checked():
    roll, distance = llr_fast.ROLLLoss(MODEL), llr_fast.MarginLoss(MODEL)
    roll.lam = distance.lam = np.float32(0.5)
    assert roll(X)[1].requires_grad and distance(X)[1].requires_grad and type(roll.lam) is float
    for name, value in {"lam": torch.tensor(1.0), "samples": 0, "estimator": "sobol", "gamma": 101}.items():
        roll = llr_fast.ROLLLoss(MODEL)
        setattr(roll, name, value)
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            roll(X)


def test_norms_are_counted_once():
    assert len(evaluate(MODEL, [X], p=(2, 2.0, np.float64(2))).margins[2]) == 3


BATCHES = {
    "tensor": (X, TypeError, "an iterable of batches, got one tensor"),
    "data set": (TensorDataset(X, Y), TypeError, r"got the data set TensorDataset.*DataLoader\(dataset, batch_size\)"),
    "number": (3, TypeError, "an iterable of batches, got int"),
    "none": ([], ValueError, "at least one batch, got none"),
    "empty": ([X, X[:0]], ValueError, r"batch 1: x: expected shape .* got \(0, 4\)"),
    "empty tuple": ([X, ()], TypeError, "tensors, .* got tuple in batch 1"),
    "dict": ([{"x": X}], TypeError, "tensors, .* got dict in batch 0"),
    "integers": ([(X, Y), (X.long(), Y)], ValueError, "batch 1: x: expected .* floating-point dtype, got torch.int64"),
    "nan": ([X * math.nan], ValueError, "batch 0: x: expected finite values"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_are_named_as_the_user_knows_them(name):
    batches, error, message = BATCHES[name]
    for argument, entry in {"batches": llr_fast.count_linear_regions, "loader": llr_fast.evaluate}.items():
        with pytest.raises(error, match=f"^{argument}: .*{message}"):
            entry(MODEL, batches, progress=False)


LABELS = {
    "list": ([0, 2, 1], TypeError, "a torch.Tensor, got list in batch 0"),
    "floats": (Y.float(), ValueError, "from 0 to 2, integers, got torch.float32 in batch 0"),
    "nan": (Y * math.nan, ValueError, "from 0 to 2, integers, got torch.float32 with nan"),
    "large": (Y + 1, ValueError, "from 0 to 2, integers, got torch.int64 with 3"),
    "negative": (Y - 100, ValueError, "from 0 to 2, integers, got torch.int64 with -100"),
    "shape": (Y[:2], ValueError, r"of shape \(3,\), got \(2,\)"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    y, error, message = LABELS[name]
    with pytest.raises(error, match=f"^loader: expected labels .*{message}"):
        evaluate(MODEL, [(X, y)])
    assert llr_fast.count_linear_regions(MODEL, [(X, y)], progress=False).points == 3


@pytest.mark.parametrize("bad", [torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0.5]), torch.tensor([0, 1, math.nan])])
def test_labels_of_one_logit(bad):
    model, y = nn.Sequential(MODEL, nn.Linear(3, 1)), torch.tensor([0, 1, 0])
    accuracies = {evaluate(model, [(X, labels)]).accuracy for labels in (y, y.bool(), y.float(), y.byte())}
    assert len(accuracies) == 1
    with pytest.raises(ValueError, match="loader: expected labels from 0 to 1"):
        evaluate(model, [(X, bad)])


class ModelOutput(OrderedDict):
    """As in Hugging Face's transformers: entries are attributes too."""

    def __getattr__(self, name):
        return self[name] if name in self else super().__getattribute__(name)


@dataclass
class Output:
    logits: torch.Tensor


class Named(NamedTuple):
    loss: float
    logits: torch.Tensor


def returning(output):
    return nn.Sequential(MODEL, networks.Apply(output))


@pytest.mark.parametrize(
    "output",
    [
        lambda t: (t, t[:, :1]),
        lambda t: [t],
        lambda t: {"hidden": t[:, :1], "logits": t},
        lambda t: ModelOutput(loss=None, logits=t),
        Output,
        lambda t: Named(0.0, t),
    ],
    ids=["tuple", "list", "dict", "ModelOutput", "dataclass", "NamedTuple"],
)
def test_logits_are_found_in_the_output(output):
    report, expected = evaluate(returning(output), [(X, Y)]), evaluate(MODEL, [(X, Y)])
    assert report.accuracy == expected.accuracy and torch.equal(report.margins[2], expected.margins[2])
    assert report.regions == expected.regions and expected.regions.lower > 1


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda t: {"out": t}, "got dict with the entries out; wrap the model"),
        (lambda t: ({"logits": t}, t), "got tuple; wrap the model"),
        (lambda t: t.unsqueeze(2), r"got shape \(3, 3, 1\)"),
    ],
)
def test_outputs_without_logits(output, message):
    with pytest.raises(ValueError, match=f"^model: expected logits.*{message}"):
        evaluate(returning(output), [(X, Y)])
    assert evaluate(returning(output), [X]).points == 3


def test_a_percentile_of_more_than_torch_sorts():
    values = torch.arange(2**24 + 1, dtype=torch.float64)
    values[-(2**22) :] = math.inf
    report = llr_fast.Report(len(values), None, llr_fast.RegionCount(1, 1, 1), {2: values}, {2: True}, (0, 50, 90), "")
    assert report.percentile(2) == {0: 0.0, 50: 2.0**23, 90: math.inf}
    with pytest.raises(ValueError, match="p: expected one of 2, got 1"):
        report.percentile(1)


OTHERS = {
    "generator": (lambda: llr_fast.margin(MODEL, X, generator=0), TypeError, r"torch\.Generator or None, got int"),
    "generator of ROLLLoss": (lambda: llr_fast.ROLLLoss(MODEL, generator=0), TypeError, "Generator"),
    "percentiles": (lambda: evaluate(MODEL, [X], percentiles=50), TypeError, "several numbers, got int"),
    "method": (lambda: evaluate(MODEL, [], method="fast"), ValueError, "'auto', got 'fast'"),
    "group": (lambda: evaluate(MODEL, [X], group=0), TypeError, "ProcessGroup .*got int"),
    "group of count": (lambda: llr_fast.count_linear_regions(MODEL, [X], group=True), TypeError, "got bool"),
    "std of a boolean": (lambda: evaluate(MODEL, [X], std=True), TypeError, "a number, .* got bool"),
    "std of a word": (lambda: evaluate(MODEL, [X], std="2"), TypeError, "a number, .* got str"),
    "std": (lambda: evaluate(MODEL, [X], std=[]), ValueError, r"got shape \(0,\)$"),
    "start": (lambda: llr_fast.regions_along(MODEL, X.long(), X), ValueError, "floating-point"),
    "end": (lambda: llr_fast.regions_along(MODEL, X, X.tolist()), TypeError, "torch.Tensor, got list"),
    "x": (lambda: llr_fast.margin(MODEL, X).boundary_point(X.tolist()), TypeError, "torch.Tensor, got list"),
    "clip": (lambda: llr_fast.gradient_distortion(MODEL, X, Y, 1.0, 5), ValueError, "two numbers, .* got 5"),
    "clip as rising": (lambda: llr_fast.gradient_distortion(MODEL, X, Y, 1.0, (1, 0)), ValueError, "lower one first"),
    "margins": (lambda: plot_margins(X), TypeError, r"a mapping .* got Tensor of shape \(3, 4\)"),
    "margins['a']": (lambda: plot_margins({"a": [1.0]}), TypeError, "torch.Tensor, got list"),
    "p": (lambda: plot_margins({"a": X.abs()}, p=3), ValueError, "one of 1, 2, inf, got 3"),
    "x of plot": (lambda: plot_regions(PLANAR, X), ValueError, r"points \[B, 2\], got shape \(3, 4\)"),
    "y": (lambda: plot_regions(PLANAR, X[:, :2], y=[0, 1, 2]), ValueError, "the classes of 3 points, got list"),
    "through": (lambda: plot_regions(MODEL, through=X.long()), ValueError, "floating-point dtype, got torch.int64"),
    "through finite": (lambda: plot_regions(MODEL, through=X * math.nan), ValueError, "finite"),
    "extent": (lambda: plot_regions(PLANAR, extent=(0, 1)), ValueError, r"left, right, bottom, top, got \(0, 1\)"),
    "target": (lambda: plot_regions(PLANAR, X[:, :2], target=3), ValueError, "a class from -3 to 2, got 3"),
    "resolution": (lambda: plot_regions(PLANAR, X[:, :2], resolution=0), ValueError, "at least 1, got 0"),
    "channel": (lambda: plot_stability_bounds(MODEL, X, 0.5), TypeError, "an integer, got float"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments(name):
    call, error, message = OTHERS[name]
    with pytest.raises(error) as found:
        call()
    assert str(found.value).startswith(f"{name.split()[0]}: expected")
    assert found.match(message)
