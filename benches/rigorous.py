"""What enclosures in real arithmetic cost and how narrow they are: python -m benches.rigorous [WORD].

Writes benches/results/rigorous.md and the table of docs/rigorous.md; with a word it only prints the rows whose name
has it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import llr_fast
from benches.networks import BasicBlock, resnet18
from benches.table import ROOT
from benches.vision import Concatenated
from llr_fast.commands import demo

RESULTS = ROOT / "benches" / "results" / "rigorous.md"
PAGE = ROOT / "docs" / "rigorous.md"
BEGIN, END = "<!-- Written by python -m benches.rigorous -->\n", "<!-- End of what it writes -->\n"
REPEATS = 3
Network = tuple[nn.Module, Tensor]


class Row(NamedTuple):
    network: str
    p: float
    neurons: int
    samples: int
    proven: float  # of the samples, those with all signs
    median: float  # relative widths of those
    widest: float
    cost: float  # over that of the margin alone


def digits(width: int, depth: int) -> Network:
    data = demo.load()
    torch.manual_seed(width + depth)
    model = chain(64, *[width] * depth, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(data.train_y)).split(demo.BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
    return model.eval(), data.test_x


def chain(*sizes: int) -> nn.Sequential:
    """Whose values keep their size."""
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(*layers[:-1])


def dense(depth: int) -> Network:
    return chain(784, *[128] * depth, 10), torch.randn(16, 784)


def settled(model: nn.Module, size: int) -> Network:
    """Batch-norms with the statistics of random images, and a smooth image."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(2 * torch.rand(4, 3, size, size))
    return model.eval(), 2 * F.avg_pool2d(F.pad(torch.rand(1, 3, size, size), (2,) * 4, mode="reflect"), 5, 1)


def cifar(blocks: int) -> Network:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64))):
        layers.append(BasicBlock(inputs, outputs, 2 if stage else 1))
        layers += [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), 32)


def densenet() -> Network:
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, padding=1, bias=False)]
    width, growth = 24, 12
    for stage in range(3):
        layers += [nn.AvgPool2d(2)] if stage else []
        for _ in range(8):
            new = nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1, bias=False)
            layers.append(Concatenated(nn.Identity(), nn.Sequential(*new)))
            width += growth
    head = nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    return settled(nn.Sequential(*layers, *head), 32)


def vgg(size: int) -> Network:
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return settled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * (size // 32) ** 2, 10)), size)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(16, 64, nonlinearity="relu", batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def networks() -> Iterator[tuple[str, Callable[[], Network], tuple[float, ...]]]:
    every = (2, 1, float("inf"))
    for width in (32, 64, 100, 200):
        for depth in (1, 2, 3):
            yield f"digits 64-{'-'.join([str(width)] * depth)}-10, 500 images", partial(digits, width, depth), (2,)
    for depth in (4, 8, 16, 32):
        yield f"dense chain 784-{depth} x 128-10", partial(dense, depth), every if depth in (8, 32) else (2,)
    yield "ReLU RNN, 30 steps of 64", lambda: (Recurrent().eval(), torch.randn(8, 30, 16)), every
    yield "ResNet-20 at 32", partial(cifar, 3), every
    yield "ResNet-56 at 32", partial(cifar, 9), (2,)
    yield "DenseNet, 24 layers at 32", densenet, every
    yield "VGG-16, max-pooled, at 64", partial(vgg, 64), (2,)
    yield "ResNet-18 at 64", partial(resnet18, 64), every
    yield "ResNet-18 at 224", partial(resnet18, 224), (2,)


def measure(name: str, model: nn.Module, x: Tensor, p: float) -> Row:
    """The least time of each of a few runs in turn."""
    alone, enclosed = [], []
    repeats = REPEATS if x[0].numel() < 2**16 else 2
    for _ in range(repeats):
        value, seconds = timed(lambda: llr_fast.margin(model, x, p))
        alone.append(seconds)
        found, seconds = timed(lambda: llr_fast.margin(model, x, p, rigorous=True))
        enclosed.append(seconds)
    assert ((found.lower <= value.value * (1 + 1e-9)) & (value.value * (1 - 1e-9) <= found.upper)).all()
    widths = ((found.upper - found.lower) / found.upper)[found.proven]
    neurons = llr_fast.activation_pattern(model, x[:1]).size(1)
    proven = float(found.proven.double().mean())
    return Row(
        name, p, neurons, len(x), proven, float(widths.median()), float(widths.max()), min(enclosed) / min(alone)
    )


def timed(call: Callable[[], llr_fast.Margin]) -> tuple[llr_fast.Margin, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def text(rows: list[Row]) -> str:
    body = [
        [
            *(r.network, f"{r.p:g}", f"{r.neurons:,}", f"{r.proven:.0%} of {r.samples}"),
            *(f"{r.median:.0e}", f"{r.widest:.0e}", f"{r.cost:.1f}"),
        ]
        for r in rows
    ]
    headers = ["network", "p", "neurons", "proven", "median width", "widest", "cost"]
    align = ("left", *["right"] * (len(headers) - 1))
    table = tabulate(body, headers, "github", disable_numparse=True, colalign=align)
    return f"{table}\n\n`python -m benches.rigorous`, one thread, PyTorch {torch.__version__.split('+')[0]}.\n"


def main(word: str = "") -> None:
    torch.set_num_threads(1)
    rows = []
    for name, build, norms in networks():
        if word in name:
            torch.manual_seed(2)
            model, x = build()
            for p in norms:
                rows.append(measure(name, model, x, p))
                print(*rows[-1], flush=True)
    if word:
        return
    found = text(rows)
    RESULTS.write_text(found)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
