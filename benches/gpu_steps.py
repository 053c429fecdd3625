"""Training steps and margins on a GPU, as multiples of the plain step and of a forward pass: wall-clock time.

Part of `python -m benches.gpu`. A step as written is bound by its calls where the batch is small; one that is compiled,
and with mode="reduce-overhead" replayed from a CUDA graph, is not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import llr_fast
from benches import bench_training, networks
from benches.providers import cross_entropy, step

DEVICE, SIZE = "cuda", 224
BATCHES = (8, 64)
ROUNDS = 7
COLUMNS = ("step", "plain ms", "with ROLL ms", "times as long")
MARGIN_COLUMNS = ("l2 margins", "forward pass ms", "margins ms", "forward passes")
Pair = tuple[str, Callable[[], object], Callable[[], object]]


def wall_clock(call: Callable[[], object]) -> float:
    """The median of some runs, after two to compile and warm up."""
    times = []
    for _ in range(ROUNDS + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def dense(batch: int) -> tuple[nn.Module, Tensor]:
    return networks.mlp(784, 300, 300, 300, 300, 10).to(DEVICE), torch.rand(batch, 784, device=DEVICE)


def in_bfloat16(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return loss()

    return call


def steps() -> Iterator[Pair]:
    """Name, plain step, and the same step with ROLL: along one random direction where nothing else is said."""
    for batch in BATCHES:
        model, x = bench_training.resnet18(DEVICE, SIZE, batch)
        ours = step(model, bench_training.with_roll(model, x))
        yield f"ResNet-18, {SIZE}x{SIZE}, batch {batch}", step(model, cross_entropy(model, x)), ours
    model, x = (t.to(memory_format=torch.channels_last) for t in (model, x))
    losses = cross_entropy(model, x), bench_training.with_roll(model, x)
    yield "the same, bfloat16, channels_last", *(step(model, in_bfloat16(loss)) for loss in losses)
    model, x = dense(64)
    plain = step(model, cross_entropy(model, x))
    yield "784-300x4-10, batch 64", plain, step(model, bench_training.with_roll(model, x))
    yield "the same, exact", plain, step(model, bench_training.with_roll(model, x, estimator="exact"))
    yield from compiled("784-300x4-10, batch 64", model, x)
    small = BATCHES[0]
    yield from compiled(f"ResNet-18, {SIZE}x{SIZE}, batch {small}", *bench_training.resnet18(DEVICE, SIZE, small))


def compiled(name: str, model: nn.Module, x: Tensor) -> Iterator[Pair]:
    for mode in ("default", "reduce-overhead"):
        losses = cross_entropy(model, x), bench_training.with_roll_of_default_generator(model, x)
        yield (
            f"{name}, compiled, {mode}",
            *(step(model, torch.compile(loss, fullgraph=True, mode=mode)) for loss in losses),
        )


def margins() -> Iterator[Pair]:
    """Name, one forward pass of the batch, and its margins."""
    model, _ = networks.resnet18(SIZE)
    model = model.to(DEVICE)
    for batch in (1, *BATCHES):
        x = torch.rand(batch, 3, SIZE, SIZE, device=DEVICE)
        forward = torch.no_grad()(lambda x=x: model(x))
        yield (
            f"ResNet-18, {SIZE}x{SIZE}, batch {batch}",
            forward,
            lambda x=x: llr_fast.margin(model, x, method="search"),
        )


def measured(pairs: Iterator[Pair]) -> list[dict]:
    return [{"name": name, "plain": wall_clock(plain), "ours": wall_clock(ours)} for name, plain, ours in pairs]


def rows(results: list[dict]) -> list[list[str]]:
    return [
        [run["name"], f"{1e3 * run['plain']:.2f}", f"{1e3 * run['ours']:.2f}", f"{run['ours'] / run['plain']:.2f}"]
        for run in results
    ]
