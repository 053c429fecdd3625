"""roll_activation and roll_max_pool, in plain torch and in C++, against torch's own functions in float64."""

import math

import operators as ops
import pytest
import torch
from ops import roll_cases as rc

from llr_fast.dispatch import backends

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MIXED = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.float32)]


@pytest.fixture(params=["reference", "native"])
def name(request):
    if backends()[request.param] is not None:
        pytest.skip(f"{request.param} does not run here")
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("shape", rc.SHAPES)
@pytest.mark.parametrize("ramp", rc.RAMPS)
def test_activation(name, ramp, shape):
    arguments = rc.RAMPS[ramp][2]
    for dtype in (torch.float32, torch.float64):
        tensors = rc.draw(shape, dtype)
        found = rc.computed(name, lambda z, t: ops.roll_activation(z, t, **arguments), *tensors)
        rc.check(found, rc.expected(lambda z, t: rc.activation_oracle(ramp, z, t), *tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 5, 3, 4), (2, 4, 5, 700)])
def test_prelu(name, shape, channels):
    for dtype in (torch.float32, torch.float64):
        tensors = (*rc.draw(shape, dtype), torch.rand(channels, dtype=dtype))
        found = rc.computed(name, lambda z, t, s: ops.roll_activation(z, t, below=s), *tensors)
        rc.check(found, rc.expected(rc.prelu_oracle, *tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 5, 3, 4), (2, 2, 5, 41, 37)])
def test_factors_of_channels(name, shape, store, last):
    def product(z, tangents, factor):
        return tangents * factor.view(-1, *[1] * (z.dim() - 2))

    def function(z, t, f):
        if last and z.dim() == 4:
            z = z.to(memory_format=torch.channels_last)
        return ops.roll_activation(z, t, upper=1.5, below=0.2, factor=f, store=store)[0 :: 1 if store else 2]

    def oracle(z, t, f):
        slope = torch.where(z > 1.5, 0.0, torch.where(z > 0, 1.0, 0.2 * torch.ones_like(z)))
        scaled = product(z, t, f)
        out = torch.where(z > 0, z.clamp(max=1.5), 0.2 * z)
        sums = torch.stack([scaled.square().sum(), rc.hinges(z, (0.0, 1.5))])
        return (out, scaled * slope, sums) if store else (out, sums)

    for dtype in (torch.float32, torch.float64):
        tensors = (*rc.draw(shape, dtype), torch.randn(5, dtype=dtype))
        rc.check(rc.computed(name, function, *tensors), rc.expected(oracle, *tensors), TOLERANCE[dtype])


@pytest.mark.parametrize("dtypes", [(torch.float16,) * 2, (torch.bfloat16,) * 2, *MIXED], ids=str)
def test_activation_in_other_dtypes(name, dtypes):
    z, tangents = rc.draw((2, 3, 40), *dtypes)
    found = rc.computed(name, ops.roll_activation, z, tangents)
    assert [t.dtype for t in found] == [*dtypes, found[2].dtype, *dtypes]
    assert found[2].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    coarsest = max(TOLERANCE[dtype] for dtype in dtypes)
    rc.check(found, rc.expected(lambda z, t: rc.activation_oracle("relu", z, t), z, tangents), coarsest)


def test_activation_in_the_order_of_channels_last(name):
    z, tangents = rc.draw((2, 3, 4, 5, 6))
    slope = torch.rand(4)
    wanted = rc.computed(name, lambda z, t, s: ops.roll_activation(z, t, below=s), z, tangents, slope)
    last = z.to(memory_format=torch.channels_last)
    found = rc.computed(name, lambda z, t, s: ops.roll_activation(z, t, below=s), last, tangents, slope)
    rc.check(found, [t.double() for t in wanted], 1e-6)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found[1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows_in_the_sums(name, value):
    z, tangents = rc.draw((1, 2, 9))
    z[1, 3] = value
    out, _, sums = rc.computed(name, ops.roll_activation, z, tangents)[:3]
    assert sums[0].isfinite() and not sums[1].isfinite()
    torch.testing.assert_close(out, z.relu(), equal_nan=True)


def test_without_masked_tangents(name):
    tensors = rc.draw((2, 3, 9))
    function = lambda store: lambda z, t: ops.roll_activation(z, t, below=0.1, store=store)[::2]  # noqa: E731
    rc.check(rc.computed(name, function(False), *tensors), rc.expected(function(True), *tensors), 1e-5)
    assert ops.roll_activation(*tensors, store=False)[1].numel() == 0


def test_sums_are_the_same_from_run_to_run(name):
    tensors = rc.draw((2, 3, 10000))
    assert torch.equal(*(rc.computed(name, ops.roll_activation, *tensors)[2] for _ in range(2)))


@pytest.mark.parametrize("windows", [*rc.WINDOWS, rc.LONG], ids=str)
def test_max_pool(name, windows):
    for dtype, K in ((torch.float32, 1), (torch.float64, 3)):
        tensors = rc.draw((K, 2, 1 if windows is rc.LONG else 3, *windows[0]), dtype)
        found = rc.computed(name, lambda z, t: rc.pool(z, t, windows), *tensors)
        if windows is rc.LONG:  # a loop over windows takes long
            wanted = rc.computed("reference", lambda z, t: rc.pool(z, t, windows), *(t.double() for t in tensors))
        else:
            wanted = rc.expected(lambda z, t: rc.pool_oracle(z, t, windows), *tensors)
        rc.check(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, *MIXED], ids=str)
def test_max_pool_in_other_dtypes(name, dtypes):
    z, tangents = rc.draw((1, 2, 3, 7), *dtypes)
    found = rc.computed(name, lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), z, tangents)
    assert [t.dtype for t in found] == [*dtypes, found[2].dtype, *dtypes]
    wanted = rc.expected(lambda z, t: rc.pool_oracle(z, t, rc.WINDOWS[0]), z, tangents)
    rc.check(found, wanted, max(TOLERANCE[dtype] for dtype in dtypes))


@pytest.mark.parametrize("windows", rc.WINDOWS, ids=str)
def test_max_pool_in_the_order_of_channels_last(name, windows):
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
def test_pools_of_what_is_no_number(name, value):
    z, tangents = rc.draw((1, 1, 1, 7))
    z[..., 3] = value
    out, _, sums = rc.computed(name, lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), z, tangents)[:3]
    torch.testing.assert_close(out, torch.nn.functional.max_pool1d(z, 3, 2, 1), equal_nan=True)
    assert not sums[1].isfinite()


def test_second_derivatives(name):
    z, tangents = (t.requires_grad_() for t in rc.draw((2, 1, 2, 7), torch.float64))
    torch.autograd.gradgradcheck(lambda z, t: ops.roll_activation(z, t, below=0.3), (z, tangents))
    torch.autograd.gradgradcheck(lambda z, t: rc.pool(z, t, rc.WINDOWS[0]), (z, tangents))


def test_opcheck():
    z, tangents = (t.requires_grad_() for t in rc.draw((2, 4, 7)))
    arguments = (z.flatten(), tangents.flatten(1), torch.rand(4), torch.rand(4), 0.0, 0.0, 6.0, 7, True)
    torch.library.opcheck(
        torch.ops.llr_fast.roll_activation.default,
        [t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments],
    )
    out, masked, sums, code = torch.ops.llr_fast.roll_activation(*arguments)
    backward = (out, masked, sums, tangents.flatten(1), code, *arguments[2:4], 0.0, 7)
    torch.library.opcheck(
        torch.ops.llr_fast.roll_activation_backward.default,
        [t.detach() if isinstance(t, torch.Tensor) else t for t in backward],
    )
    windows, planes, rows = [3, 2, 1, 1, 4], z.detach()[..., None], tangents.detach()[..., None]
    torch.library.opcheck(
        torch.ops.llr_fast.roll_max_pool.default,
        (planes.clone().requires_grad_(), rows.clone().requires_grad_(), windows),
    )
    out, winning, sums, index = torch.ops.llr_fast.roll_max_pool(planes, rows, windows)
    backward = (out, winning, sums, planes, rows, index)
    torch.library.opcheck(torch.ops.llr_fast.roll_max_pool_backward.default, (*(t.detach() for t in backward), windows))


WRONG = [
    ("tangents", lambda z, t: ops.roll_activation(z, t[:, :1])),
    ("tangents", lambda z, t: ops.roll_activation(z, t[:0])),
    ("lower", lambda z, t: ops.roll_activation(z, t, lower=1.0, upper=0.0)),
    ("lower", lambda z, t: ops.roll_activation(z, t, lower=-math.inf)),
    ("below", lambda z, t: ops.roll_activation(z, t, below=torch.zeros(3))),
    ("below", lambda z, t: ops.roll_activation(z, t, below=torch.zeros(1).double())),
    ("factor", lambda z, t: ops.roll_activation(z, t, factor=torch.ones(3))),
    ("z", lambda z, t: ops.roll_max_pool(z[0], t[:, 0], (2,), (2,), (0,), (1,), (3,))),
    ("tangents", lambda z, t: ops.roll_max_pool(z, t[:, :1], (2,), (2,), (0,), (1,), (3,))),
    ("kernel", lambda z, t: ops.roll_max_pool(z, t, (2, 2), (2,), (0,), (1,), (3,))),
    ("size", lambda z, t: ops.roll_max_pool(z, t, (2,), (2,), (0,), (1,), (9,))),
]


@pytest.mark.parametrize("argument, call", WRONG)
def test_wrong_arguments_are_named(argument, call):
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        call(*rc.draw((1, 2, 4, 7)))


def test_wrong_types_are_named():
    z, tangents = rc.draw((1, 2, 4, 7))
    for call in (ops.roll_activation, lambda z, t: ops.roll_max_pool(z, t, (2,), (2,), (0,), (1,), (3,))):
        with pytest.raises(TypeError, match=r"^z: expected"):
            call(z.int(), tangents)
        with pytest.raises(TypeError, match=r"^tangents: expected"):
            call(z, None)
