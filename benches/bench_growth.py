"""How the exact ROLL step grows with the input, the width, the depth and the batch; and its peak memory."""

import pytest
import torch
from torch import nn

from benches import memory, networks
from benches.providers import CROSS_ENTROPY, OURS, check_agreement, cross_entropy, roll_penalties, step

pytestmark = pytest.mark.timeout(600)

BASE = {"input": 784, "width": 300, "depth": 4, "batch": 16}
SWEEPS = {
    "input": [784, 3072, 12_288, 49_152, 150_528],
    "width": [100, 300, 900],
    "depth": [2, 4, 8, 16],
    "batch": [1, 16, 64, 256],
}
LIMIT = 6e10  # multiply-adds of a forward pass beyond which an alternative is not run: some seconds a step


@pytest.mark.parametrize("axis, size", [(axis, size) for axis, sizes in SWEEPS.items() for size in sizes])
def test_step(axis, size, device, interleaved):
    at = BASE | {axis: size}
    model = networks.mlp(at["input"], *[at["width"]] * at["depth"], 10).to(device)
    x = torch.randn(at["batch"], at["input"], device=device)
    alternatives = [name for name, cost in _multiply_adds(model, len(x)).items() if cost <= LIMIT]
    providers = {name: step(model, loss) for name, loss in roll_penalties(model, x, 100, alternatives).items()}
    check_agreement(providers, rtol=1e-3)
    providers[CROSS_ENTROPY] = step(model, cross_entropy(model, x))
    interleaved(providers, table="growth", axis=axis, dtype="float32", **at)


def _multiply_adds(model: nn.Sequential, batch: int) -> dict[str, float]:
    first, *others = [module.weight for module in model if isinstance(module, nn.Linear)][:-1]
    above, inputs = sum(weight.numel() for weight in others), first.size(1)
    return {
        "paper_passes": batch * (inputs + 1) * (first.numel() + above),
        "layer_by_layer": batch * inputs * above,
    }


PEAKS = {  # network -> sizes, and the largest size at which each alternative is run
    "dense": ([784, 12_288, 150_528], {"paper_passes": 784, "layer_by_layer": 12_288}),
    "convolutional": ([16, 32, 64], {"paper_passes": 32}),
}


@pytest.mark.parametrize("network, size", [(network, size) for network, (sizes, _) in PEAKS.items() for size in sizes])
def test_peak_memory(network, size, device, benchmark):
    if device == "cpu" and not memory.PROCESS.exists():
        pytest.skip("the peak is read from /proc")
    model, x = memory.build(network, min(PEAKS[network][0]))
    largest = PEAKS[network][1]
    steps = {name: memory.training_step(model, x, name) for name in (*largest, OURS)}
    check_agreement(steps, rtol=1e-3)
    names = [name for name, limit in largest.items() if size <= limit] + [CROSS_ENTROPY]
    found = {name: memory.megabytes(network, size, name, device) for name in names}
    found[OURS] = benchmark.pedantic(memory.megabytes, (network, size, OURS, device))
    shape = list(memory.build(network, size)[1].shape)
    benchmark.extra_info.update(device=device, table="memory", network=network, shape=shape, megabytes=found)
