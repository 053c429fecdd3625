"""Table 3 and Figure 3 of the paper: margins of a recurrent network on Japanese Vowels, with and without ROLL."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llr_fast import evaluate
from llr_fast.norms import NORMS
from llr_fast.paper import datasets, vowels_text
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.scornn import ScoRNN
from llr_fast.paper.sequences import BATCH, LEARNING_RATE, Split, Variant, by_length, objective, split, train
from llr_fast.paper.study import Study
from llr_fast.paper.training import state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = (Variant(), Variant(2**-5, 2**4), Variant(2**-1, 2**2))
STATED = {"batch": BATCH, "learning_rate": LEARNING_RATE, "gamma": 100, "rho": 0.5, "slope": 0.01}
CHANNEL = 8  # the ninth
DRAWS = 8  # of random directions, to compare with the exact penalty
COUNTS = {
    "epochs": (200, "of training"),
    "hidden": (512, "units"),
    "samples": (4, "random directions"),
}


class Trained(NamedTuple):
    """A network, and for each way to select an epoch the "epoch" and its "state"."""

    model: ScoRNN
    best: dict[str, dict[str, Any]]

    def selected(self, by: str) -> ScoRNN:
        self.model.load_state_dict(self.best[by]["state"])
        return self.model.eval()


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `vowels` to the experiments."""
    parser = add_experiment(commands, "vowels", "Table 3 and Figure 3", __doc__, run, COUNTS, "the two .ts files")
    parser.add_argument(
        "--estimator",
        choices=("exact", "rademacher"),
        default="rademacher",
        help="of the penalty in training; exact takes about four times as long (default: %(default)s)",
    )
    parser.add_argument(
        "--held", type=int, default=5, metavar="N", help="of each speaker, for validation (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Trains and measures the networks that are not yet in the folder; writes tables and the figure."""
    settings = {**settings_of(options, COUNTS), "estimator": options.estimator, "held": options.held}
    data = split(*datasets.japanese_vowels(options.data), options.held, options.seed)
    study = Study("vowels", options.out, {**settings, **STATED})
    networks = {variant: _trained(variant, data, study) for variant in VARIANTS}
    rows = {
        variant: {by: study.step(f"{variant.name}-{by}", partial(_measured, network, by, data)) for by in network.best}
        for variant, network in networks.items()
    }
    checks = {
        variant: study.step(f"{variant.name}-estimator", partial(_estimators, variant, networks[variant], data, study))
        for variant in VARIANTS[1:]
    }
    results = {
        "networks": {variant.name: row for variant, row in rows.items()},
        "estimators": {variant.name: check for variant, check in checks.items()},
    }
    pictures = {"stability": _stability(networks, data, rows[VARIANTS[0]]["validation"]["at"])}
    study.publish(results, vowels_text.text(rows, checks, data, study.settings), pictures)


def _trained(variant: Variant, data: Split, study: Study) -> Trained:
    settings = study.settings
    torch.manual_seed(settings["seed"])
    channels, classes = data.test.x[0].size(1), int(data.train.y.max()) + 1
    model = ScoRNN(channels, settings["hidden"], classes, rho=settings["rho"], slope=settings["slope"])
    path = study.folder / f"{variant.name}.pt"
    study.step(f"{variant.name}-trained", lambda: list(train(model, variant, data, settings, path)))
    return Trained(model, state(path)["best"])


def _measured(trained: Trained, by: str, data: Split) -> dict[str, Any]:
    """A row of the table. Patterns of sequences of different lengths are different regions."""
    model, groups = trained.selected(by), by_length(data.test)
    with model.one_weight():
        report = evaluate(model, groups, NORMS)
    which, values = torch.cat([group.which for group in groups]), report.margins[2]
    at = {
        f"P{100 * level:g}": int(which[(values - values.quantile(level, interpolation="nearest")).abs().argmin()])
        for level in (0.5, 0.75)
    }
    return {"epoch": trained.best[by]["epoch"], **report.to_dict(), "at": at}


@torch.no_grad()
def _estimators(variant: Variant, trained: Trained, data: Split, study: Study) -> dict[str, Any]:
    """The penalty of the test sequences, exact and by several draws of random directions."""
    model, groups = trained.selected("validation"), by_length(data.test)
    torch.manual_seed(study.settings["seed"])
    samples = study.settings["samples"]
    with model.one_weight():
        entropy = objective(model, Variant(), "exact", samples)(groups)
        exact = objective(model, variant, "exact", samples)(groups) - entropy
        sampled = objective(model, variant, "rademacher", samples)
        return {"exact": exact.item(), "draws": [(sampled(groups) - entropy).item() for _ in range(DRAWS)]}


def _stability(networks: Mapping[Variant, Trained], data: Split, at: Mapping[str, int]) -> Figure:
    """A row for each network, a column for each of the test sequences `at` percentiles of vanilla's l2 margins.

    Bars end where the picture ends, at most the height of the sequence above and below it.
    """
    from matplotlib.figure import Figure

    from llr_fast.plot import plot_stability_bounds

    figure = Figure(figsize=(11, 2.6 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), len(at), sharex="col")
    for column, (level, index) in zip(axes.T, at.items()):
        x = data.test.x[index]
        for ax, (variant, trained) in zip(column, networks.items()):
            plot_stability_bounds(trained.selected("validation"), x, CHANNEL, ax=ax)
            ax.get_legend().remove()
            ax.set_title(_title(variant), loc="right", fontsize="medium")
            ax.set(ylabel="channel 9", xlabel="")
        low, high = x[:, CHANNEL].min().item(), x[:, CHANNEL].max().item()
        ends = [end for ax in column for end in ax.get_ylim()]
        for ax in column:
            ax.set_ylim(max(min(ends), 2 * low - high), min(max(ends), 2 * high - low))
        column[0].set_title(f"test sequence at {level}", loc="left", fontweight="bold")
        column[-1].set_xlabel("time step")
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _title(variant: Variant) -> str:
    if not variant.lam:
        return "vanilla"
    return rf"ROLL, $\lambda = 2^{{{math.log2(variant.lam):g}}}$, $C = 2^{{{math.log2(variant.C):g}}}$"
