"""A training step with the sampled ROLL penalty next to one without it: time, and the memory that tensors take."""

import pytest
import torch
from torch.nn import functional as F

import llr_fast
from benches import baselines, networks, vision
from benches.memory import peak_of_tensors
from benches.providers import CROSS_ENTROPY, OURS, check_agreement, cross_entropy, step

pytestmark = pytest.mark.timeout(600)

# Times those of the plain step
MOST_TIME, MOST_TIME_OF_LAZY, MOST_TIME_OF_OTHERS, MOST_MEMORY = 2.3, 1.25, 2.6, 2.2
MOST_TIME_OF_DENSE, MOST_TIME_OF_COMPILED = 3.2, 2.4
EVERY = 8
SIZE, BATCH = 224, 8
SEED = 1


def resnet18(device, size, batch):
    """ResNet-18 in training mode and a batch of random images."""
    model, _ = networks.resnet18(32)
    return model.train().to(device), torch.rand(batch, 3, size, size, device=device)


def with_roll(model, x, **options):
    """Cross-entropy and ROLL with one random direction, the same in each step."""
    generator = torch.Generator(x.device)
    loss = llr_fast.ROLLLoss(model, generator=generator, **{"estimator": "rademacher", **options})
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def call():
        generator.manual_seed(SEED)
        output, penalty = loss(x)
        return F.cross_entropy(output, target) + penalty

    return call


def with_jvp(model, x):
    """The same in plain torch, by forward-mode differentiation of the hidden values."""
    signs = torch.randint(0, 2, (1, *x.shape), dtype=torch.int8, generator=torch.Generator().manual_seed(SEED))
    plain, direction = cross_entropy(model, x), (2 * signs[0] - 1).to(x)

    def values(x):
        return torch.cat([z.flatten(1) for z in baselines.hidden_values(model, x)], 1)

    def call():
        z, tangents = torch.func.jvp(values, (x,), (direction,))
        return plain() + baselines.penalty(tangents.square(), z)

    return call


def check(size=32, batch=2):
    """Raises unless both ways agree on loss and gradients, with fixed statistics, in float64."""
    model, x = resnet18("cpu", size, batch)
    model, x = model.eval().double(), x.double()
    losses = {"jvp": with_jvp(model, x), OURS: with_roll(model, x)}
    check_agreement({name: step(model, loss) for name, loss in losses.items()}, rtol=1e-9)


def test_step(device, interleaved, benchmark):
    check()
    model, x = resnet18(device, SIZE, BATCH)
    providers = {CROSS_ENTROPY: step(model, cross_entropy(model, x)), OURS: step(model, with_roll(model, x))}
    interleaved(providers, table="training", network="ResNet-18", shape=list(x.shape), dtype="float32")
    if benchmark.enabled:
        seconds = benchmark.extra_info["seconds"]
        assert seconds[OURS] <= MOST_TIME * seconds[CROSS_ENTROPY], seconds


@pytest.mark.parametrize("name", vision.NETWORKS)
def test_step_of_other_networks(name, device, interleaved, benchmark):
    """With max-pooling, batch-norm before activations, depthwise convolutions, concatenation: time, then memory."""
    check()
    model, x = vision.NETWORKS[name]().train().to(device), torch.rand(BATCH, 3, 128, 128, device=device)
    providers = {CROSS_ENTROPY: step(model, cross_entropy(model, x)), OURS: step(model, with_roll(model, x))}
    providers[OURS]()  # after which nothing is computed behind the last activation
    peaks = {name: peak_of_tensors(call, device) / 1e6 for name, call in providers.items()}
    about = {"network": name, "shape": list(x.shape), "dtype": "float32", "megabytes": peaks}
    interleaved(providers, table="training", **about)
    assert peaks[OURS] <= MOST_MEMORY * peaks[CROSS_ENTROPY], peaks
    if benchmark.enabled:
        seconds = benchmark.extra_info["seconds"]
        assert seconds[OURS] <= MOST_TIME_OF_OTHERS * seconds[CROSS_ENTROPY], seconds


def test_step_of_a_dense_network(device, interleaved, benchmark):
    check()
    model, x = networks.mlp(784, 300, 300, 300, 300, 10).to(device), torch.rand(64, 784, device=device)
    plain, ours = (repeated(step(model, loss), 20) for loss in (cross_entropy(model, x), with_roll(model, x)))
    about = {"network": "784-300-300-300-300-10", "shape": list(x.shape), "dtype": "float32"}
    interleaved({CROSS_ENTROPY: plain, OURS: ours}, table="training", **about)
    if benchmark.enabled:
        seconds = benchmark.extra_info["seconds"]
        assert seconds[OURS] <= MOST_TIME_OF_DENSE * seconds[CROSS_ENTROPY], seconds


@pytest.mark.parametrize("name", ["ResNet-18", "784-300-300-300-300-10"])
def test_compiled_step(name, device, interleaved, benchmark):
    """One graph over the compiled plain step."""
    check()
    if name == "ResNet-18":
        model, x = resnet18(device, SIZE, BATCH)
    else:
        model, x = networks.mlp(784, 300, 300, 300, 300, 10).to(device), torch.rand(64, 784, device=device)
    losses = {CROSS_ENTROPY: cross_entropy(model, x), OURS: with_roll_of_default_generator(model, x)}
    compiled = {name: step(model, torch.compile(loss, fullgraph=True)) for name, loss in losses.items()}
    for call in compiled.values():
        call()
    interleaved(compiled, table="training", network=f"{name}, compiled", shape=list(x.shape), dtype="float32")
    if benchmark.enabled:
        seconds = benchmark.extra_info["seconds"]
        assert seconds[OURS] <= MOST_TIME_OF_COMPILED * seconds[CROSS_ENTROPY], seconds


def with_roll_of_default_generator(model, x):
    loss, target = llr_fast.ROLLLoss(model, estimator="rademacher"), torch.zeros(len(x), dtype=torch.long)

    def call():
        output, penalty = loss(x)
        return F.cross_entropy(output, target.to(x.device)) + penalty

    return call


def test_lazy_steps(device, interleaved, benchmark):
    """Eight steps, of which one has the penalty."""
    check()
    model, x = resnet18(device, SIZE, BATCH)
    plain, lazy = (step(model, loss) for loss in (cross_entropy(model, x), with_roll(model, x, every=EVERY)))
    providers = {name: repeated(one, EVERY) for name, one in ((CROSS_ENTROPY, plain), (OURS, lazy))}
    about = {"network": "ResNet-18, every 8th step", "shape": list(x.shape), "dtype": "float32"}
    interleaved(providers, table="training", **about)
    if benchmark.enabled:
        seconds = benchmark.extra_info["seconds"]
        assert seconds[OURS] <= MOST_TIME_OF_LAZY * seconds[CROSS_ENTROPY], seconds


def repeated(once, times):
    return lambda: [once() for _ in range(times)]


def test_peak_memory(device, benchmark):
    check()
    model, x = resnet18(device, SIZE, BATCH)
    found = {CROSS_ENTROPY: peak_of_tensors(step(model, cross_entropy(model, x)), device)}
    found[OURS] = benchmark.pedantic(peak_of_tensors, (step(model, with_roll(model, x)), device))
    record(benchmark, device, "ResNet-18", x, found)
    assert found[OURS] <= MOST_MEMORY * found[CROSS_ENTROPY], found


def test_peak_memory_of_exact_mode(device, benchmark, monkeypatch):
    """Beyond the plain step, no more than the budget of a chunk of axes."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 2**26)
    model, x = networks.convnet(3, 32).to(device), torch.rand(4, 3, 32, 32, device=device)
    found = {CROSS_ENTROPY: peak_of_tensors(step(model, cross_entropy(model, x)), device)}
    found[OURS] = benchmark.pedantic(peak_of_tensors, (step(model, with_roll(model, x, estimator="exact")), device))
    record(benchmark, device, "two convolutions of 8 maps", x, found)
    assert found[OURS] <= found[CROSS_ENTROPY] + llr_fast.certificates.evaluation.MEMORY_BUDGET, found


def record(benchmark, device, network, x, found):
    megabytes = {name: size / 1e6 for name, size in found.items()}
    about = {"device": device, "table": "training memory", "network": network, "shape": list(x.shape)}
    benchmark.extra_info.update(**about, megabytes=megabytes, dtype="float32")
