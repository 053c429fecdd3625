"""Table 4's measure on MNIST: how much the true-class gradient of a convolutional network changes near an image."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from llr_fast import evaluate, gradient_distortion
from llr_fast.paper import classifiers, datasets
from llr_fast.paper.classifiers import Split, Variant
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.study import Study, spread, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADIUS = 8 / 256  # of the l_inf ball, as in the paper
PERCENTILES = (25, 50, 75, 100)
COUNTS = {
    "epochs": (5, "of training"),
    "images": (32, "test images"),
    "samples": (1000, "of the mean"),
    "population": (480, "of the genetic search"),
    "generations": (30, "of the genetic search"),
    "networks": (3, "of each kind, from as many seeds"),
}
VARIANTS = {"vanilla": Variant(), "ROLL": Variant(C=1.0, lam=1.0, estimator="rademacher")}
MEASURES = {"expected": "mean of samples", "maximal": "genetic search", "baseline": "as many samples"}
NOTE = """The paper measures a ResNet-18 on Caltech-256, a data set that is not to be had here; its numbers would not be
comparable. Here: two convolutions and two dense layers on MNIST, pixels from 0 to 1; ROLL with lambda = 1, C = 1 and
one random direction. l1 distortion of the true-class gradient in the l_inf ball of 8/256 cut with [0, 1], percentiles
over {images} test images: mean over {networks} networks ± their standard deviation. The maximum is that of the genetic
search (population {population}, {generations} generations; the paper: 4800 and 30), beside the largest of as many
uniform samples."""


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `distortion` to the experiments."""
    add_experiment(
        commands, "distortion", "Table 4's measure, on MNIST", __doc__, run, COUNTS, "MNIST's four idx files"
    )


def run(options: argparse.Namespace) -> None:
    """Trains and measures the networks that are not yet in the folder; writes table and figure."""
    settings = settings_of(options, COUNTS)
    data = classifiers.split(datasets.mnist(options.data))
    study = Study("distortion", options.out, settings)
    seeds = range(settings["seed"], settings["seed"] + settings["networks"])

    def network(name: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = study.step(f"{name}-{seed}", partial(_measured, name, seed, data, study))
        return found

    found = {name: [network(name, seed) for seed in seeds] for name in VARIANTS}
    study.publish(found, text(found, settings), {"quartiles": draw(found)})


def _measured(name: str, seed: int, data: Split, study: Study) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = classifiers.convolutional(data.test[0][0].numel())
    path = study.folder / f"{name}-{seed}.pt"
    epoch = classifiers.train(model, VARIANTS[name].loss(model), data, study.settings["epochs"], path)
    count = min(study.settings["images"], len(data.test))
    margins = evaluate(model, DataLoader(Subset(data.test, range(count)), count), 2)
    x, y = (tensor[:count] for tensor in data.test.tensors)
    budget = {name: study.settings[name] for name in ("samples", "population", "generations")}
    found = gradient_distortion(model, x, y, RADIUS, **budget, generator=torch.Generator().manual_seed(seed))
    return {
        "epoch": epoch,
        "accuracy": classifiers.accuracy(model, data.test),
        "margin": margins.percentile(2)[50],
        **{measure: _percentiles(getattr(found, measure)) for measure in MEASURES},
    }


def _percentiles(values: torch.Tensor) -> list[float]:
    return values.double().quantile(torch.tensor(PERCENTILES, dtype=torch.float64) / 100).tolist()


def text(found: Mapping[str, Sequence[Mapping[str, Any]]], settings: Mapping[str, Any]) -> str:
    """The note and the two tables."""
    networks = table(
        ("network", "accuracy", "median l2 margin"),
        [
            [name, *(spread([run[key] for run in runs]) for key in ("accuracy", "margin"))]
            for name, runs in found.items()
        ],
    )
    rows = []
    for measure, label in MEASURES.items():
        for name, runs in found.items():
            percentiles = zip(*(run[measure] for run in runs))
            rows.append([f"{measure.replace('baseline', 'maximal')}, {label}", name, *map(spread, percentiles)])
    distortion = table(("l1 distortion", "network", *(f"P{level}" for level in PERCENTILES)), rows)
    return "\n\n".join([NOTE.format(**settings), networks, distortion])


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Medians over the images, a point for each network; bars from P25 to P75."""
    from matplotlib.figure import Figure

    from llr_fast.plot import COLOURS

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for shift, (name, runs), colour in zip((-0.15, 0.15), found.items(), COLOURS):
        for place, measure in enumerate(MEASURES):
            for seed, run in enumerate(runs):
                low, middle, high = run[measure][:3]
                at = place + shift + 0.05 * (seed - (len(runs) - 1) / 2)
                label = name if place == seed == 0 else None
                bars = [[middle - low], [high - middle]]
                ax.errorbar([at], [middle], bars, fmt="o", markersize=4, color=colour, label=label)
    ax.set_xticks(range(len(MEASURES)), [f"{measure}\n({label})" for measure, label in MEASURES.items()])
    ax.set_ylabel(r"$\ell_1$ distortion of the gradient")
    ax.set_ylim(bottom=0)
    figure.legend(title="network; bars: P25 to P75", loc="outside right upper")
    return figure
