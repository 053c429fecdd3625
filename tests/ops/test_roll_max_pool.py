"""roll_max_pool, in plain torch and in C++, against a loop over windows in float64."""

import math

import operators as ops
import pytest
import torch
from ops import operator_cases as oc
from ops import roll_cases as rc

from llr_fast.dispatch import backend, backends

MIXED = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.float32)]


@pytest.fixture(params=["reference", "native"])
def name(request):
    if backends()[request.param] is not None:
        pytest.skip(f"{request.param} does not run here")
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("windows", [*rc.WINDOWS, rc.LONG], ids=str)
def test_values_and_gradients(name, windows):
    for dtype, K in ((torch.float32, 1), (torch.float64, 3)):
        tensors = rc.draw((K, 2, 1 if windows is rc.LONG else 3, *windows[0]), dtype)
        found = rc.computed(name, lambda z, t: rc.pool(z, t, windows), *tensors)
        if windows is rc.LONG:  # a loop over windows takes long
            wanted = rc.computed("reference", lambda z, t: rc.pool(z, t, windows), *(t.double() for t in tensors))
        else:
            wanted = rc.expected(lambda z, t: rc.pool_oracle(z, t, windows), *tensors)
        rc.check(found, wanted, oc.TOLERANCE[dtype])


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, *MIXED], ids=str)
def test_other_dtypes(name, dtypes):
    z, tangents = rc.draw((1, 2, 3, 7), *dtypes)
    found = rc.computed(name, lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), z, tangents)
    assert [t.dtype for t in found] == [*dtypes, found[2].dtype, *dtypes]
    wanted = rc.expected(lambda z, t: rc.pool_oracle(z, t, rc.WINDOWS[0]), z, tangents)
    rc.check(found, wanted, max(oc.TOLERANCE[dtype] for dtype in dtypes))


@pytest.mark.parametrize("windows", rc.WINDOWS, ids=str)
def test_order_of_channels_last(name, windows):
    tensors = rc.draw((2, 2, 3, *windows[0]))
    wanted = rc.computed(name, lambda z, t: rc.pool(z, t, windows), *tensors)
    last = [rc.channels_last(t, t.dim() - len(windows[0]) - 1) for t in tensors]
    for given in ((last[0], last[1]), (last[0], tensors[1]), (tensors[0], last[1])):
        found = rc.computed(name, lambda z, t: rc.pool(z, t, windows), *given)
        rc.check(found, [t.double() for t in wanted], 1e-6)
        order = (
            (lambda t: t) if given[0] is tensors[0] else (lambda t: rc.channels_last(t, t.dim() - len(windows[0]) - 1))
        )
        assert all(t.stride() == order(t.clone()).stride() for t in found[:2])


def test_a_winner_among_minus_infinities_is_an_entry(name):
    z, tangents = torch.full((1, 1, 4, 4), -math.inf), torch.arange(16.0).view(1, 1, 1, 4, 4)
    z[..., 0, 0] = 5
    out, winning, _ = rc.pool(z, tangents, ((4, 4), (3, 3), (2, 2), (1, 1), (1, 1)))
    assert out.flatten().tolist() == [5, -math.inf, -math.inf, -math.inf]
    assert winning.flatten().tolist() == [0, 1, 4, 5]


def test_leads_are_not_rounded(name):
    """In bfloat16 1 - 1/512 - 1/1024 would be 1, where the hinge and its gradient end."""
    z = torch.tensor([[[1.0, 3 / 1024]]], dtype=torch.bfloat16)
    windows = ((2,), (2,), (2,), (0,), (1,))
    found = rc.computed(name, lambda z, t: rc.pool(z, t, windows), z, torch.zeros_like(z)[None])
    assert found[2][1].item() == 3 / 1024 and found[3].flatten()[1].item() != 0


def test_the_first_of_equals_wins(name):
    z, tangents = torch.zeros(1, 1, 4), torch.arange(4.0).view(1, 1, 1, 4)
    found = rc.computed(name, lambda z, t: ops.roll_max_pool(z, t, (2,), (2,), (0,), (1,), (2,)), z, tangents)
    assert found[1].flatten().tolist() == [0, 2] and found[2].tolist() == [2, 2]
    assert (found[3].flatten() != 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number(name, value):
    z, tangents = rc.draw((1, 1, 1, 7))
    z[..., 3] = value
    out, _, sums = rc.computed(name, lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), z, tangents)[:3]
    torch.testing.assert_close(out, torch.nn.functional.max_pool1d(z, 3, 2, 1), equal_nan=True)
    assert not sums[1].isfinite()


def test_second_derivatives(name):
    z, tangents = (t.requires_grad_() for t in rc.draw((2, 1, 2, 7), torch.float64))
    torch.autograd.gradgradcheck(lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), (z, tangents))


@pytest.mark.parametrize("order", [lambda t: t, lambda t: rc.channels_last(t, 0)], ids=["as it is", "other"])
def test_opcheck(name, order):
    """In any order in memory."""
    z, tangents, windows = rc.arguments(rc.WINDOWS[1], 3, 2, torch.float32)
    z, tangents, op = order(z), order(tangents), torch.ops.llr_fast
    with backend(name):
        out, winning, sums, index = op.roll_max_pool(z, tangents, windows)
        backward = rc.backward_arguments((z, tangents, windows), order(out), order(winning), sums, index)
        torch.library.opcheck(op.roll_max_pool_backward.default, backward)
        torch.library.opcheck(op.roll_max_pool.default, (z.requires_grad_(), tangents.requires_grad_(), windows))


WRONG = [
    ("z", lambda z, t: ops.roll_max_pool(z[0], t[:, 0], (2,), (2,), (0,), (1,), (3,))),
    ("tangents", lambda z, t: ops.roll_max_pool(z, t[:, :1], (2,), (2,), (0,), (1,), (3,))),
    ("kernel", lambda z, t: ops.roll_max_pool(z, t, (2, 2), (2,), (0,), (1,), (3,))),
    ("size", lambda z, t: ops.roll_max_pool(z, t, (2,), (2,), (0,), (1,), (9,))),
]


@pytest.mark.parametrize("argument, call", WRONG)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        call(*rc.draw((1, 2, 4, 7)))


@pytest.mark.parametrize("argument, convert", [("z", lambda z, t: (z.int(), t)), ("tangents", lambda z, t: (z, None))])
def test_wrong_types_are_named(argument, convert):
    with pytest.raises(TypeError, match=f"^{argument}: expected"):
        ops.roll_max_pool(*convert(*rc.draw((1, 2, 4, 7))), (2,), (2,), (0,), (1,), (3,))
