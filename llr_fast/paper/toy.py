"""Figure 1 of the paper: the linear regions of three networks of two inputs, trained by different losses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llr_fast import MarginLoss, ROLLLoss, margin, regions_along, regions_on_plane
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.study import Study, table
from llr_fast.paper.training import Training, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAM, C = 1.0, 5.0
LEARNING_RATE = 1e-3
HALF = 1.5  # of the side of the picture, a square around the origin
KEPT = 250  # epochs between the states that an interruption leaves
LINES = 41  # across the picture, where its regions are measured
COUNTS = {"points": (8, "of each class"), "width": (100, "of each layer"), "epochs": (5000, "of training")}

Loss = Callable[[nn.Module], "nn.Module | None"]

LOSSES: dict[str, Loss] = {
    "vanilla": lambda model: None,
    "distance regularisation (Eq. 4)": lambda model: MarginLoss(model, lam=LAM),
    "relaxed loss (Eq. 7)": lambda model: ROLLLoss(model, lam=LAM, C=C, gamma=0, estimator="exact"),
}


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `toy` to the experiments."""
    add_experiment(commands, "toy", "Figure 1", __doc__, run, COUNTS)


def run(options: argparse.Namespace) -> None:
    """Trains and measures the networks that are not yet in the folder; writes the table and the figure."""
    settings = settings_of(options, COUNTS)
    study = Study("toy", options.out, {**settings, "learning_rate": LEARNING_RATE, "lam": LAM, "C": C})
    x, y = spirals(options.points)
    networks = {name: partial(_trained, name, x, y, study) for name in LOSSES}
    found = {name: study.step(_slug(name), partial(_measured, network, x, y)) for name, network in networks.items()}
    drawn = figure({name: network() for name, network in networks.items()}, x, y)
    study.publish(found, text(found, study.settings), {"regions": drawn})


def spirals(points: int = 8) -> tuple[Tensor, Tensor]:
    """Two spirals of so many points each, [2 points, 2], and their classes."""
    t = torch.linspace(0.35, 1.0, points)
    angle = 4.2 * t
    arm = torch.stack([t * angle.cos(), t * angle.sin()], 1)
    return torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(points)


def trained(
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    width: int = 100,
    epochs: int = 5000,
    learning_rate: float = LEARNING_RATE,
    path: Path | None = None,
    description: str = "",
) -> nn.Module:
    """A network of four hidden layers, trained by cross-entropy and a penalty on all points at once."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), *hidden, nn.Linear(width, 1))
    penalised = loss(model)

    def total(batch: tuple[Tensor, Tensor]) -> Tensor:
        output, penalty = penalised(batch[0]) if penalised else (model(batch[0]), 0.0)
        return F.binary_cross_entropy_with_logits(output.squeeze(1), batch[1].float()) + penalty

    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    fit(Training(model, optimizer, total, lambda: [(x, y)], {}), epochs, path, description, every=KEPT)
    return model


def figure(networks: Mapping[str, nn.Module], x: Tensor, y: Tensor) -> Figure:
    """A panel for each network: regions, l2 margins and gradients of the points, prediction."""
    from matplotlib.figure import Figure

    from llr_fast.plot import plot_regions
    from llr_fast.reports.plot_of_regions import draw_legend_of_panels

    panels = Figure(figsize=(4 * len(networks), 4.3), layout="constrained")
    axes = panels.subplots(1, len(networks))
    for i, (ax, (name, model)) in enumerate(zip(axes, networks.items())):
        extent, last = (-HALF, HALF, -HALF, HALF), i == len(networks) - 1
        plot_regions(model, x, y=y, extent=extent, colorbar=last, legend=False, ax=ax)
        ax.set_title(name)
    draw_legend_of_panels(panels, axes[0], 2)
    return panels


def text(found: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """A column for each network."""
    about = (
        f"Two spirals of {settings['points']} points each (the paper's data set is not given), a network "
        f"2-{'-'.join(4 * [str(settings['width'])])}-1, {settings['epochs']} epochs of Adam on all points at once, "
        f"learning rate {settings['learning_rate']:g} (the paper gives none), λ = {LAM:g}, C = {C:g}.\n\n"
        "The paper prints no numbers for this figure. It is to show that Eq. 4 enlarges the regions of the training "
        f"points, and Eq. 7 those of the whole plane too. Over the square of the picture, {2 * HALF:g} by {2 * HALF:g}:"
    )
    names = next(iter(found.values()))
    return f"{about}\n\n" + table(("", *found), [[name, *(f[name] for f in found.values())] for name in names])


def _slug(name: str) -> str:
    return name.split()[0]


def _trained(name: str, x: Tensor, y: Tensor, study: Study) -> nn.Module:
    """The network of a panel; trained only if the study's folder does not have it."""
    torch.manual_seed(study.settings["seed"])
    width, epochs, path = study.settings["width"], study.settings["epochs"], study.folder / f"{_slug(name)}.pt"
    return trained(x, y, LOSSES[name], width=width, epochs=epochs, path=path, description=name)


def _measured(network: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Any]:
    model = network()
    grid, start, end = _lines(x)
    with torch.no_grad():
        logit = model(x).squeeze(1)
    near, everywhere = margin(model, x).value, margin(model, grid).value
    crossed = [len(segment) - 1 for segment in regions_along(model, start, end)]
    return {
        "cross-entropy": F.binary_cross_entropy_with_logits(logit, y.float()).item(),
        "accuracy": f"{((logit > 0) == y.bool()).float().mean():.0%}",
        **{f"l2 margin of the training points, {name}": value for name, value in _percentiles(near)},
        **{f"l2 margin of a grid of points, {name}": value for name, value in _percentiles(everywhere)},
        "linear regions": len(regions_on_plane(model, (-HALF, HALF, -HALF, HALF), like=x)),
        "boundaries crossed by a line, per unit of its length": sum(crossed) / (2 * HALF * len(crossed)),
    }


def _lines(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of points [LINES^2, 2], and both ends [2 LINES, 2] of its rows and columns."""
    at = torch.linspace(-HALF, HALF, LINES).to(like)
    edge = torch.full_like(at, HALF)
    start, end = (torch.stack([e, at], 1) for e in (-edge, edge))
    return torch.cartesian_prod(at, at), torch.cat([start, start.flip(1)]), torch.cat([end, end.flip(1)])


def _percentiles(values: Tensor) -> Iterable[tuple[str, float]]:
    levels = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=values.dtype)
    return zip(("P0", "P25", "P50", "P75", "P100"), values.quantile(levels, interpolation="nearest").tolist())
