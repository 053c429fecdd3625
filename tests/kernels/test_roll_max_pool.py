"""The Triton kernels of roll_max_pool against its reference in float64, which tests/ops compares with torch."""

import math

import operators as ops
import pytest
import torch
from ops import operator_cases as oc
from ops import roll_cases as rc

from llr_fast.dispatch import backend
from llr_fast.ops.roll_max_pool import triton as launchers

pytestmark = pytest.mark.triton

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MIXED = [
    (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float64),
]  # fmt: skip
SIDE_BY_SIDE, OVERLAPPING = ((4, 6), (2, 2), (2, 2), (0, 0), (1, 1)), rc.WINDOWS[1]
LARGE = ((5, 11), (5, 5), (5, 5), (0, 0), (1, 1))  # of which the losers are added up for their winners first
WINDOWS = [
    *rc.WINDOWS, SIDE_BY_SIDE, LARGE,
    ((9, 9), (3, 3), (2, 2), (1, 1), (1, 1)),  # as before a ResNet
    ((5, 4), (4, 4), (1, 1), (2, 2), (1, 1)),  # large and overlapping
    ((5, 8), (2, 2), (3, 3), (0, 0), (1, 1)),  # gaps between windows
    ((12,), (3,), (2,), (1,), (3,)),
    ((3, 5, 4), (3, 2, 3), (1, 2, 2), (1, 0, 1), (1, 1, 1)),
    ((7,), (3,), (5,), (1,), (1,)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned():
    with oc.poisoned_memory():
        yield


def last(tensors, windows):
    return [rc.channels_last(t, t.dim() - len(windows[0]) - 1) for t in tensors]


def both(windows, tensors, wanted_of=None):
    """By the kernels, and by the reference in float64."""
    found = rc.computed("triton", lambda z, t: rc.pool(z, t, windows), *tensors)
    wide = [t.double().cpu() for t in wanted_of or tensors]
    return found, rc.computed("reference", lambda z, t: rc.pool(z, t, windows), *wide)


@pytest.mark.parametrize(
    "windows,channels_last",
    [(w, i % 2 == 0) for i, w in enumerate(WINDOWS)] + [(w, True) for w in (SIDE_BY_SIDE, LARGE)],
    ids=str,
)
def test_values_and_gradients(windows, channels_last, device):
    tensors = rc.draw(((2, 2, 3) if channels_last else (1, 1, 5)) + windows[0], device=device)
    found, wanted = both(windows, last(tensors, windows) if channels_last else tensors, tensors)
    rc.check(found, wanted, 1e-5)
    assert found[0].movedim(1, -1 if channels_last else 1).is_contiguous()
    assert found[1].movedim(2, -1 if channels_last else 2).is_contiguous()


def test_several_blocks(device):
    windows = ((2, 701), (2, 2), (2, 2), (0, 0), (1, 1))
    found, wanted = both(windows, rc.draw((2, 1, 2, *windows[0]), device=device))
    rc.check(found, wanted, 1e-5)


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("windows", [SIDE_BY_SIDE, LARGE], ids=str)
def test_types_of_z_and_tangents(windows, dtypes, device):
    tensors = rc.draw((1, 2, 3, *windows[0]), *dtypes, device=device)
    found, wanted = both(windows, tensors)
    rc.check(found, wanted, max(TOLERANCE[dtype] for dtype in dtypes))
    sums = torch.float64 if torch.float64 in dtypes else torch.float32
    assert [t.dtype for t in found] == [*dtypes, sums, *dtypes]
    rc.check(found[2:3], wanted[2:3], TOLERANCE[sums])


@pytest.mark.parametrize("shape", [(1, 0, 3), (2, 2, 0)])
def test_empty(shape, device):
    found, wanted = both(SIDE_BY_SIDE, rc.draw((*shape, 4, 6), device=device))
    rc.check(found, wanted, 0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_of_one_output_alone(which, by_triton):
    tensors = [t.requires_grad_() for t in rc.draw((2, 2, 3, 5, 6), device=by_triton)]
    loss = rc.pool(*tensors, OVERLAPPING)[which].sum()  # whose gradient is one number, expanded
    found = torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True)
    wide = [t.detach().double().cpu().requires_grad_() for t in tensors]
    with backend("reference"):
        loss = rc.pool(*wide, OVERLAPPING)[which].sum()
        wanted = torch.autograd.grad(loss, wide, materialize_grads=True, allow_unused=True)
    rc.check(found, wanted, 1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by numpy, in the interpreter
@pytest.mark.parametrize("windows", [SIDE_BY_SIDE, LARGE], ids=str)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_special_values(windows, value, device):
    for which in range(2):
        tensors = rc.draw((1, 1, 1, *windows[0]), device=device)
        tensors[which][..., 1, 2] = value
        tensors[which][..., 2, 2:] = value
        found, wanted = both(windows, tensors)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double().cpu(), b, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_first_of_equals_wins(by_triton):
    z = torch.zeros(1, 1, 4, device=by_triton)
    tangents = torch.arange(4.0, device=by_triton).view(1, 1, 1, 4)
    assert ops.roll_max_pool(z, tangents, (2,), (2,), (0,), (1,), (2,))[1].flatten().tolist() == [0, 2]


def test_a_winner_among_minus_infinities_is_an_entry(by_triton):
    z = torch.full((1, 1, 4, 4), -math.inf, device=by_triton)
    z[..., 0, 0] = 5
    tangents = torch.arange(16.0, device=by_triton).view(1, 1, 1, 4, 4)
    winning = rc.pool(z, tangents, ((4, 4), (3, 3), (2, 2), (1, 1), (1, 1)))[1]
    assert winning.flatten().tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("windows", [OVERLAPPING, LARGE], ids=str)
def test_runs_are_equal_to_the_last_bit(windows, device):
    tensors = rc.draw((2, 3, 5, *windows[0]), device=device)
    runs = [rc.computed("triton", lambda z, t: rc.pool(z, t, windows), *tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_kernels_run(ran, device):
    tensors = rc.draw((1, 2, 3, 4, 6), device=device)
    rc.computed("auto" if device == "cuda" else "triton", lambda z, t: rc.pool(z, t, SIDE_BY_SIDE), *tensors)
    assert ran == [launchers.launch_roll_max_pool, launchers.launch_roll_max_pool_backward]
