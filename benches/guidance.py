"""What lam, C, gamma, estimator and every buy: python -m benches.guidance MNIST_FOLDER [--epochs N].

Trains one dense network on MNIST for each choice, a few epochs; writes benches/results/guidance.md and a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import llr_fast
from llr_fast.paper import classifiers, datasets
from llr_fast.paper.study import save

ROOT = Path(__file__).parents[1]
TESTED = 1000


class Choice(NamedTuple):
    """Options of ROLLLoss; lam None for cross-entropy alone."""

    lam: float | None = None
    C: float = 1.0
    gamma: float = 100.0
    estimator: str = "rademacher"
    every: int = 1


CHOICES = [
    Choice(),
    *(Choice(lam, C, every=every) for lam in (0.1, 0.5, 2.0) for C in (0.25, 1.0) for every in (1, 8)),
    Choice(2.0, 0.25, estimator="exact"),
    Choice(2.0, 0.25, gamma=50.0),
]


class Measured(NamedTuple):
    accuracy: float
    margin: float  # median l2, in pixel values from 0 to 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder of MNIST's four idx files")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    images = datasets.mnist(options.data)
    found = {choice: measure(choice, images, options.epochs) for choice in tqdm(CHOICES, unit="network")}
    (ROOT / "benches" / "results" / "guidance.md").write_text(text(found, options.epochs))
    print(save(figure(found), ROOT / "docs" / "images" / "guidance.png"))


def measure(choice: Choice, images: datasets.Images, epochs: int) -> Measured:
    torch.manual_seed(0)
    model = classifiers.dense(784)
    roll = None if choice.lam is None else llr_fast.ROLLLoss(model, **choice._asdict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5, nesterov=True)
    train = TensorDataset(_normalised(images.train_x), images.train_y)
    for _ in range(epochs):
        for x, y in DataLoader(train, classifiers.BATCH, shuffle=True):
            optimizer.zero_grad()
            output, penalty = roll(x) if roll else (model(x), 0.0)
            (F.cross_entropy(output, y) + penalty).backward()
            optimizer.step()
    x = _normalised(images.test_x)
    with torch.no_grad():
        accuracy = float((model.eval()(x).argmax(1) == images.test_y).float().mean())
    margin = float(llr_fast.margin(model, x[:TESTED]).value.median()) * classifiers.STD
    return Measured(accuracy, margin)


def _normalised(images: Tensor) -> Tensor:
    return images.flatten(1).sub(classifiers.MEAN).div(classifiers.STD)


def text(found: dict[Choice, Measured], epochs: int) -> str:
    plain = found[Choice()]
    rows = [
        [
            *("" if choice.lam is None else value for value in choice),
            f"{m.accuracy:.1%}",
            f"{m.margin:.2g}",
            f"{m.margin / plain.margin:.1f}",
        ]
        for choice, m in found.items()
    ]
    headers = [*Choice._fields, "accuracy", "median l2 margin", "over cross-entropy's"]
    table = tabulate(rows, headers, "github", disable_numparse=True)
    run = f"Run: python -m benches.guidance, {epochs} epochs of MNIST, 784-300-300-300-300-10, seed 0"
    return f"{table}\n\n{run}; margins of {TESTED} test images; PyTorch {torch.__version__.split('+')[0]}.\n"


def figure(found: dict[Choice, Measured]) -> Figure:
    """Accuracy against the median margin: one curve over lam for each C and each `every`."""
    drawn = Figure(figsize=(7, 4), layout="constrained")
    ax = drawn.subplots()
    for C, color in ((0.25, "C0"), (1.0, "C1")):
        for every, style in ((1, "o-"), (8, "s--")):
            points = [(m.margin, m.accuracy, choice.lam) for choice, m in found.items() if _on(choice, C, every)]
            label = f"C = {C:g}, " + ("every step" if every == 1 else f"every {every}th step")
            ax.plot([p[0] for p in points], [100 * p[1] for p in points], style, color=color, label=label)
            for margin, accuracy, lam in points:
                ax.annotate(f"{lam:g}", (margin, 100 * accuracy), textcoords="offset points", xytext=(4, 4), fontsize=8)
    plain = found[Choice()]
    ax.plot([plain.margin], [100 * plain.accuracy], "k*", label="cross-entropy")
    ax.set(xscale="log", xlabel="median l2 margin of test images, in pixel values from 0 to 1", ylabel="accuracy, %")
    ax.set_title("ROLL along one random direction; numbers are lam")
    ax.legend(fontsize=8)
    return drawn


def _on(choice: Choice, C: float, every: int) -> bool:
    return (choice.C, choice.every, choice.gamma, choice.estimator) == (C, every, 100.0, "rademacher") and bool(
        choice.lam
    )


if __name__ == "__main__":
    main()
