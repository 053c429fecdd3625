"""The exact l2 margin: of ResNet-18 in forward passes, and of many points of a dense network."""

import copy

import pytest
import torch

import llr_fast
from benches import baselines, networks
from benches.providers import OURS, REFERENCE, check_agreement, on_reference

pytestmark = pytest.mark.timeout(600)

POINTS, MEASURED, BATCH = 10_000, 640, 64  # the baseline is timed on MEASURED points, in batches


@pytest.mark.parametrize("size", [32, 112, 224])
def test_resnet18(size, device, interleaved):
    small, image = (part.to(device) for part in networks.resnet18(10, width=3))
    double = copy.deepcopy(small).double()
    agreeing = {
        "per_neuron_backprop": lambda: [baselines.margin(*baselines.per_neuron_backprop(double, image.double()))],
        "all axes": lambda: [llr_fast.margin(small, image, method="exact").value],
        OURS: lambda: [llr_fast.margin(small, image, method="search").value],
    }
    check_agreement(agreeing, rtol=1e-5)

    model, x = (part.to(device) for part in networks.resnet18(size))
    providers = {
        "forward": torch.no_grad()(lambda: model(x)),
        OURS: lambda: llr_fast.margin(model, x, method="search"),
    }
    interleaved(providers, rounds=3, table="margin", network="ResNet-18", shape=list(x.shape), dtype="float32")


def test_many_points(device, interleaved):
    model, x = networks.mlp(784, 300, 300, 300, 300, 10).to(device), torch.randn(POINTS, 784, device=device)
    double, few = copy.deepcopy(model).double(), x[:BATCH]

    @torch.no_grad()
    def layer_by_layer(model, x):
        return [baselines.margin(*baselines.layer_by_layer(model, part)) for part in x.split(BATCH)]

    agreeing = {
        "layer_by_layer": lambda: layer_by_layer(double, few.double()),
        REFERENCE: on_reference(lambda: [llr_fast.margin(model, few).value]),
        OURS: lambda: [llr_fast.margin(model, few).value],
    }
    check_agreement(agreeing, rtol=1e-5)
    providers = {
        "layer_by_layer": lambda: layer_by_layer(model, x[:MEASURED]),
        OURS: lambda: llr_fast.margin(model, x),
    }
    interleaved(
        providers,
        rounds=3,
        table="margin",
        network="784-300-300-300-300-10",
        shape=list(x.shape),
        dtype="float32",
        scaled={"layer_by_layer": POINTS / MEASURED},
    )
