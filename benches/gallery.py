"""Trains small networks and draws the pictures of the docs: python -m benches.gallery [FOLDER]."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from llr_fast import ROLLLoss
from llr_fast.commands import demo
from llr_fast.paper import toy
from llr_fast.paper.study import save, shrink
from llr_fast.plot import plot_regions, plot_stability_bounds
from llr_fast.reports.plot_of_regions import draw_legend_of_panels

TOUR = Path(__file__).parents[1] / "docs" / "tour.md"
NORM = {1: "1", 2: "2", math.inf: r"\infty"}


def main(folder: str = ".gallery") -> None:
    torch.set_num_threads(1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "regions": regions(),
        "balls": balls(),
        "margins": margins(),
        "stability": stability(),
    }.items():
        print(save(figure, Path(folder) / f"{name}.png"))
    tour(Path(folder))


def tour(folder: Path) -> None:
    """The pictures that the blocks of docs/tour.md write where they run."""
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TOUR.read_text(), re.DOTALL)
    os.chdir(folder)
    for block in blocks:
        exec(block, namespace)
    for path in Path().glob("tour-*.png"):
        print(shrink(path))


def regions() -> Figure:
    """Figure 1 of the paper with smaller networks: no regularisation, Eq. 4, and Eq. 7."""
    x, y = toy.spirals()
    return toy.figure({name: trained(x, y, loss) for name, loss in toy.LOSSES.items()}, x, y)


def balls() -> Figure:
    """The margins of one network for the three norms."""
    x, y = toy.spirals()
    model = trained(x, y, lambda model: ROLLLoss(model, lam=0.1, C=5.0))
    figure = Figure(figsize=(12, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, p in zip(axes, (1, 2, math.inf)):
        extent = (-1.2, 1.2, -1.2, 1.2)
        plot_regions(model, x, y=y, extent=extent, p=p, colorbar=p == math.inf, legend=False, ax=ax)
        ax.set_title(rf"$\ell_{{{NORM[p]}}}$ margins")
    draw_legend_of_panels(figure, axes[1], 2)
    return figure


def margins() -> Figure:
    """The demo's picture."""
    digits = demo.load()
    results = {name: demo.train_and_measure(name, digits, 30, seed=0) for name in ("cross-entropy", "ROLL")}
    return demo.picture(results).figure


def stability() -> Figure:
    """Figure 3 of the paper, for digits that are read row by row."""
    digits = demo.load()
    figure = Figure(figsize=(9, 5), layout="constrained")
    for ax, regularised in zip(figure.subplots(2, 1, sharex=True, sharey=True), (False, True)):
        model = reader(digits, regularised)
        plot_stability_bounds(model, digits.test_x[0].view(8, 8), 3, unit="pixel value", ax=ax)
        ax.label_outer()
        ax.set_title("ROLL" if regularised else "cross-entropy", loc="right")
    return figure


def trained(x: Tensor, y: Tensor, loss: toy.Loss) -> nn.Module:
    torch.manual_seed(0)
    return toy.trained(x, y, loss, width=50, epochs=1500, learning_rate=2e-3)


class Reader(nn.Module):
    """A recurrent network of images [B, 64], seen as 8 steps of 8 channels."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.input, self.state, self.output = nn.Linear(8, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.size(0), self.state.in_features)
        for step in x.view(-1, 8, 8).unbind(1):
            state = F.leaky_relu(self.input(step) + self.state(state), 0.1)
        return self.output(state)


def reader(digits: demo.Digits, regularised: bool, epochs: int = 30) -> nn.Module:
    torch.manual_seed(0)
    model = Reader()
    loss = ROLLLoss(model, lam=0.3, C=1.0, estimator="rademacher")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in tqdm(range(epochs), unit="epoch"):
        for batch in torch.randperm(len(digits.train_y)).split(64):
            x = digits.train_x[batch]
            output, penalty = loss(x) if regularised else (model(x), 0)
            optimizer.zero_grad()
            (F.cross_entropy(output, digits.train_y[batch]) + penalty).backward()
            optimizer.step()
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:])
