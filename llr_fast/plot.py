"""Pictures of linear regions. Needs matplotlib: pip install llr-fast[plot]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: distinct with every common kind of colour blindness, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def plot_margins(margins: Mapping[str, Tensor], *, p: float = 2, unit: str = "input", ax: Axes | None = None) -> Axes:
    """Draws the distribution of l_p margins over a set of inputs, one histogram for each network.

    Args:
        margins: name of the network -> margins [B], in the units of its input. Zero and infinite margins have no place
            on a logarithmic axis; the legend says how many were left out.
        p: the norm, for the axis label.
        unit: what one unit of the input is, for the axis label.
        ax: where to draw; a new figure if None.

    Returns:
        The axes. `ax.figure.savefig(path)` writes the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no network, there are more than four, or one has no margin that can be drawn.
    """
    if not 1 <= len(margins) <= len(COLOURS):
        raise ValueError(f"margins: expected 1 to {len(COLOURS)} networks, got {len(margins)}")
    drawn = {name: _drawable(name, values) for name, values in margins.items()}
    if ax is None:
        ax = _new_axes()
    exponents = torch.cat(list(drawn.values())).log10()
    low, high = exponents.min().item() - 0.01, exponents.max().item() + 0.01
    edges = torch.logspace(low, high, 49, dtype=torch.float64).tolist()
    for (name, values), colour in zip(drawn.items(), COLOURS):
        median = values.median().item()
        label = f"{name}: median {median:#.2g}" + _left_out(margins[name].numel() - values.numel())
        ax.hist(values.numpy(), edges, histtype="stepfilled", color=colour, alpha=0.3)
        ax.hist(values.numpy(), edges, histtype="step", color=colour, linewidth=1.5, label=label)
        ax.axvline(median, color=colour, linestyle="--", linewidth=1.2)
    _label(ax, p, unit)
    return ax


def _drawable(name: str, values: Tensor) -> Tensor:
    values = values.detach().cpu().double().flatten()
    values = values[values.isfinite() & (values > 0)]
    if not values.numel():
        raise ValueError(f"margins[{name!r}]: expected at least one finite positive margin, got none")
    return values


def _new_axes() -> Axes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("llr_fast.plot needs matplotlib: pip install llr-fast[plot]") from error
    # A figure of its own, not pyplot's: no display is needed and nothing global changes.
    return Figure(figsize=(7, 4), dpi=150, layout="constrained").subplots()


def _left_out(count: int) -> str:
    return f", {count} zero or infinite not shown" if count else ""


def _label(ax: Axes, p: float, unit: str) -> None:
    norm = r"\infty" if p == float("inf") else f"{p:g}"
    ax.set_xscale("log")
    ax.set_xlabel(rf"$\ell_{{{norm}}}$ margin ({unit})")
    ax.set_ylabel("number of inputs")
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
