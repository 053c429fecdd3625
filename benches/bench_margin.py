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
    model, x = (part.to(device) for part in networks.resnet18(10, width=3))

    def margin(method):
        return lambda: [llr_fast.margin(model, x, method=method, dtype=torch.float64).value]

    def one_by_one():
        return [baselines.margin(*baselines.per_neuron_backprop(model.double(), x.double()))]

    check_agreement({"search": margin("search"), "exact": margin("exact"), "per_neuron_backprop": one_by_one}, 1e-4)

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
        REFERENCE: on_reference(lambda: llr_fast.margin(model, x)),
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
