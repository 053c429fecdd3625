"""Table 1 of the paper: margins of a dense network on MNIST, with and without ROLL; and Figure 2's curves."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader

from llr_fast import Report, evaluate
from llr_fast.paper import classifiers, curves, datasets
from llr_fast.paper.classifiers import LAZY, Split, Variant
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.study import Study, margin_of, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = (1, 2, math.inf)
PERCENTILES = ("P25", "P50", "P75", "P100")
COUNTS = {
    "epochs": (20, "of Table 1's networks"),
    "curve_epochs": (20, "of Figure 2's networks"),
    "samples": (4, "random directions, where they replace the exact loss of Table 1"),
}
BATCH = 1000  # test images, which are measured at once
UNIT = 1e-4  # of the margins in the table


class Printed(NamedTuple):
    """The paper's numbers: accuracy in percent, regions, percentiles of the margins in units of 1e-4."""

    accuracy: int
    regions: int
    l1: tuple[int, ...]
    l2: tuple[int, ...]


PAPER = {
    None: Printed(98, 10000, (22, 53, 106, 866), (3, 6, 13, 91)),
    0.25: Printed(98, 9986, (219, 530, 1056, 6347), (37, 92, 182, 1070)),
    1.0: Printed(97, 8523, (665, 1593, 3175, 21825), (125, 297, 604, 4345)),
}


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `mnist` to the experiments."""
    add_experiment(commands, "mnist", "Table 1 and Figure 2", __doc__, run, COUNTS, "MNIST's four idx files")


def run(options: argparse.Namespace) -> None:
    """Trains and measures the networks that are not yet in the folder; writes tables and figures."""
    settings = settings_of(options, COUNTS)
    images = datasets.mnist(options.data)
    data = classifiers.split(images, classifiers.MEAN, classifiers.STD, flat=True)
    study = Study("mnist", options.out, settings)
    found = {
        variant: study.step(variant.name, partial(_measured, variant, data, study))
        for variant in variants(settings["samples"])
    }
    points = curves.measure(data, study)
    summary = {variant.name: {k: v for k, v in f.items() if k != "values"} for variant, f in found.items()}
    figures = {"margins": _histograms(found), "curves": curves.draw(points)}
    study.publish({"table": summary, "curves": points}, text(found), figures)


def variants(samples: int) -> list[Variant]:
    """The rows of the table: without regularisation, with the exact loss, with random directions, and lazily."""
    return [
        Variant(),
        *(
            variant
            for C in (0.25, 1.0)
            for variant in (
                Variant(C),
                Variant(C, estimator="rademacher", samples=samples),
                Variant(C, estimator="rademacher", every=LAZY),
            )
        ),
    ]


def _measured(variant: Variant, data: Split, study: Study) -> dict[str, Any]:
    """One network's row: margins refer to pixels from 0 to 1."""
    torch.manual_seed(study.settings["seed"])
    model = classifiers.dense(data.test[0][0].numel())
    epoch = classifiers.train(
        model, variant.loss(model), data, study.settings["epochs"], study.folder / f"{variant.name}.pt"
    )
    report = _evaluated(model, data, variant.name, study)
    return {
        "epoch": epoch,
        **report.to_dict(),
        "spearman": float(spearmanr(report.margins[1], report.margins[2]).statistic),
        "values": report.margins[2].tolist(),
    }


def _evaluated(model: nn.Module, data: Split, name: str, study: Study) -> Report:
    """As `evaluate` does, but that the batches which an earlier run finished are not computed again."""
    batches = list(DataLoader(data.test, BATCH))

    def margins(batch: int) -> list[tuple[list[float], bool]]:
        report = evaluate(model, [batches[batch]], NORMS, std=classifiers.STD)
        return [(report.margins[p].tolist(), report.exact[p]) for p in NORMS]

    parts = list(zip(*study.parts(name, len(batches), margins)))
    return replace(
        evaluate(model, batches, (), std=classifiers.STD),
        margins={
            p: torch.tensor([v for values, _ in of for v in values], dtype=torch.float64) for p, of in zip(NORMS, parts)
        },
        exact={p: all(exact for _, exact in of) for p, of in zip(NORMS, parts)},
    )


def text(found: Mapping[Variant, Mapping[str, Any]]) -> str:
    """The tables, each of the paper's rows above ours."""
    parts = [
        f"{len(next(iter(found.values()))['values'])} test images; margins in 1e-4 pixel values from 0 to 1, the "
        "paper's rows as printed there. Spearman: rank correlation of l1 and l2 margins."
    ]
    headers = ("loss", "estimator", "epoch", "accuracy", "#CLR lower", "#CLR upper", "Spearman")
    rows: list[list[Any]] = []
    for C, printed in PAPER.items():
        rows.append([_loss(C), "paper", "", f"{printed.accuracy}%", printed.regions, printed.regions, "≥ 0.98"])
        for variant, f in found.items():
            if variant.C == C:
                regions = f["regions"]["lower"], f["regions"]["upper"]
                rows.append([*_named(variant), f["epoch"], f"{f['accuracy']:.1%}", *regions, f"{f['spearman']:.3f}"])
    parts.append(table(headers, rows))
    for norm in ("l1", "l2", "linf"):
        parts.append(
            table(
                (f"{norm} margin", "estimator", *PERCENTILES, "largest deviation of P25 to P75"),
                _margin_rows(found, norm),
            )
        )
    return "\n\n".join(parts)


def _margin_rows(found: Mapping[Variant, Mapping[str, Any]], norm: str) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for C, printed in PAPER.items():
        theirs = getattr(printed, norm, None)
        if theirs is not None:
            rows.append([_loss(C), "paper", *theirs, ""])
        for variant, f in found.items():
            if variant.C == C:
                ours = [margin_of(f, norm, level, UNIT) for level in PERCENTILES]
                rows.append([*_named(variant), *ours, "" if theirs is None else deviation(ours[:3], theirs[:3])])
    return rows


def deviation(ours: list[float], theirs: tuple[int, ...]) -> str:
    """The largest of the relative deviations, with its sign; the paper's numbers are rounded to integers."""
    largest = max(((a - b) / b for a, b in zip(ours, theirs)), key=abs)
    return f"{largest:+.0%}"


def _loss(C: float | None) -> str:
    return "vanilla" if C is None else f"ROLL, C = {C:g}"


def _named(variant: Variant) -> tuple[str, str]:
    if variant.C is None:
        return _loss(None), ""
    if variant.estimator == "exact":
        return _loss(variant.C), "exact"
    directions = f"{variant.samples} random direction{'s' * (variant.samples > 1)}"
    return _loss(variant.C), directions + (f", every {variant.every}th step" if variant.every > 1 else "")


def _histograms(found: Mapping[Variant, Mapping[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    from llr_fast.plot import plot_margins

    figure = Figure(figsize=(7, 4), layout="constrained")
    exact = {_loss(v.C): torch.tensor(f["values"]) for v, f in found.items() if v.C is None or v.estimator == "exact"}
    ax = plot_margins(exact, p=2, unit="pixel values from 0 to 1", ax=figure.subplots())
    ax.set_title("MNIST test images, exact loss")
    return figure
