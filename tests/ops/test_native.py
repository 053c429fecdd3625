"""The C++ kernels against the oracle, for every instruction set that this machine runs."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import operators as ops
import pytest
import torch
from ops import operator_cases as oc

from llr_fast.dispatch import backend, backends, implementation

pytestmark = pytest.mark.skipif(backends()["native"] is not None, reason="the C++ extension is not built")


@pytest.fixture(autouse=True)
def native():
    torch.manual_seed(0)
    with backend("native"):
        yield


@pytest.mark.parametrize("op", sorted(sys.modules["llr_fast.dispatch"]._packages))
def test_cpu_tensors_get_the_kernels(op):
    with backend("auto"):
        assert implementation(op, torch.device("cpu")) is getattr(torch.ops.llr_fast_native, op)


@pytest.mark.parametrize("op,shape,extra,transposed", [*oc.cases()])
def test_values_and_gradients(op, shape, extra, transposed):
    for dtype in (torch.float32, torch.float64):
        tensors = oc.DIFFERENTIABLE[op][1](shape, dtype, transposed)
        found = oc.computed(op, tensors, extra, "native")
        oc.assert_close(found, oc.expected(op, tensors, extra), dtype)
        assert all(t.is_contiguous() for t in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_low_precision(op, dtype):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    tensors = inputs(shapes[0], dtype)
    for extra in further:
        found = oc.computed(op, tensors, extra, "native")
        oc.assert_close(found, oc.expected(op, tensors, extra), dtype)
        assert (found[0].dtype, found[1].dtype) == (dtype, torch.float32)


# [K, B, B or 1, I, O]: at least 32 directions, a quarter of the slopes dead and more samples than threads; of these
# more than one block of 96 directions.
GATHERED_SHAPES = [(200, 5, 1, 20, 17), (200, 5, 5, 33, 9), (32, 9, 9, 9, 70), (97, 4, 1, 5, 3)]


@pytest.mark.parametrize("extra", [("sum_squares", True), ("sum_abs", True), ("max_abs", True), ("sum_squares", False)])
@pytest.mark.parametrize("shape", GATHERED_SHAPES)
def test_gradients_where_few_are_active(shape, extra):
    """Sample by sample, with active neurons alone, which only happens where slopes need no gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tensors = oc.linear_inputs(shape, torch.float64)
        wanted = oc.outputs_and_gradients(oc.oracle_masked_linear, tensors, extra, (True, False, True))
        oc.assert_close(
            oc.computed("masked_linear", tensors, extra, "native", True, False, True), wanted, torch.float64
        )
    finally:
        torch.set_num_threads(threads)


def test_the_kernels_run(monkeypatch):
    """Equal results cannot tell a fallback from the kernel that was asked for."""
    ran, plain = [], implementation
    monkeypatch.setattr(sys.modules["llr_fast.dispatch"], "implementation", lambda *a: ran.append(plain(*a)) or ran[-1])
    for op, (shapes, inputs, further, _) in oc.DIFFERENTIABLE.items():
        oc.computed(op, inputs(shapes[0]), further[0], "native")
    native = torch.ops.llr_fast_native
    assert ran == [getattr(native, op + suffix) for op in oc.DIFFERENTIABLE for suffix in ("", "_backward")]


@pytest.mark.parametrize("n", [2048, 2049, 5003])
@pytest.mark.parametrize("statistic", oc.STATISTICS)
def test_more_than_one_block_of_neurons(n, statistic):
    for shape in ((3, 2, 1, n), (3, 2, 2, n)):
        tensors = oc.tangent_inputs(shape)
        found = oc.computed("tangent_activation", tensors, (statistic,), "native")
        oc.assert_close(found, oc.expected("tangent_activation", tensors, (statistic,)), torch.float32)


@pytest.mark.parametrize("n", [1 << 21, (1 << 21) + 3])  # aligned rows bypass the cache, others do not
def test_outputs_larger_than_the_cache(n):
    tangents, slope = torch.randn(3, 1, n), torch.randn(1, n)
    out, stat = ops.tangent_activation(tangents, slope, "sum_squares")
    assert torch.equal(out, tangents * slope)
    torch.testing.assert_close(stat, tangents.square().sum(0))
    (gradient,) = torch.autograd.grad(
        ops.tangent_activation(tangents.requires_grad_(), slope, "sum_abs")[0].sum(), tangents
    )
    assert torch.equal(gradient, slope.expand_as(gradient))


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_only_the_gradients_asked_for(op):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    tensors = inputs(shapes[0])
    for extra, wanted in itertools.product(further, itertools.product([False, True], repeat=len(tensors))):
        found, expected = (oc.computed(op, tensors, extra, name, *wanted) for name in ("native", "reference"))
        oc.assert_close(found, expected, torch.float32)


def test_an_expanded_batch_axis_is_like_a_full_one():
    tangents, slope = oc.tangent_inputs((3, 4, 1, 5))
    for extra in oc.STATISTICS:
        found = oc.computed("tangent_activation", (tangents.expand(3, 4, 5), slope), (extra,), "native")
        oc.assert_close(
            found, oc.expected("tangent_activation", (tangents.expand(3, 4, 5), slope), (extra,)), torch.float32
        )


@pytest.mark.parametrize("statistic", oc.STATISTICS)
def test_nan_reaches_the_statistic(statistic):
    tangents = torch.randn(4, 1, 40)
    tangents[2, 0, 7] = torch.nan
    stat = ops.tangent_activation(tangents, torch.ones(1, 40), statistic)[1]
    assert stat.isnan().nonzero().tolist() == [[0, 7]]


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_opcheck(op):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    for extra in further:
        tensors = [t.requires_grad_() for t in inputs(shapes[0])]
        torch.library.opcheck(getattr(torch.ops.llr_fast, op).default, (*tensors, *extra))


@pytest.mark.parametrize("shape", [*oc.LAYER_SHAPES, (2, (70_000, 3))])
@pytest.mark.parametrize(
    "dtypes", [("float64", "float32"), ("float64",) * 2, ("float32",) * 2, ("bfloat16", "float64")]
)
def test_margins_equal_the_reference(shape, dtypes):
    """Divisions are exact to the last bit, so the values are equal too. Ties go to the lowest neuron in both."""
    distances, norms = oc.layer_inputs(shape, *(getattr(torch, name) for name in dtypes))
    if min(shape[0], len(shape[1])) > 1:
        distances[0][1, :1] = torch.nan
    for function, count in ((ops.margin_reduce, ()), (ops.smallest_bounds, (3,)), (ops.smallest_bounds, (5000,))):
        found = function(distances, norms, *count)
        with backend("reference"):
            expected = function(distances, norms, *count)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
        if dtypes[0] != "bfloat16" or not count:
            assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])


def test_an_unknown_instruction_set_is_an_error():
    script = (
        "import torch, llr_fast\n"
        "from llr_fast.ops.gram_norms import gram_norms\n"
        "llr_fast.set_backend('native')\n"
        "gram_norms([torch.ones(1, 1)], [])"
    )
    environment = os.environ | {"LLR_FAST_ISA": "mmx"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "LLR_FAST_ISA=mmx" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.skipif("LLR_FAST_ISA" in os.environ, reason="this is such a run")
def test_every_instruction_set(isa):
    """The choice is made once in a process, so these tests run again in another one for each that did not run here."""
    if isa == torch.ops.llr_fast_native.instruction_set():
        pytest.skip(f"the other tests of this file run {isa} in this process")
    environment = os.environ | {"LLR_FAST_ISA": isa, "OMP_NUM_THREADS": "1"}
    name = [sys.executable, "-c", "import llr_fast, torch; llr_fast.set_backend('native'); "
            "print(torch.ops.llr_fast_native.instruction_set())"]  # fmt: skip
    probe = subprocess.run(name, env=environment, capture_output=True, text=True)
    if "this machine runs no such kernels" in probe.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert probe.stdout.strip() == isa
    folder = Path(__file__).parent
    names = ("test_native.py", "test_gram_norms.py", "test_roll_activation.py", "test_roll_max_pool.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-k",
        "native and not compiled and not opcheck",
        "-p",
        "no:cacheprovider",
        *(str(folder / name) for name in names),
    ]
    result = subprocess.run(command, env=environment, cwd=folder.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
