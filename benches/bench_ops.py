"""The fused operators against the same in plain torch."""

import pytest
import torch

from benches import networks
from benches.providers import OURS, REFERENCE, check_agreement, on_reference
from llr_fast.ops.gram_linear import gram_linear
from llr_fast.ops.gram_norms import gram_norms
from llr_fast.ops.margin_reduce import margin_reduce
from llr_fast.ops.masked_linear import masked_linear
from llr_fast.ops.tangent_activation import tangent_activation

pytestmark = pytest.mark.timeout(600)

RESNET_STEM = (20, 1, 64 * 112 * 112)  # tangents of the first activation of ResNet-18 along 20 directions


def tangents_through_activation(device):
    tangents, slope = torch.randn(RESNET_STEM, device=device), _slopes(RESNET_STEM[1:], device)
    return [tangents], lambda t: tangent_activation(t, slope, "sum_squares")


def tangents_through_dense_layer(device):
    tangents, slope = torch.randn(256, 8, 512, device=device), _slopes((8, 512), device)
    weight = torch.randn(512, 512, device=device) / 16
    return [tangents, weight], lambda t, w: masked_linear(t, slope, w, "sum_squares")


def gram_matrices_through_dense_layer(device):
    jacobian, weight = torch.randn(64, 300, 300, device=device) / 16, torch.randn(300, 300, device=device) / 16
    slope = _slopes((64, 300), device)
    return [jacobian @ jacobian.mT, weight], lambda g, w: gram_linear(g, slope, w)


def gram_matrices_of_chain(device):
    model = networks.mlp(784, 300, 300, 300, 300).to(device)
    weights = [module.weight.detach() for module in model if isinstance(module, torch.nn.Linear)]
    slopes = [_slopes((64, 300), device) for _ in weights[1:]]
    return weights, lambda *w: gram_norms(w, slopes)


def smallest_ratio(device):
    shapes = [(1, 64 * 112 * 112), (1, 64 * 56 * 56), (1, 512 * 7 * 7)]
    distances = [torch.rand(shape, device=device, dtype=torch.float64) for shape in shapes]
    norms = [torch.rand(shape, device=device) + 0.1 for shape in shapes]
    return [], lambda: margin_reduce(distances, norms)


CASES = {  # name -> sizes; the tensors that require a gradient, and the operator on them
    "tangent_activation": ("tangents [20, 1, 802816]", tangents_through_activation),
    "masked_linear": ("tangents [256, 8, 512], 512 neurons", tangents_through_dense_layer),
    "gram_linear": ("300 neurons to 300, batch 64", gram_matrices_through_dense_layer),
    "gram_norms": ("784-300-300-300-300, batch 64", gram_matrices_of_chain),
    "margin_reduce": ("3 layers, 1028608 neurons", smallest_ratio),
}


@pytest.mark.parametrize("op", CASES)
def test_forward(op, device, interleaved):
    inputs, function = CASES[op][1](device)
    _compare(op, "forward", torch.no_grad()(lambda: list(function(*inputs))), interleaved)


@pytest.mark.parametrize("op", [op for op in CASES if op != "margin_reduce"])
def test_forward_and_backward(op, device, interleaved):
    inputs, function = CASES[op][1](device)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    with torch.no_grad():
        cotangents = [torch.randn_like(out) for out in function(*inputs)]

    def call():
        return list(torch.autograd.grad(list(function(*inputs)), inputs, cotangents))

    _compare(op, "forward + backward", call, interleaved)


def _compare(op, passes, call, interleaved):
    providers = {REFERENCE: on_reference(call), OURS: call}
    check_agreement(providers, rtol=1e-5)
    interleaved(providers, table="ops", op=op, passes=passes, sizes=CASES[op][0], dtype="float32")


def _slopes(shape, device):
    """Of a ReLU, half of them 0."""
    return torch.randint(2, shape, device=device).float()
