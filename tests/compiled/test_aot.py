"""Every configuration that the launchers can choose, compiled: it fits the chip and spills nothing.

Products of matrices, which fill the registers, for every GPU of NVIDIA's; of the other kernels, which take few of them,
every configuration for sm_90, and one of each kernel and type elsewhere. In float64, and for AMD's GPUs, one of each.
"""

import contextlib
import multiprocessing
import os

import pytest
import torch
from ops import operator_cases as oc
from ops import roll_activation_cases as rc
from ops import roll_cases as pools

pytest.importorskip("triton")
from benches import offline
from llr_fast.ops.gram_linear import triton as gram
from llr_fast.ops.margin_reduce import triton as margin
from llr_fast.ops.masked_linear import triton as linear
from llr_fast.ops.roll_activation import triton as roll
from llr_fast.ops.roll_max_pool import triton as pool
from llr_fast.ops.tangent_activation import triton as tangent

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
TRAINED = (torch.float32, torch.bfloat16)
CHECKS = [
    *((target, dtype, "products") for target in ("sm_90", "sm_100", "sm_80") for dtype in TRAINED),
    *(("sm_90", dtype, "other kernels") for dtype in TRAINED),
    ("sm_90", torch.float64, "one of each"),
    ("gfx942", torch.float32, "one of each"),
]
# What the pickers distinguish: one direction, up to four, more; tangents of each sample, or the batch's.
TANGENTS = [(K, 16, shared, 64) for K in (1, 4, 16, 32) for shared in (1, 16)]
# One direction, or several; of matrices, one for each sample or the batch's.
PRODUCTS, GRAMS = [(1, 16, 16, 64, 64), (4, 64, 64, 64, 64)], [(16, 16, 64, 64), (16, 1, 64, 64)]
# Rows whose length is no multiple of 16 but of 4 or of 1, which Triton compiles in other ways.
NARROW_PRODUCTS, NARROW_GRAMS = [(66, 16, 16, 300, 300), (18, 16, 16, 37, 37)], [(2, 2, 37, 37)]

# One direction or several, with and without what follows the activation; of the last, tangents are of another type.
ROLLS = [
    ("relu", (4, 64, 16, 16), 1, True),
    ("bent", (4, 64, 16, 16), 4, False),
    ("prelu of channels", (3, 7, 5, 5), 4, True),
]
# Side by side, before a ResNet, at every entry, and those whose losers are added up first; along one axis and three.
POOLS = [
    ((8, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((8, 8), (5, 5), (1, 1), (2, 2), (1, 1)),
    ((16,), (3,), (2,), (1,), (1,)),
    ((4, 8, 8), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
]
OTHER = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32, torch.float64: torch.float32}


def configurations(dtype: torch.dtype, in_tf32: bool) -> list[offline.Launch]:
    """One launch of each kernel for each choice of its constants and of the arguments it goes without.

    Where the user asks for TF32, a product is one of the three that float32 takes else: `in_tf32` adds these launches.
    """
    found = {}

    def act(launch):
        special = tuple((n, v) for n, v in launch.args.items() if v is None or (isinstance(v, int) and v == 1))
        found[launch.name, special, str(launch.constants), str(launch.options)] = launch

    def run(module, name, *args):
        with offline.intercepted(module.__name__.removesuffix(".triton"), act):
            return getattr(module, f"launch_{name}")(*args)

    for shape in TANGENTS:
        t, slope = oc.tangent_inputs(shape, dtype)
        out, stat = run(tangent, "tangent_activation", t, slope, "sum_squares")
        run(tangent, "tangent_activation_backward", out, stat, t, slope, stat, "max_abs", True)
    _products(dtype, run)
    if in_tf32:
        with products_in_tf32():
            _products(dtype, run)
    layers = oc.layer_inputs((4, (64, 2048)), dtype)
    run(margin, "margin_reduce", *layers)
    run(margin, "smallest_bounds", *layers, 3)
    for (*sizes, store), of_tangents in zip(ROLLS, (dtype, dtype, OTHER[dtype])):
        args = rc.arguments(sizes[0], *rc.inputs(*sizes, (dtype, of_tangents)), store=store)
        out, masked, sums, code = run(roll, "roll_activation", *args)
        run(roll, "roll_activation_backward", *rc.backward_arguments(args, out, masked, sums, code))
    for i, windows in enumerate(POOLS):
        of_tangents = dtype if i else OTHER[dtype]
        for inner in (1, 32) if i < 2 else (1,):
            args = pools.arguments(windows, inner, 2, dtype, of_tangents)
            run(pool, "roll_max_pool_backward", *pools.backward_arguments(args, *run(pool, "roll_max_pool", *args)))
    return list(found.values())


def chosen(launches: list[offline.Launch], which: str) -> list[offline.Launch]:
    """All "products", and of the other kernels one launch each; all "other kernels"; or "one of each"."""
    first = {launch.name: launch for launch in reversed(launches)}
    one = list(first.values())
    products, others = (
        [[launch for launch in several if ("linear" in launch.name) == are_products] for several in (launches, one)]
        for are_products in (True, False)
    )
    return {"products": products[0] + others[1], "other kernels": others[0], "one of each": one}[which]


@contextlib.contextmanager
def products_in_tf32():
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _products(dtype, run):
    narrow = dtype != torch.float64  # whose tiles are the same for all rows
    for shape in PRODUCTS + NARROW_PRODUCTS * narrow:
        args = oc.linear_inputs(shape, dtype)
        out, stat = run(linear, "masked_linear", *args, "sum_squares", True)
        run(linear, "masked_linear_backward", out, stat, out, *args, "max_abs", True, True)
        if shape != PRODUCTS[0]:
            run(linear, "masked_linear_backward", out, stat, out, *args, "sum_squares", True, True)
            run(linear, "masked_linear_backward", out, stat, out, *args, "sum_squares", False, False)
    for shape in GRAMS + NARROW_GRAMS * narrow:
        args = oc.gram_inputs(shape, dtype)
        out, diagonal = run(gram, "gram_linear", *args, True)
        run(gram, "gram_linear_backward", out, diagonal, *args, True, True, True)
        run(gram, "gram_linear", *args, False)
        run(gram, "gram_linear_backward", None, diagonal, *args, True, False, True)


WORK: list[tuple[str, offline.Launch]] = []


def _compile(index: int):
    target, launch = WORK[index]
    try:
        return offline.compile_launch(launch, target)
    except Exception as error:
        return f"does not compile: {error}"


def compiled(target: str, dtype: torch.dtype, which: str):
    """Launches with their resources, compiled by all cores, from forks that inherit the list of work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", "7" if target.startswith("gfx") else None)
        launches = configurations(dtype, target == "sm_90" and dtype == torch.float32)
    WORK[:] = [(target, launch) for launch in chosen(launches, which)]
    workers = os.cpu_count() if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1 else 1
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = pool.map(_compile, range(len(WORK)), chunksize=4)
    return [(launch, resources) for (_, launch), resources in zip(WORK, found, strict=True)]


@pytest.mark.parametrize("target, dtype, which", CHECKS, ids=[f"{t} {str(d)[6:]} {which}" for t, d, which in CHECKS])
def test_every_configuration_compiles(target, dtype, which):
    """Without spills, into the memory of the chip; products of low precision by the instructions made for them."""
    faults, found = [], compiled(target, dtype, which)
    for launch, resources in found:
        types = {v.dtype for v in launch.args.values() if isinstance(v, torch.Tensor)}
        fits = not isinstance(resources, str) and resources.shared <= SHARED_BYTES[target]
        is_low = "DOT" in launch.constants and (torch.bfloat16 in types or launch.constants["PRECISION"] == "tf32")
        if not fits or resources.stack or resources.local or (is_low and not resources.matrix):
            faults.append(f"{launch.name} {types} {launch.constants} {launch.options}: {resources}")
    assert found and not faults, "\n".join(faults)
