"""Every function that has a rule: the bound of its rounding holds, or the function is refused by name.

The bounds are those of float64; here functions and bounds are computed with the unit of float32, whose errors an
evaluation in float64 shows.
"""

import compare
import networks
import pytest
import test_table
import torch
from torch import Tensor, nn

import llr_fast
from llr_fast.linearized import layers, local
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.evaluation import Evaluation, Settings
from llr_fast.linearized.linearize import linearize
from llr_fast.linearized.tape import Tape, Taped

# Those whose weights are themselves rounded
REFUSED = {"interpolate", "rrelu", "rrelu_", "grid_sample"}
REFUSED |= {"fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"}


class Once(nn.Module):
    """The function alone, of an input that nothing rounded; `numbers` are those of its results on the tape."""

    def __init__(self, function, example):
        super().__init__()
        self.function, self.example, self.numbers = function, example, []

    def forward(self, x):
        found = self.example.call(self.function, 1 * x, lambda constant: constant)
        found = list(found) if isinstance(found, (tuple, list)) else [found]
        self.numbers = [part.linearization.number for part in found]
        return found


def evaluated(model: nn.Module, x: Tensor, bounds: bool) -> tuple[list[Tensor], Tape]:
    tape = Tape(torch.float64)
    settings = Settings(certificate=True, declared=torch.float64, bounds=bounds)
    with torch.no_grad():
        outputs, _ = linearize(x, Taped(tape), Evaluation(model, layers.values, settings))
    return outputs, tape


def errors_of(tape: Tape, x: Tensor) -> dict[int, Tensor]:
    """Bounds of the errors of all values: |S| times those of the operands, and the operation's own."""
    known = {0: torch.zeros_like(x, dtype=torch.float64)}
    for entry in tape.entries:
        operands = [Directions(known[number].unsqueeze(0)) for number in entry.operands]
        parts = len(entry.results) > 1
        results = entry.operation.apply(*operands) if parts else [entry.operation.absolute(*operands)]
        found = [result.tangents[0] + (0 if e is None else e) for result, e in zip(results, [entry.local.error] * 9)]
        known |= dict(zip(entry.results, found, strict=True))
    return known


def worst(function, example, monkeypatch) -> float:
    """The largest error of a result, as a part of its bound."""
    monkeypatch.setattr(local, "UNIT", 2.0**-24)
    model = Once(function, example)
    x = torch.randn(test_table.B, *example.shape, generator=torch.Generator().manual_seed(2))
    outputs, tape = evaluated(model, x, bounds=True)
    numbers = model.numbers
    truth, _ = evaluated(model, x.double(), bounds=False)
    bounds = errors_of(tape, x)
    ratio = 0.0
    for output, exact, number in zip(outputs, truth, numbers, strict=True):
        error = (output.double() - exact).abs()
        ratio = max(ratio, float((error / bounds[number]).nan_to_num(nan=0.0, posinf=torch.inf).max()))
    return ratio


def is_refused(function, example) -> bool:
    try:
        llr_fast.margin(test_table.Around(function, example), test_table.inputs(), rigorous=True)
    except llr_fast.NotPiecewiseLinearError as error:
        assert "rigorous=True" in str(error)
        return True
    return False


@pytest.mark.parametrize("function, example", test_table.cases(refused=False))
def test_local_errors_are_bounded(function, example, monkeypatch):
    name = test_table.function_name(function)
    if (name in REFUSED or not example.bounded) and is_refused(function, example):
        return
    assert worst(function, example, monkeypatch) <= 1


@pytest.mark.parametrize("function, example", test_table.cases(refused=False))
def test_margins_lie_within_their_enclosures(function, example):
    name = test_table.function_name(function)
    if is_refused(function, example):
        assert name in REFUSED or not example.bounded
        return
    model, x = test_table.Around(function, example), test_table.inputs()
    value = llr_fast.margin(model, x).value
    is_first = example is test_table.EXAMPLES[name][0]
    for method in ("auto", "search") if is_first else ("auto",):
        found = llr_fast.margin(model, x, method=method, rigorous=True)
        assert found.proven.all()
        assert (found.lower <= value * (1 + 1e-9)).all() and (found.upper >= value * (1 - 1e-9)).all()
        assert (found.lower >= value * (1 - 1e-6)).all() and (found.upper <= value * (1 + 1e-6)).all()


def test_bounds_that_are_too_small_are_noticed(monkeypatch):
    true = local.gamma
    monkeypatch.setattr(local, "gamma", lambda terms: true(terms) / 8)
    (function,) = [f for f in test_table.functions()["mul"]][:1]
    found = max(worst(function, example, monkeypatch) for example in test_table.EXAMPLES["mul"])
    assert found > 1


def certified(function):
    model = networks.Apply(lambda x: function(x).relu() - 0.1)
    return llr_fast.margin(model, test_table.inputs(), rigorous=True)


def test_a_factor_that_is_rounded_is_refused():
    """The mean of a mask is a constant of the linear region, but not the exact one; a sum with it is enclosed."""
    assert certified(lambda x: x * (x > 0)).proven.all()
    assert certified(lambda x: x + (x > 0).double().mean(1, keepdim=True)).proven.all()
    for product in (lambda x, m: x * m, lambda x, m: x / (1 + m), lambda x, m: torch.einsum("bi,bj->bi", x, m)):
        with compare.refused(llr_fast.NotPiecewiseLinearError, "rigorous=True"):
            certified(lambda x, product=product: product(x, (x > 0).double().mean(1, keepdim=True)))
    with compare.refused(llr_fast.NotPiecewiseLinearError, "rigorous=True"):
        certified(lambda x: x * ((x > 0).double().mean(1, keepdim=True) > 0.3))


def test_rounding_of_what_is_constant_in_a_region_counts():
    def shifted(steps):
        def function(x):
            share = (x > -9).double().mean(1, keepdim=True)
            for _ in range(steps):
                share = share * 1.1 / 1.1
            return x + share - 1

        return function

    long, short = (certified(shifted(steps)) for steps in (500, 0))
    assert long.proven.all() and short.proven.all()
    assert (long.upper - long.lower > 500 * local.UNIT).all() and (short.upper - short.lower < 50 * local.UNIT).all()
