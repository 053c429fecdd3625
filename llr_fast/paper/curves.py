"""Figure 2 of the paper: accuracy and median l2 margin against lambda and against C, a curve for each gamma."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from llr_fast import evaluate
from llr_fast.paper import classifiers
from llr_fast.paper.classifiers import LAZY, Split, Variant
from llr_fast.paper.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAMMAS = (0, 25, 50, 75, 100)  # 0 is the single top neuron, "max" in the paper
LAMS = tuple(2.0**k for k in range(-3, 3))
CS = tuple(2.0**k for k in range(-2, 4))
POINTS = 2000  # test images of a point's median; the accuracy is of all


def measure(data: Split, study: Study) -> list[dict[str, Any]]:
    """Trains a network for each point, by one random direction, lazily; lambda varies at C = 1, and C at lambda = 2."""
    variants = dict.fromkeys(
        Variant(C, lam, gamma, "rademacher", every=LAZY) for gamma in GAMMAS for C, lam in _settings()
    )
    return [study.step(f"curve-{v.name}", partial(_measured, v, data, study)) for v in variants]


def draw(points: list[dict[str, Any]]) -> Figure:
    """Two by two panels: accuracy and margin, against lambda and against C."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (varied, fixed, value, label) in enumerate(
        (("lam", "C", 1.0, r"$\lambda$, at C = 1"), ("C", "lam", 2.0, r"C, at $\lambda$ = 2"))
    ):
        for gamma in GAMMAS:
            curve = sorted((p for p in points if p["gamma"] == gamma and p[fixed] == value), key=lambda p: p[varied])
            colour = colormaps["viridis"](gamma / 115)
            for row, measured in enumerate(("accuracy", "margin")):
                x, y = [p[varied] for p in curve], [p[measured] for p in curve]
                name = f"{gamma}%" if gamma else "max"
                axes[row, column].plot(x, y, marker="o", markersize=4, color=colour, label=name)
        axes[0, column].set_xscale("log", base=2)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("test accuracy")
    axes[1, 0].set(ylabel=r"median $\ell_2$ margin (pixel values)", yscale="log")
    axes[0, 1].legend(title=r"$\gamma$")
    return figure


def _settings() -> list[tuple[float, float]]:
    """Pairs of C and lambda."""
    return [(1.0, lam) for lam in LAMS] + [(C, 2.0) for C in CS]


def _measured(variant: Variant, data: Split, study: Study) -> dict[str, Any]:
    torch.manual_seed(study.settings["seed"])
    model = classifiers.dense(data.test[0][0].numel())
    path = study.folder / f"curve-{variant.name}.pt"
    classifiers.train(model, variant.loss(model), data, study.settings["curve_epochs"], path)
    path.unlink()  # 55 networks are 80 MB
    some = Subset(data.test, range(min(POINTS, len(data.test))))
    report = evaluate(model, DataLoader(some, 1000), 2, std=classifiers.STD, progress=False)
    return {
        "lam": variant.lam,
        "C": variant.C,
        "gamma": variant.gamma,
        "accuracy": classifiers.accuracy(model, data.test),
        "margin": report.percentile(2)[50],
    }
