"""The Triton kernels of roll_activation against autograd of torch's own activations."""

import itertools
import math

import pytest
import torch
from ops import operator_cases as oc
from ops import roll_activation_cases as rc

from llr_fast.dispatch import backend
from llr_fast.ops.roll_activation import roll_activation
from llr_fast.ops.roll_activation import triton as launchers

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def poisoned():
    with oc.poisoned_memory():
        yield


@pytest.mark.parametrize("name,shape,directions", rc.CASES)
def test_values_and_gradients(name, shape, directions, device):
    for store in (True, False):
        tensors = rc.inputs(name, shape, directions, device=device)
        rc.assert_close(
            rc.computed(name, tensors, "triton", store=store), rc.expected(name, tensors, store), torch.float32
        )


@pytest.mark.parametrize("dtypes", rc.MIXED)
@pytest.mark.parametrize("name", rc.SOME)
def test_types_of_z_and_tangents(name, dtypes, device):
    tensors = rc.inputs(name, (4, 3, 5, 7), 3, dtypes, device)
    found = rc.computed(name, tensors, "triton")
    rc.assert_close(found, rc.expected(name, tensors), *dtypes)
    sums = torch.float64 if torch.float64 in dtypes else torch.float32
    assert [t.dtype for t in found] == [*dtypes, sums, *(t.dtype for t in tensors)]


@pytest.mark.parametrize("name", rc.SOME)
def test_channels_last(name, device):
    tensors = rc.inputs(name, (4, 3, 5, 7), 3, device=device, channels_last=True)
    for tangents in (tensors[1], tensors[1].movedim(0, -1).contiguous().movedim(-1, 0)):
        given = (tensors[0], tangents, *tensors[2:])
        found = rc.computed(name, given, "triton")
        rc.assert_close(found, rc.expected(name, tensors), torch.float32)
        assert found[0].stride() == found[1][0].stride() == tensors[0].stride()


@pytest.mark.parametrize("name", rc.SOME)
def test_only_the_gradients_asked_for(name, device):
    tensors = rc.inputs(name, (2, 3, 5), 3, device=device)
    for wanted in itertools.product([False, True], repeat=len(tensors)):
        found, expected = (rc.computed(name, tensors, by, *wanted) for by in ("triton", "reference"))
        rc.assert_close(found, expected, torch.float32)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_of_one_output_alone(which, device):
    tensors = [t.requires_grad_() for t in rc.inputs("prelu of channels", (2, 3, 5), 3, device=device)]
    found = []
    for by in ("triton", "reference"):
        with backend(by):
            loss = rc.ours("prelu of channels", *tensors)[which].sum()  # whose gradient is one number, expanded
            found.append(torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True))
    oc.assert_close(*map(list, found), torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by numpy, in the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_special_values(dtype, by_triton):
    z = rc.SPECIAL.to(by_triton, dtype)
    for tangent, below in itertools.product((1.0, math.inf, math.nan), (0.0, 0.5)):
        given = (z.clone().requires_grad_(), torch.full_like(z, tangent)[None].requires_grad_())
        found = []
        for by in ("triton", "reference"):
            with backend(by):
                out, masked, sums = roll_activation(*given, upper=1.0, below=below)
                gradients = torch.autograd.grad(out.sum() + sums[1] + masked.sum(), given)
                found.append([out, masked, sums, *gradients])
        torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
        assert found[0][2].isnan().tolist() == [math.isnan(tangent), True]
    torch.testing.assert_close(found[0][0], rc.SPECIAL_OUT.to(z), rtol=0, atol=0, equal_nan=True)
    for value, hinge in zip(z, rc.SPECIAL_HINGES.to(z)):
        sums = roll_activation(value[None], torch.ones_like(z[None, :1]), upper=1.0, below=0.5)[2]
        torch.testing.assert_close(sums[1].to(dtype), hinge, rtol=0, atol=0, equal_nan=True)


def test_kinks_are_not_rounded(by_triton):
    rc.assert_kinks_are_not_rounded(by_triton)


@pytest.mark.parametrize("directions", [1, 3])
def test_runs_are_equal_to_the_last_bit(directions, device):
    tensors = rc.inputs("prelu of channels", (2, 5, 3, 300), directions, device=device)
    runs = [rc.computed("prelu of channels", tensors, "triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_kernels_run(ran, device):
    rc.computed("relu", rc.inputs("relu", (3, 7), 1, device=device), "auto" if device == "cuda" else "triton")
    assert ran == [launchers.launch_roll_activation, launchers.launch_roll_activation_backward]


@pytest.mark.parametrize("directions", [1, 3])
def test_more_elements_than_32_bits_count(directions, by_triton):
    if by_triton == "cpu" or torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("takes a GPU with 60 GB")
    n = 2**31 // directions + 128
    z = torch.full((1, n), -2.0, dtype=torch.bfloat16, device=by_triton)
    z[0, -100:] = torch.arange(100)
    tangents = torch.ones(directions, 1, n, dtype=torch.bfloat16, device=by_triton)
    out, masked, sums = roll_activation(z.requires_grad_(), tangents.requires_grad_())
    assert out[0, -100:].tolist() == list(range(100)) and not out[0, :-100].any()
    assert masked[:, 0, -99:].eq(1).all() and not masked[:, 0, :-99].any() and sums[1] == 1
    for gradient in torch.autograd.grad(masked.sum() + out.sum(), (z, tangents)):
        assert gradient[..., -99:].eq(1).all() and not gradient[..., :-99].any()


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 5, 3, 40), (2, 2, 5, 41, 37)])
def test_factors_of_channels(shape, device):
    z, tangents = 2 * torch.randn(shape[1:]), torch.randn(shape)
    tensors = [t.to(device) for t in (z, tangents, torch.randn(5))]
    found = []
    for by in ("triton", "reference"):
        with backend(by):
            leaves = [t.clone().requires_grad_() for t in tensors]
            out, masked, sums = roll_activation(leaves[0], leaves[1], upper=1.5, below=0.2, factor=leaves[2])
            loss = (
                (out * z.to(device)).sum() + (masked * tangents.to(device)).sum() + sums @ sums.new_tensor([0.3, 0.7])
            )
            found.append([out, masked, sums, *torch.autograd.grad(loss, leaves)])
    oc.assert_close(*found, torch.float32)
