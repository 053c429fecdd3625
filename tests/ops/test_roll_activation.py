"""roll_activation, in plain torch and in C++, against autograd of torch's own activations."""

import math

import pytest
import torch
from ops import operator_cases as oc
from ops import roll_activation_cases as rc
from torch.autograd import forward_ad

from llr_fast.dispatch import backend, backends
from llr_fast.ops.roll_activation import roll_activation


@pytest.fixture(autouse=True, params=["reference", "native"])
def by(request):
    if backends()[request.param] is not None:
        pytest.skip(f"{request.param} does not run here")
    torch.manual_seed(0)
    with backend(request.param):
        yield request.param


@pytest.mark.parametrize("name,shape,directions", rc.CASES)
def test_values_and_gradients(name, shape, directions, by):
    for dtype in (torch.float64, torch.float32):
        tensors = rc.inputs(name, shape, directions, (dtype, dtype))
        for store in (True, False):
            found = rc.computed(name, tensors, by, store=store)
            rc.assert_close(found, rc.expected(name, tensors, store), dtype)
            assert found[1].shape == (tensors[1].shape if store else (0,))


@pytest.mark.parametrize("dtypes", rc.MIXED)
@pytest.mark.parametrize("name", rc.SOME)
def test_types_of_z_and_tangents(name, dtypes, by):
    tensors = rc.inputs(name, (4, 3, 5), 3, dtypes)
    found = rc.computed(name, tensors, by)
    rc.assert_close(found, rc.expected(name, tensors), *dtypes)
    sums = torch.float64 if torch.float64 in dtypes else torch.float32
    assert [t.dtype for t in found] == [*dtypes, sums, *(t.dtype for t in tensors)]


@pytest.mark.parametrize("name", rc.SOME)
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0)])
def test_any_order_in_memory(name, order, by):
    """Values and gradients do not depend on it, and are returned in that of z."""
    tensors = rc.inputs(name, (4, 3, 5, 7), 3)
    z = tensors[0].permute(order).contiguous().permute(*(order.index(axis) for axis in range(4)))
    for tangents in (tensors[1], tensors[1].movedim(0, -1).contiguous().movedim(-1, 0)):
        found = rc.computed(name, (z, tangents, *tensors[2:]), by)
        rc.assert_close(found, rc.expected(name, tensors), torch.float32)
        assert found[0].stride() == z.stride() and found[1][0].stride() == z.stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 5, 3, 4), (2, 2, 5, 41, 37)])
def test_factors_of_channels(shape, store, last, by):
    def function(z, tangents, factor):
        if last and z.dim() == 4:
            z = z.to(memory_format=torch.channels_last)
        return roll_activation(z, tangents, upper=0.8, lower=-0.3, below=0.2, factor=factor, store=store)

    def oracle(z, tangents, factor):
        return rc.oracle("bent", z, tangents * factor.view(-1, *[1] * (z.dim() - 2)), store=store)

    for dtype in (torch.float32, torch.float64):
        tensors = (*rc.inputs("bent", shape[1:], shape[0], (dtype, dtype)), torch.randn(5, dtype=dtype))
        found = oc.outputs_and_gradients(function, tensors, ())
        wanted = oc.outputs_and_gradients(oracle, tuple(t.double() for t in tensors), ())
        rc.assert_close(found, wanted, dtype)


def test_sums_are_the_same_from_run_to_run(by):
    tensors = rc.inputs("relu", (3, 10000), 2)
    assert torch.equal(*(rc.computed("relu", tensors, by)[2] for _ in range(2)))


def test_gaps_in_memory():
    z, tangents = torch.randn(6, 8)[::2, ::2], torch.randn(3, 6, 8)[:, ::2, ::2]
    for a, b in zip(roll_activation(z, tangents), roll_activation(z.contiguous(), tangents.contiguous()), strict=True):
        assert torch.equal(a, b)


def test_special_values():
    for dtype in (torch.float32, torch.float64):
        z = rc.SPECIAL.to(dtype).requires_grad_()
        out, masked, sums = roll_activation(z, torch.ones_like(z)[None], upper=1.0, below=0.5)
        torch.testing.assert_close(out, rc.SPECIAL_OUT.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(masked[0], rc.SPECIAL_MASKED.to(dtype)) and sums[1].isnan()
        relu = roll_activation(z, torch.ones_like(z)[None])[0]
        torch.testing.assert_close(relu, z.relu(), rtol=0, atol=0, equal_nan=True)
        (d_z,) = torch.autograd.grad(out.sum() + sums[1], z)
        assert torch.equal(d_z, (rc.SPECIAL_MASKED + rc.SPECIAL_SIDES).to(dtype))
    for z, hinge in zip(rc.SPECIAL, rc.SPECIAL_HINGES):
        found = roll_activation(z[None], torch.ones(2, 1), upper=1.0, below=0.5)[2]
        torch.testing.assert_close(found, torch.stack([torch.tensor(2.0), hinge]), rtol=0, atol=0, equal_nan=True)


def test_kinks_are_not_rounded():
    rc.assert_kinks_are_not_rounded()


@pytest.mark.parametrize("name", [*rc.SOME, "prelu of channels, kink at 0.5"])
def test_derivatives_of_first_and_second_order(name):
    tensors = [t.requires_grad_() for t in rc.inputs(name, (2, 3, 2), 2, (torch.float64, torch.float64))]

    def function(*tensors):
        return [out * torch.arange(1, 1 + out.numel()).view_as(out) for out in rc.ours(name, *tensors)]

    torch.autograd.gradcheck(function, tensors)
    torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name,store", [("prelu of channels", True), ("bent", False)])
def test_opcheck(name, store):
    """Also of tangents that lie side by side in memory, in another type than z, and with factors."""
    args = rc.arguments(name, *rc.inputs(name, (2, 3, 4), 2, (torch.float32, torch.bfloat16)), store=store)
    args = (args[0], args[1].T.contiguous().T, torch.rand(3, dtype=torch.bfloat16) if store else None, *args[3:])
    found = torch.ops.llr_fast.roll_activation(*args)
    torch.library.opcheck(torch.ops.llr_fast.roll_activation_backward.default, rc.backward_arguments(args, *found))
    args = tuple(t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args)
    torch.library.opcheck(torch.ops.llr_fast.roll_activation.default, args)


def test_compiled():
    z, tangents, slope = (
        t.requires_grad_() for t in rc.inputs("prelu of channels", (2, 3, 4, 5), 1, channels_last=True)
    )

    def loss(z, tangents, slope):
        out, masked, sums = roll_activation(z, tangents, below=slope)
        return out.square().sum() + masked.mean() + sums[0] * sums[1]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(f(z, tangents, slope), (z, tangents, slope)) for f in (compiled, loss))
    oc.assert_close(list(found), list(wanted), torch.float32)


def test_forward_mode_is_refused():
    z = torch.ones(3)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="roll_activation: forward-mode"):
        roll_activation(forward_ad.make_dual(z, z), z[None])


Z, T = torch.ones(2, 3), torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    "z,tangents,named,error,text",
    [
        (Z.int(), T, {}, TypeError, "z: expected a tensor of float16, .*got torch.int32"),
        (Z, [1.0], {}, TypeError, "tangents: expected a tensor of float16, .*got list"),
        (Z, T[0], {}, ValueError, r"tangents: expected shape \[K, \*\[2, 3\]\], K > 0, got \[2, 3\]"),
        (Z, T[:0], {}, ValueError, r"K > 0, got \[0, 2, 3\]"),
        (Z, T.to("meta"), {}, ValueError, "tangents: expected device cpu as z has, got meta"),
        (Z, T, {"lower": 1.0, "upper": 1.0}, ValueError, "lower: expected a kink below upper"),
        (Z, T, {"lower": -math.inf}, ValueError, "one of them finite, got -inf and inf"),
        (Z, T, {"lower": math.nan}, ValueError, "lower: expected a kink below upper"),
        (Z, T, {"factor": torch.ones(2)}, ValueError, r"factor: expected shape \[3\] on cpu, got \[2\] on cpu"),
        (Z, T, {"below": torch.ones(2)}, ValueError, r"below: expected 1 or 3 entries of torch.float32"),
        (Z, T, {"below": torch.ones(3).double()}, ValueError, r"got \[3\] of torch.float64"),
    ],
)
def test_wrong_arguments(z, tangents, named, error, text):
    with pytest.raises(error, match=text):
        roll_activation(z, tangents, **named)
