"""The exact ROLL penalty: one evaluation, and one training step."""

import pytest
import torch

from benches import networks
from benches.providers import CROSS_ENTROPY, check_agreement, cross_entropy, forward, roll_penalties, step

pytestmark = pytest.mark.timeout(600)

DENSE = ("paper_passes", "layer_by_layer")
NETWORKS = {  # name -> network, shape of x, the alternatives at gamma = 100
    "784-300-300-300-300-10": (
        lambda: networks.mlp(784, 300, 300, 300, 300, 10),
        (64, 784),
        (*DENSE, "per_neuron_backprop", "functorch_jacobian"),
    ),
    "3072-512-512-512-10": (
        lambda: networks.mlp(3072, 512, 512, 512, 10),
        (32, 3072),
        (*DENSE, "functorch_jacobian"),
    ),
    "two convolutions of 8 maps": (
        lambda: networks.convnet(1, 28),
        (4, 1, 28, 28),
        ("paper_passes", "functorch_jacobian"),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward(name, device, interleaved):
    build, shape, alternatives = NETWORKS[name]
    model, x = build().to(device), torch.randn(shape, device=device)
    providers = {n: forward(loss) for n, loss in roll_penalties(model, x, 100, alternatives).items()}
    check_agreement(providers, rtol=1e-4)
    providers[CROSS_ENTROPY] = forward(cross_entropy(model, x))
    interleaved(providers, table="roll", passes="forward", network=name, shape=shape, dtype="float32", gamma=100)


@pytest.mark.parametrize("gamma", [100, 25])
@pytest.mark.parametrize("name", NETWORKS)
def test_step(name, gamma, device, interleaved):
    build, shape, alternatives = NETWORKS[name]
    if gamma < 100:  # the choice of neurons costs all of them the same
        alternatives = [n for n in alternatives if n in DENSE]
    model, x = build().to(device), torch.randn(shape, device=device)
    providers = {n: step(model, loss) for n, loss in roll_penalties(model, x, gamma, alternatives).items()}
    # below 100, rounding may move a neuron across the edge of the top gamma percent
    check_agreement(providers, rtol=1e-3 if gamma == 100 else 1e-2)
    providers[CROSS_ENTROPY] = step(model, cross_entropy(model, x))
    interleaved(
        providers, table="roll", passes="forward + backward", network=name, shape=shape, dtype="float32", gamma=gamma
    )
