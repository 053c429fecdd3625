"""Draws how an exact ROLL step grows, from the table's results: python -m benches.growth."""

from __future__ import annotations

import json
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benches.providers import CROSS_ENTROPY, OURS
from benches.table import LABELS, ROOT
from llr_fast.paper.study import shrink

RESULTS = ROOT / "benches" / "results" / "cpu.json"
PICTURE = ROOT / "docs" / "images" / "growth.png"
STYLES = {
    "paper_passes": ("C3", "s--"),
    "layer_by_layer": ("C1", "^--"),
    OURS: ("C0", "o-"),
    CROSS_ENTROPY: ("0.5", "o:"),
}
NAMES = LABELS | {OURS: "llr_fast", CROSS_ENTROPY: "cross-entropy alone"}


def draw(results: dict) -> Figure:
    """Seconds of a step as one size grows, and the peak of its memory as the input does."""
    runs = [run["extra_info"] for run in results["benchmarks"]]
    axes = dict.fromkeys(run["axis"] for run in runs if run["table"] == "growth")
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    *panels, legend = figure.subplots(3, 2).flat
    for ax, axis in zip(panels, axes):
        along = [run for run in runs if run["table"] == "growth" and run["axis"] == axis]
        _curves(ax, [(run[axis], run["seconds"]) for run in along])
        ax.set(xlabel=f"{axis}{' entries' if axis == 'input' else ''}", ylabel="seconds of a step")
    dense = [run for run in runs if run["table"] == "memory" and run["network"] == "dense"]
    _curves(panels[-1], [(math.prod(run["shape"][1:]), run["megabytes"]) for run in dense])
    panels[-1].set(xlabel="input entries", ylabel="peak MB of a step")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend.axis("off")
    legend.legend(handles, labels, loc="center", frameon=False)
    return figure


def _curves(ax: Axes, points: list[tuple[int, dict[str, float]]]) -> None:
    for name, (colour, style) in STYLES.items():
        known = [(size, cost[name]) for size, cost in points if name in cost]
        ax.loglog(*zip(*known), style, color=colour, markersize=5, label=NAMES[name])
    sizes = [size for size, _ in points]
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    ax.minorticks_off()
    ax.grid(alpha=0.3)


def main() -> None:
    results = json.loads(RESULTS.read_text())
    draw(results).savefig(PICTURE, dpi=100)
    print(shrink(PICTURE, source=source(results)))


def source(results: dict) -> str:
    """The run, as it stays in the picture: a test compares it with that of the tables."""
    return f"{RESULTS.name}, {results['commit_info']['id']}, {results['datetime']}"


if __name__ == "__main__":
    main()
