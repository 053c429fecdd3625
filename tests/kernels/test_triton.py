"""The Triton kernels of every operator against the oracle."""

import importlib
import itertools
import math

import operators as ops
import pytest
import torch
from ops import operator_cases as oc

from llr_fast.dispatch import backend

pytestmark = pytest.mark.triton
DTYPES = [torch.float64, torch.float16, torch.bfloat16]
# Rows that load 16 bytes at a time, and products of whole tiles.
ALIGNED = {"tangent_activation": (4, 3, 3, 64), "masked_linear": (32, 4, 1, 64, 64), "gram_linear": (2, 1, 64, 128)}


@pytest.fixture(autouse=True)
def poisoned():
    with oc.poisoned_memory():
        yield


@pytest.mark.parametrize("op,shape,extra,transposed", [*oc.cases()])
def test_values_and_gradients(op, shape, extra, transposed, device):
    tensors = oc.inputs(op, shape, torch.float32, transposed, device)
    oc.assert_close(oc.computed(op, tensors, extra, "triton"), oc.expected(op, tensors, extra), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_other_types(op, dtype, device):
    shapes, _, further, _ = oc.DIFFERENTIABLE[op]
    for shape in (*shapes[:2], ALIGNED[op]):
        tensors = oc.inputs(op, shape, dtype, device=device)
        for extra in further:
            if shape == ALIGNED[op] and "sum_squares" not in extra and op != "gram_linear" and dtype.itemsize == 2:
                continue  # among so many, rounding decides which is the largest, and the sign of one near zero
            found = oc.computed(op, tensors, extra, "triton")
            oc.assert_close(found, oc.expected(op, tensors, extra), dtype)
            assert found[0].dtype == dtype and found[1].dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_only_the_gradients_asked_for(op, device):
    shapes, _, further, _ = oc.DIFFERENTIABLE[op]
    tensors = oc.inputs(op, shapes[0], device=device)
    for extra, wanted in itertools.product(further, itertools.product([False, True], repeat=len(tensors))):
        found, expected = (oc.computed(op, tensors, extra, name, *wanted) for name in ("triton", "reference"))
        oc.assert_close(found, expected, torch.float32)


def test_gradients_of_one_output_alone(device):
    for op, (shapes, _, further, _) in oc.DIFFERENTIABLE.items():
        for which in (0, 1):
            tensors = [t.requires_grad_() for t in oc.inputs(op, shapes[1], device=device)]
            found = []
            for name in ("reference", "triton"):
                with backend(name):
                    out = getattr(ops, op)(*tensors, *further[0])[which]
                    loss = out.square().sum()
                    found.append(torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True))
            oc.assert_close(*found, torch.float32)


def test_an_expanded_batch_axis_is_like_a_full_one(device):
    tangents, slope = oc.inputs("tangent_activation", (20, 5, 1, 40), device=device)
    tangents = tangents.expand(20, 5, 40)
    for statistic in oc.STATISTICS:
        found = oc.computed("tangent_activation", (tangents, slope), (statistic,), "triton")
        oc.assert_close(found, oc.expected("tangent_activation", (tangents, slope), (statistic,)), torch.float32)


def test_the_first_of_equal_maxima_gets_the_gradient(by_triton):
    """Also where the equal ones lie in different tiles, and for tangents that the batch shares."""
    for batch in (1, 2):
        tangents = torch.ones(40, batch, 3, device=by_triton).requires_grad_()
        slope = torch.ones(2, 3, device=by_triton)
        ops.tangent_activation(tangents, slope, "max_abs")[1].sum().backward()
        wanted = torch.zeros_like(tangents)
        wanted[0] = 2 / batch
        assert torch.equal(tangents.grad, wanted)


@pytest.mark.parametrize("statistic", oc.STATISTICS)
@pytest.mark.parametrize("directions", [1, 3, 20])
def test_nan_is_not_lost(directions, statistic, by_triton):
    tangents, slope, weight = oc.inputs("masked_linear", (directions, 2, 2, 5, 3), device=by_triton)
    tangents[-1, 0, 1] = torch.nan
    stat = ops.tangent_activation(tangents, slope, statistic)[1]
    assert stat.isnan().nonzero().tolist() == [[0, 1]]
    assert ops.masked_linear(tangents, slope, weight, statistic)[1].isnan().any(1).tolist() == [True, False]


def test_gram_matrices_are_exactly_symmetric(by_triton):
    gram, slope, weight = oc.inputs("gram_linear", (2, 1, 33, 66), device=by_triton)
    gram.requires_grad_()
    out, _ = ops.gram_linear(gram, slope, weight)
    out.mul(torch.randn_like(out)).sum().backward()
    assert torch.equal(out, out.mT) and torch.equal(gram.grad, gram.grad.mT)


@pytest.mark.parametrize("fit,shape", [(1, (3, 3, 5, 4)), (2, (5, 1, 5, 4)), (17, (35, 35, 3, 2)), (17, (35, 1, 3, 2))])
def test_gram_linear_in_groups_of_samples(fit, shape, by_triton, monkeypatch):
    B, _, n, outputs = shape
    launcher = importlib.import_module("llr_fast.ops.gram_linear.triton")
    monkeypatch.setattr(launcher, "SCRATCH", fit * n * outputs * 4)
    parts = launcher.groups(B, n * outputs * 4)
    assert [i for part in parts for i in range(B)[part]] == list(range(B)) and len(parts) == -(-B // min(fit, 16))
    tensors = oc.inputs("gram_linear", shape, device=by_triton)
    oc.assert_close(
        oc.computed("gram_linear", tensors, (True,), "triton"),
        oc.expected("gram_linear", tensors, (True,)),
        torch.float32,
    )


@pytest.mark.parametrize("shape", oc.LAYER_SHAPES)
@pytest.mark.parametrize(
    "dtype,norm_dtype",
    [(torch.float32, torch.float32), (torch.float64, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("special", ["none", "equal", "zero norms", "nan"])
def test_margins(shape, dtype, norm_dtype, special, device):
    layers = oc.layer_inputs(shape, dtype, norm_dtype, transposed=True)
    distances, norms = ([t.to(device) for t in ts] for ts in layers)
    if special == "equal":
        distances, norms = ([torch.ones_like(t) for t in ts] for ts in (distances, norms))
    if special == "zero norms":
        norms = [torch.zeros_like(n) for n in norms]
    if special == "nan":
        distances[0][:1, -1:] = torch.nan
    found = []
    for name in ("reference", "triton"):
        with backend(name):
            bounds = ops.smallest_bounds(distances, norms, 5)
            found.append((*ops.margin_reduce(distances, norms), bounds[0], *(() if special == "equal" else bounds[1:])))
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0 if dtype != torch.bfloat16 else 1e-2, atol=0, equal_nan=True)


def test_the_kernels_run(ran, device):
    slope = torch.ones(2, 3, device=device)
    for op, (shapes, _, further, _) in oc.DIFFERENTIABLE.items():
        oc.computed(op, oc.inputs(op, shapes[0], device=device), further[0], "triton")
    with backend("triton"):
        ops.margin_reduce([slope], [slope])
        ops.smallest_bounds([slope], [slope], 2)
    names = [op + suffix for op in oc.DIFFERENTIABLE for suffix in ("", "_backward")]
    launchers = [getattr(_kernels(n.removesuffix("_backward")), f"launch_{n}") for n in names]
    margins = _kernels("margin_reduce")
    assert ran == [*launchers, margins.launch_margin_reduce, margins.launch_smallest_bounds]


def _kernels(op):
    return importlib.import_module(f"llr_fast.ops.{op}.triton")


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_runs_are_equal_to_the_last_bit(op, device):
    shapes, _, further, _ = oc.DIFFERENTIABLE[op]
    tensors = oc.inputs(op, max(shapes, key=math.prod), device=device)
    for extra in further:
        for a, b in zip(*(oc.computed(op, tensors, extra, "triton") for _ in range(2)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("directions", [3, 20])
def test_more_elements_than_32_bits_count(by_triton, directions):
    if by_triton == "cpu" or torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("takes a GPU with 40 GB")
    n = 2**31 // directions + 128
    tangents = torch.zeros(directions, 1, n, dtype=torch.bfloat16, device=by_triton)
    tangents[-1, 0, -100:] = torch.arange(100)
    slope = torch.full_like(tangents[0], 2)
    out, stat = ops.tangent_activation(tangents.requires_grad_(), slope, "sum_abs")
    assert out[-1, 0, -100:].tolist() == list(range(0, 200, 2)) and stat[0, -100:].tolist() == list(range(100))
    assert not out[:, 0, :-100].any() and not stat[0, :-100].any()
    (gradient,) = torch.autograd.grad(stat.sum(), tangents)
    assert gradient[-1, 0, -99:].eq(1).all() and not gradient[:, 0, :-100].any()
