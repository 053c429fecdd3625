"""The source of the Triton kernels, run by Triton's interpreter.

The interpreter is chosen when the kernels are decorated, so these tests need a process of their own:
    TRITON_INTERPRET=1 python -m pytest tests/interpreter
"""

import importlib
import os

import pytest
import torch
from ops import operator_cases as oc

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run apart: TRITON_INTERPRET=1 python -m pytest tests/interpreter", allow_module_level=True)
pytest.importorskip("triton")

from llr_fast import ops
from llr_fast.backend import backend

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def setting():
    torch.manual_seed(0)
    with oc.poisoned_memory():
        yield


@pytest.mark.parametrize("op,shape,extra,transposed", [*oc.cases()])
def test_values_and_gradients(op, shape, extra, transposed):
    tensors = oc.DIFFERENTIABLE[op][1](shape, torch.float32, transposed)
    oc.assert_close(oc.computed(op, tensors, extra, "triton"), oc.expected(op, tensors, extra), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_other_types(op, dtype):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    for shape in shapes[:2]:
        tensors = inputs(shape, dtype)
        for extra in further:
            found = oc.computed(op, tensors, extra, "triton")
            oc.assert_close(found, oc.expected(op, tensors, extra), dtype)
            assert found[0].dtype == dtype and found[1].dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_only_the_gradients_asked_for(op):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    tensors = inputs(shapes[0])
    for extra in further:
        for wanted in range(len(tensors)):
            found = []
            for name in ("reference", "triton"):
                arguments = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
                with backend(name):
                    out = getattr(ops, op)(*arguments, *extra)
                    found.append(torch.autograd.grad(out[1].sum() + out[0].sum(), arguments[wanted]))
            oc.assert_close(*found, torch.float32)


def test_gradients_of_one_output_alone():
    for op, (shapes, inputs, further, _) in oc.DIFFERENTIABLE.items():
        for which in (0, 1):
            tensors = [t.requires_grad_() for t in inputs(shapes[1])]
            found = []
            for name in ("reference", "triton"):
                with backend(name):
                    out = getattr(ops, op)(*tensors, *further[0])[which]
                    loss = out.square().sum()
                    found.append(torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True))
            oc.assert_close(*found, torch.float32)


def test_an_expanded_batch_axis_is_like_a_full_one():
    tangents, slope = oc.tangent_inputs((20, 5, 1, 40))
    tangents = tangents.expand(20, 5, 40)
    for statistic in oc.STATISTICS:
        found = oc.computed("tangent_activation", (tangents, slope), (statistic,), "triton")
        oc.assert_close(found, oc.expected("tangent_activation", (tangents, slope), (statistic,)), torch.float32)


def test_the_first_of_equal_maxima_gets_the_gradient():
    """Also where the equal ones lie in different tiles, and for tangents that the batch shares."""
    for batch in (1, 2):
        tangents = torch.ones(40, batch, 3).requires_grad_()
        slope = torch.ones(2, 3)
        with backend("triton"):
            ops.tangent_activation(tangents, slope, "max_abs")[1].sum().backward()
        wanted = torch.zeros_like(tangents)
        wanted[0] = 2 / batch
        assert torch.equal(tangents.grad, wanted)


@pytest.mark.parametrize("statistic", oc.STATISTICS)
@pytest.mark.parametrize("directions", [1, 3, 20])
def test_nan_is_not_lost(directions, statistic):
    tangents, slope, weight = oc.linear_inputs((directions, 2, 2, 5, 3))
    tangents[-1, 0, 1] = torch.nan
    with backend("triton"):
        stat = ops.tangent_activation(tangents, slope, statistic)[1]
        assert stat.isnan().nonzero().tolist() == [[0, 1]]
        assert ops.masked_linear(tangents, slope, weight, statistic)[1].isnan().any(1).tolist() == [True, False]


def test_gram_matrices_are_exactly_symmetric():
    gram, slope, weight = oc.gram_inputs((2, 1, 33, 66))
    gram.requires_grad_()
    with backend("triton"):
        out, _ = ops.gram_linear(gram, slope, weight)
        out.mul(torch.randn_like(out)).sum().backward()
    assert torch.equal(out, out.mT) and torch.equal(gram.grad, gram.grad.mT)


@pytest.mark.parametrize("shape", oc.LAYER_SHAPES)
@pytest.mark.parametrize(
    "dtype,norm_dtype",
    [(torch.float32, torch.float32), (torch.float64, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("special", ["none", "equal", "zero norms", "nan"])
def test_margins(shape, dtype, norm_dtype, special):
    distances, norms = oc.layer_inputs(shape, dtype, norm_dtype, transposed=True)
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


def test_the_triton_launcher_runs(monkeypatch):
    """Equal results cannot tell a fallback from the kernel that was asked for."""
    ran = []
    tangents, slope, weight = oc.linear_inputs((3, 4, 4, 5, 7))
    gram, *_ = oc.gram_inputs((4, 4, 5, 7))
    calls = {
        "tangent_activation": lambda: ops.tangent_activation(tangents.requires_grad_(), slope, "sum_abs"),
        "masked_linear": lambda: ops.masked_linear(tangents.requires_grad_(), slope, weight, "sum_abs"),
        "gram_linear": lambda: ops.gram_linear(gram.requires_grad_(), slope, weight),
        "margin_reduce": lambda: ops.margin_reduce([slope], [slope]),
    }
    for op, call in calls.items():
        module = importlib.import_module(f"llr_fast.ops.{op}.triton")
        for name in [n for n in vars(module) if n.startswith("launch_")]:
            plain = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, name=name, plain=plain: ran.append(name) or plain(*a))
        with backend("triton"):
            out = call()[0]
        if out.requires_grad:
            out.sum().backward()
    assert ran == [
        "launch_tangent_activation", "launch_tangent_activation_backward", "launch_masked_linear",
        "launch_masked_linear_backward", "launch_gram_linear", "launch_gram_linear_backward", "launch_margin_reduce",
    ]  # fmt: skip
