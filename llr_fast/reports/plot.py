"""Pictures of linear regions. Needs matplotlib: pip install ".[plot]"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates.neurons import directional_margin
from llr_fast.checks import check_choice, check_count, check_model, check_tensor, described
from llr_fast.errors import missing

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
    check_choice("p", p, norms.NORMS)
    if not isinstance(margins, Mapping):
        raise TypeError(f"margins: expected a mapping from names to margins, got {described(margins)}")
    if not 1 <= len(margins) <= len(COLOURS):
        raise ValueError(f"margins: expected 1 to {len(COLOURS)} networks, got {len(margins)}")
    drawn = {name: _drawable(name, values) for name, values in margins.items()}
    if ax is None:
        ax = new_axes()
    exponents = torch.cat(list(drawn.values())).log10()
    low, high = exponents.min().item() - 0.01, exponents.max().item() + 0.01
    edges = torch.logspace(low, high, 49, dtype=torch.float64, device="cpu").tolist()
    for (name, values), colour in zip(drawn.items(), COLOURS):
        median = values.median().item()
        label = f"{name}: median {median:#.2g}" + _left_out(margins[name].numel() - values.numel())
        ax.hist(values.numpy(), edges, histtype="stepfilled", color=colour, alpha=0.3)
        ax.hist(values.numpy(), edges, histtype="step", color=colour, linewidth=1.5, label=label)
        ax.axvline(median, color=colour, linestyle="--", linewidth=1.2)
    _label(ax, p, unit)
    return ax


def plot_stability_bounds(
    model: nn.Module, x: Tensor, channel: int, *, unit: str = "input", ax: Axes | None = None
) -> Axes:
    """Draws how far each time step of one channel may move before the network's linear piece changes (Figure 3).

    The bounds are the directional margins along -e and +e for the unit vector e of each step, one step at a time.

    Args:
        model: a piecewise-linear network of sequences [B, T, C], in evaluation mode.
        x: [T, C], one sequence.
        channel: which of the C to move and draw.
        unit: what one unit of the input is, for the axis label.
        ax: where to draw; a new figure if None.

    Returns:
        The axes. Steps without a kink on one side have a marker at the edge of the picture instead of a bound.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: x is no sequence, or has no such channel; and as `directional_margin`.

    Example:
        >>> import torch
        >>> from llr_fast.reports.plot import plot_stability_bounds
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
        >>> plot_stability_bounds(model, torch.rand(7, 2), channel=1, unit="volts").get_ylabel()
        'channel 1 (volts)'
    """
    check_model(model)
    check_tensor("x", x)
    channel = check_count("channel", channel, -x.size(-1) if x.dim() else 0)
    if x.dim() != 2 or not -x.size(1) <= channel < x.size(1):
        raise ValueError(f"x: expected a sequence [T, C] with channel {channel}, got shape {tuple(x.shape)}")
    if ax is None:
        ax = new_axes((7, 3))
    steps = x.size(0)
    direction = torch.zeros(2, steps, *x.shape, dtype=x.dtype, device=x.device)
    time = torch.arange(steps, device=x.device)
    direction[0, time, time, channel], direction[1, time, time, channel] = -1, 1
    sequences = x.expand(2 * steps, *x.shape)
    down, up = directional_margin(model, sequences, direction.flatten(0, 1)).view(2, steps).cpu()
    value = x[:, channel].detach().double().cpu()
    low, high, at = value - down, value + up, torch.arange(1, steps + 1, device=value.device)
    finite = torch.cat([value, low[low.isfinite()], high[high.isfinite()]])
    space = 0.05 * (finite.max() - finite.min()).item() or 1.0
    bottom, top = finite.min().item() - 2 * space, finite.max().item() + 2 * space
    bars = ax.vlines(at, low.clamp_min(bottom), high.clamp_max(top), color=COLOURS[0], alpha=0.35, linewidth=6)
    bars.set_label("stable range of one step")
    ax.plot(at, value, color=COLOURS[0], marker="o", markersize=3, linewidth=1.2, label="sequence")
    for open_, edge, marker in ((low.isinf(), bottom, "v"), (high.isinf(), top, "^")):
        if open_.any():
            height = torch.full_like(value, edge + (space if marker == "v" else -space))[open_]
            ax.plot(at[open_], height, marker, color=COLOURS[1], markersize=5, label=f"no kink {_side(marker)}")
    ax.set(xlim=(0.5, steps + 0.5), ylim=(bottom, top), xlabel="time step", ylabel=f"channel {channel} ({unit})")
    _tidy(ax)
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return ax


def _side(marker: str) -> str:
    return "below" if marker == "v" else "above"


def _drawable(name: str, values: Tensor) -> Tensor:
    check_tensor(f"margins[{name!r}]", values)
    values = values.detach().cpu().double().flatten()
    values = values[values.isfinite() & (values > 0)]
    if not values.numel():
        raise ValueError(f"margins[{name!r}]: expected at least one finite positive margin, got none")
    return values


def new_axes(size: tuple[float, float] = (7, 4)) -> Axes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("llr_fast.plot needs matplotlib", "plot") from error
    # A figure of its own, not pyplot's: no display is needed and nothing global changes.
    return Figure(figsize=size, dpi=150, layout="constrained").subplots()


def _left_out(count: int) -> str:
    return f", {count} zero or infinite not shown" if count else ""


def _label(ax: Axes, p: float, unit: str) -> None:
    norm = r"\infty" if p == float("inf") else f"{p:g}"
    ax.set_xscale("log")
    ax.set_xlabel(rf"$\ell_{{{norm}}}$ margin ({unit})")
    ax.set_ylabel("number of inputs")
    _tidy(ax)
    ax.legend(frameon=False)


def _tidy(ax: Axes) -> None:
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
