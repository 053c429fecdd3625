"""Trains a small network on 8x8 digits with and without ROLL, and compares how large its linear regions are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from llr_fast import ROLLLoss, activation_pattern, margin, robustness
from llr_fast.checks import check_count, check_folder, check_seed
from llr_fast.errors import missing
from llr_fast.plot import plot_margins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMS = (1, 2, float("inf"))
BATCH = 64
LAM, C = 0.3, 1.0
EPS = 0.02  # l2 distance within which accuracy is certified


class Digits(NamedTuple):
    train_x: Tensor  # [1297, 64], pixels in [0, 1]
    train_y: Tensor
    test_x: Tensor  # [500, 64]
    test_y: Tensor


class Result(NamedTuple):
    accuracy: float
    margins: dict[float, Tensor]  # p -> [500]
    patterns: int
    certified: float  # accuracy within EPS


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `demo` to the commands of `python -m llr_fast`."""
    parser = commands.add_parser("demo", help="train on small digits with and without ROLL", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where margins.png goes (default: .)")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default: %(default)s)")
    parser.set_defaults(run=lambda options: run(options.out, options.epochs, options.seed), resumable=False)


def run(out: Path, epochs: int, seed: int) -> dict[str, Result]:
    """Trains and measures both networks, prints the table and writes `margins.png` into the folder `out`."""
    check_count("epochs", epochs)
    check_seed(seed)
    check_folder("out", out)
    digits = load()
    torch.set_num_threads(1)  # threads do not speed up matrices this small, and cost much where cores are shared
    results = {name: train_and_measure(name, digits, epochs, seed) for name in ("cross-entropy", "ROLL")}
    print(table(results))
    path = out / "margins.png"
    picture(results).figure.savefig(path)  # type: ignore[union-attr]
    print("picture:", path)
    return results


def load() -> Digits:
    """Loads scikit-learn's digits with a split that no option changes."""
    try:
        import matplotlib  # noqa: F401  (before the training, not after it)
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("the demo needs matplotlib and scikit-learn", "demo") from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(pixels).float()[order] / 16, torch.from_numpy(labels).long()[order]
    return Digits(x[:-500], y[:-500], x[-500:], y[-500:])


def network() -> nn.Sequential:
    hidden = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(100, 10))


def train_and_measure(name: str, digits: Digits, epochs: int, seed: int) -> Result:
    torch.manual_seed(seed)
    model = network()
    roll = ROLLLoss(model, lam=LAM, C=C, estimator="rademacher") if name == "ROLL" else None
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in tqdm(range(epochs), desc=f"{name:>13}", unit="epoch"):
        for batch in torch.randperm(len(digits.train_y)).split(BATCH):
            output, penalty = roll(digits.train_x[batch]) if roll else (model(digits.train_x[batch]), 0)
            loss = F.cross_entropy(output, digits.train_y[batch]) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return measure(model.eval(), digits.test_x, digits.test_y)


def measure(model: nn.Module, x: Tensor, y: Tensor) -> Result:
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    margins = {p: margin(model, x, p).value for p in NORMS}
    certified = (robustness(model, x, y=y).lower > EPS).float().mean().item()
    return Result(accuracy, margins, len(activation_pattern(model, x).unique(dim=0)), certified)


def table(results: Mapping[str, Result]) -> str:
    """Formats accuracies, number of activation patterns and quartiles of the margins, one column for each network."""
    rows: dict[str, list[str]] = {
        "accuracy": [f"{result.accuracy:.1%}" for result in results.values()],
        f"certified accuracy, l2 {EPS:g}": [f"{result.certified:.1%}" for result in results.values()],
        "activation patterns": [str(result.patterns) for result in results.values()],
    }
    for p in NORMS:
        columns = [quartiles(result.margins[p]) for result in results.values()]
        for name, values in zip(("P25", "P50", "P75"), zip(*columns)):
            rows[f"l{p} margin, {name}"] = [f"{value:#.2g}" for value in values]
    points = len(next(iter(results.values())).margins[2])
    body = [[name, *cells] for name, cells in rows.items()]
    align = ("left", *("right" for _ in results))
    headers = [f"{points} test digits", *results]
    return str(tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align))


def quartiles(values: Tensor) -> list[float]:
    # Not interpolated, because infinite margins are legitimate.
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    return values.quantile(levels, interpolation="nearest").tolist()


def picture(results: Mapping[str, Result]) -> Axes:
    """The l2 margins of both networks, as histograms."""
    margins = {name: result.margins[2] for name, result in results.items()}
    ax = plot_margins(margins, p=2, unit="pixel values from 0 to 1")
    ax.set_title("Distance from a test digit to the boundary of its linear region")
    return ax
