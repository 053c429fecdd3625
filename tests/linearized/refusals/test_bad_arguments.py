"""Inputs, directions and options that make no sense raise an error that says which one and what it got."""

import math

import pytest
import torch
from compare import refused
from refusal_cases import DTYPE, RELU, X

import llr_fast

INPUTS = {
    "integer": (X.long(), "int64"),
    "complex": (X.to(torch.complex128), "complex"),
    "boolean": (X > 0, "bool"),
    "one_axis": (X[0], "4"),
    "empty_batch": (X[:0], "0"),
    "nan": (X.clone().index_fill_(1, torch.tensor([2]), math.nan), "[Nn]a[Nn]|finite"),
    "infinite": (X.clone().index_fill_(1, torch.tensor([2]), math.inf), "inf|finite"),
    "device": (X.to("meta"), "meta"),
}
ENTRIES = {
    "margin": llr_fast.margin,
    "directional_margin": lambda model, x: llr_fast.directional_margin(model, x, x),
    "gradient_norms": llr_fast.gradient_norms,
    "activation_pattern": llr_fast.activation_pattern,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", INPUTS)
def test_bad_input(name, entry):
    x, got = INPUTS[name]
    with refused(ValueError, "x") as error:
        ENTRIES[entry](RELU, x)
    assert error.match(got)


@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
@pytest.mark.parametrize("name", ["integer", "one_axis", "empty_batch", "device"])
def test_bad_input_of_losses(name, make):
    with refused(ValueError, match=r"\bx\b"):
        make(RELU)(INPUTS[name][0])


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_kinds(entry):
    with refused(TypeError, match=r"\bx\b.*list"):
        ENTRIES[entry](RELU, X.tolist())
    with refused(TypeError, match=r"model.*function"):
        ENTRIES[entry](lambda x: x.relu(), X)


@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
def test_losses_wrap_modules(make):
    with refused(TypeError, match="model"):
        make(torch.relu)
    with refused(TypeError, match=r"\bx\b"):
        make(RELU)(X.tolist())


@pytest.mark.parametrize(
    "options, name",
    [
        ({"p": 3}, "p"),
        ({"p": 0}, "p"),
        ({"p": "two"}, "p"),
        ({"p": None}, "p"),
        ({"method": "fast"}, "method"),
        ({"failure_probability": 0.0}, "failure_probability"),
        ({"failure_probability": 1.0}, "failure_probability"),
        ({"failure_probability": -1e-3}, "failure_probability"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_options_of_margin(options, name):
    with refused(ValueError, match=rf"\b{name}\b.*{next(iter(options.values()))}"):
        llr_fast.margin(RELU, X, **options)


def test_bad_q():
    with refused(ValueError, match=r"\bq\b.*3"):
        llr_fast.gradient_norms(RELU, X, 3)


@pytest.mark.parametrize(
    "direction",
    [torch.ones(2, 3, dtype=DTYPE), torch.ones(4, dtype=DTYPE), torch.full((2, 4), math.nan, dtype=DTYPE), X.long()],
    ids=["shape", "axes", "nan", "integer"],
)
def test_bad_direction(direction):
    with refused(ValueError, match="direction"):
        llr_fast.directional_margin(RELU, X, direction)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": -1},
        {"gamma": 100.5},
        {"gamma": math.nan},
        {"samples": 0},
        {"samples": -2},
        {"lam": -1.0},
        {"lam": math.nan},
        {"C": -0.5},
        {"estimator": "sobol"},
    ],
    ids=str,
)
def test_bad_options_of_roll(options):
    ((name, value),) = options.items()
    with refused(ValueError, match=rf"\b{name}\b.*{value}"):
        llr_fast.ROLLLoss(RELU, **options)


def test_bad_option_of_margin_loss():
    with refused(ValueError, match=r"\blam\b.*-1"):
        llr_fast.MarginLoss(RELU, lam=-1)


def test_model_that_does_not_fit_the_input_says_so():
    with refused(ValueError, "linear", "first.0", match="mat1 and mat2"):
        llr_fast.margin(RELU, torch.randn(2, 7, dtype=DTYPE))
