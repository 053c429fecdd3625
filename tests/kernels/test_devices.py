"""Where on GPUs the kernels run: a device that is not the current one, a stream beside the default one, a graph."""

import operators as ops
import pytest
import torch
from ops import operator_cases as oc
from ops import roll_activation_cases as rc

from llr_fast.dispatch import backend

pytestmark = [pytest.mark.triton, pytest.mark.gpu]
OPERATORS = [*oc.DIFFERENTIABLE, "roll_activation", "margin_reduce"]


def case(op):
    """Inputs on the CPU, and the operator as a function of them."""
    if op == "roll_activation":
        return rc.inputs("relu", (4, 3, 5, 7), 3), ops.roll_activation
    if op == "margin_reduce":
        distances, norms = oc.layer_inputs((3, (5, 70)))
        return (*distances, *norms), lambda *layers: ops.margin_reduce(layers[:2], layers[2:])
    shapes, _, further, _ = oc.DIFFERENTIABLE[op]
    return oc.inputs(op, shapes[0]), lambda *tensors: getattr(ops, op)(*tensors, *further[0])


def results(function, tensors):
    """The outputs, and the gradients of half their sum of squares, without anything that is made on the CPU."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    with backend("triton"):
        found = function(*tensors)
        used = [t for t in found if t.requires_grad]
        gradients = torch.autograd.grad(used, tensors, used, materialize_grads=True, allow_unused=True) if used else ()
    return [t.detach() for t in (*found, *gradients)]


def replayed(function, tensors):
    """What a graph of the function computes from tensors that were put in after it was captured."""
    static = [torch.ones_like(t) for t in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(function, static)  # compiles the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(function, static)
    for place, tensor in zip(static, tensors, strict=True):
        place.copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=0)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_device_that_is_not_the_current_one(op):
    if torch.cuda.device_count() < 2:
        pytest.skip("takes two CUDA devices")
    tensors, function = case(op)
    expected = results(function, [t.to("cuda:0") for t in tensors])
    with torch.cuda.device(0):
        found = results(function, [t.to("cuda:1") for t in tensors])
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in found} == {1}
    assert_same(found, expected)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_stream_beside_the_default_one(op):
    """What the operator reads is written late on its stream: on another one it would find NaN."""
    tensors, function = case(op)
    tensors = [t.cuda() for t in tensors]
    expected, late = results(function, tensors), [torch.full_like(t, torch.nan) for t in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        for place, tensor in zip(late, tensors, strict=True):
            place.copy_(tensor)
        found = results(function, late)
    stream.synchronize()
    assert_same(found, expected)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op != "margin_reduce"])  # which no training step runs
def test_a_graph(op):
    tensors, function = case(op)
    tensors = [t.cuda() for t in tensors]
    assert_same(replayed(function, tensors), results(function, tensors))
