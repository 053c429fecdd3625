"""How exact random directions are: axes (Eq. 10), signs and Gaussian ones, on trained networks and in training."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.utils.data import DataLoader, Subset

from llr_fast import ROLLLoss, evaluate
from llr_fast.linearized.directions import Directions
from llr_fast.paper import classifiers, datasets
from llr_fast.paper.algorithms import hidden_values, rows
from llr_fast.paper.classifiers import Split, Variant
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.study import Study, spread, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = {
    "epochs": (2, "of training"),
    "images": (32, "test images, whose variances are computed"),
    "points": (2000, "test images, whose margins are computed"),
    "networks": (3, "of each kind, from as many seeds"),
}
C, LAM = 1.0, 1.0
NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {
    "dense": classifiers.dense,
    "convolutional": classifiers.convolutional,
}
DISTRIBUTIONS = ("axis", "rademacher", "gaussian")
NOTE = """Networks on MNIST, pixels from 0 to 1: four hidden layers of 300 (dense), and two convolutions and two dense
layers (convolutional), {epochs} epochs. What is estimated is the sum of all neurons' squared gradient norms, at one
image and by one direction. Its relative standard deviation follows from M = J^T J without sampling: the variance is
D sum M_ii^2 - tr(M)^2 for a random axis, 2 (|M|^2 - sum M_ii^2) for random signs and 2 |M|^2 for Gaussian directions.
Quadratic mean over {images} test images, mean over {networks} networks ± their standard deviation."""


class GaussianROLL(ROLLLoss):
    """ROLL by Gaussian directions, for comparison: unbiased, but its variance is never less than that of signs."""

    def _draw(self, x: Tensor, way: str) -> tuple[Directions, float]:
        return Directions(torch.randn(self.samples, *x.shape)), 1 / self.samples


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `estimators` to the experiments."""
    shows = "variance of random directions, and what they reach"
    add_experiment(commands, "estimators", shows, __doc__, run, COUNTS, "MNIST's four idx files")


def run(options: argparse.Namespace) -> None:
    """Trains and measures the networks that are not yet in the folder; writes tables and the figure."""
    settings = settings_of(options, COUNTS)
    images = datasets.mnist(options.data)
    study = Study("estimators", options.out, settings)
    seeds = range(settings["seed"], settings["seed"] + settings["networks"])
    found = {
        network: {
            loss: [
                study.step(f"{network}-{loss}-{seed}", partial(_measured, network, loss, seed, images, study))
                for seed in seeds
            ]
            for loss in ("vanilla", *DISTRIBUTIONS)
        }
        for network in NETWORKS
    }
    study.publish(found, text(found, settings), {"variance": draw(found)})


def deviations(model: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Relative standard deviation of the sum of squared gradient norms by one direction, quadratic mean over x."""
    jacobian = vmap(jacrev(lambda x: rows(hidden_values(model, x.unsqueeze(0))).squeeze(0)))
    squares: dict[str, list[Tensor]] = {name: [] for name in DISTRIBUTIONS}
    for sample in x.split(1):
        J = jacobian(sample).flatten(2).squeeze(0).double()
        M = J.T @ J
        diagonal, total, size = M.diagonal().square().sum(), M.trace() ** 2, len(M)
        squares["axis"].append((size * diagonal - total) / total)
        squares["rademacher"].append(2 * (M.square().sum() - diagonal) / total)
        squares["gaussian"].append(2 * M.square().sum() / total)
    return {name: torch.stack(values).mean().sqrt().item() for name, values in squares.items()}


def _measured(network: str, loss: str, seed: int, images: datasets.Images, study: Study) -> dict[str, Any]:
    torch.manual_seed(seed)
    data: Split = classifiers.split(images, flat=network == "dense")
    model = NETWORKS[network](images.test_x[0].numel())
    path = study.folder / f"{network}-{loss}-{seed}.pt"
    classifiers.train(model, _loss(model, loss), data, study.settings["epochs"], path)
    points = Subset(data.test, range(min(study.settings["points"], len(data.test))))
    report = evaluate(model, DataLoader(points, 500), 2, progress=False)
    return {
        "accuracy": classifiers.accuracy(model, data.test),
        "margin": report.percentile(2)[50],
        "deviations": deviations(model, data.test.tensors[0][: study.settings["images"]]),
    }


def _loss(model: nn.Module, name: str) -> ROLLLoss | None:
    if name == "gaussian":
        return GaussianROLL(model, lam=LAM, C=C, estimator="rademacher")
    return None if name == "vanilla" else Variant(C, LAM, estimator=name).loss(model)


def text(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], settings: Mapping[str, Any]) -> str:
    """The note and the two tables."""
    variances, reached = [], []
    for network, losses in found.items():
        for loss, runs in losses.items():
            reached.append([network, _name(loss), *(spread([run[k] for run in runs]) for k in ("accuracy", "margin"))])
            if loss in ("vanilla", "rademacher"):
                each = [[run["deviations"][name] for run in runs] for name in DISTRIBUTIONS]
                worth = [(axis / signs) ** 2 for axis, signs in zip(*each[:2])]
                variances.append([network, _name(loss), *map(spread, each), spread(worth)])
    headers = ("network", "trained by", *DISTRIBUTIONS, "axes that one random-sign direction is worth")
    training = "Trained with one direction for each sample, so at equal cost:"
    return "\n\n".join(
        [
            NOTE.format(**settings),
            table(headers, variances),
            training,
            table(("network", "trained by", "accuracy", "median l2 margin"), reached),
        ]
    )


def _name(loss: str) -> str:
    return "cross-entropy" if loss == "vanilla" else f"ROLL, {loss}"


def draw(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Relative standard deviations, a bar for each distribution."""
    from matplotlib.figure import Figure

    from llr_fast.plot import COLOURS

    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    groups = [(network, loss) for network in found for loss in ("vanilla", "rademacher")]
    for shift, name, colour in zip((-0.25, 0, 0.25), DISTRIBUTIONS, COLOURS):
        heights = [statistics.mean(run["deviations"][name] for run in found[n][loss]) for n, loss in groups]
        bars = ax.bar([place + shift for place in range(len(groups))], heights, 0.25, color=colour, label=name)
        ax.bar_label(bars, [f"{height:.2g}" for height in heights], fontsize="small")
    ax.set_xticks(range(len(groups)), [f"{network}\n{_name(loss)}" for network, loss in groups])
    ax.set_ylabel("relative standard deviation, one direction")
    ax.margins(y=0.15)
    ax.legend(ncols=3)
    return figure
