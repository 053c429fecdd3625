"""The picture of the linear regions on a plane. Needs matplotlib: pip install ".[plot]"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates import evaluation
from llr_fast.certificates.margin import margin
from llr_fast.checks import check_choice, check_count, check_model, described
from llr_fast.outputs import logits_of
from llr_fast.regions.boundary import decision_boundary
from llr_fast.regions.plane import Extent, Plane, check_extent, regions_on_plane
from llr_fast.reports.plot import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_regions(
    model: nn.Module,
    x: Tensor | None = None,
    *,
    y: Tensor | None = None,
    through: Tensor | None = None,
    extent: Extent | None = None,
    p: float = 2,
    target: int = -1,
    resolution: int = 200,
    colorbar: bool = True,
    legend: bool = True,
    ax: Axes | None = None,
    progress: bool = True,
) -> Axes:
    """Draws the linear regions of a network on a plane, as in Figure 1 of the paper.

    Thin lines are the exact boundaries of the regions, a thick one is the decision boundary. Around each point lies the
    l_p ball of its margin: a circle, a diamond (p = 1) or a square (p = inf). Arrows are gradients of the drawn logit,
    the longest a tenth of the picture. The colour is the predicted probability.

    Args:
        model: a piecewise-linear network in evaluation mode, with output [B], [B, 1] or [B, classes], found
            as by `evaluate`.
        x: [B, 2], points to draw; without `through`, the inputs of the network.
        y: [B], their classes, which choose the markers.
        through: [3, ...], inputs of a network of any number of inputs, to draw the plane through them. Axes then
            measure l2 distance on the plane from the first point towards the second, and across; the points drawn are
            these three, and margins are those within the plane.
        extent: left, right, bottom, top of the picture; default: the points and some space around them.
        p: 1, 2 or inf.
        target: the class whose logit and probability are drawn; a single output is a logit.
        resolution: pixels of the probabilities along each axis.
        colorbar: whether to draw the scale of the probabilities.
        legend: whether to name, below the picture, what is drawn in it.
        ax: where to draw; a new figure if None.
        progress: whether long work shows a progress bar.

    Returns:
        The axes. `ax.figure.savefig(path)` writes the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: neither points nor extent are given, or their shapes do not fit; and as `margin`.

    Example:
        >>> import torch
        >>> from llr_fast.plot import plot_regions
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> ax = plot_regions(model, torch.randn(5, 2), extent=(-1, 1, -1, 1), p=1)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('$x_1$', '$x_2$')
    """
    check_model(model)
    p, resolution = check_choice("p", p, norms.NORMS), check_count("resolution", resolution)
    if through is not None:
        if x is not None:
            raise ValueError("x: expected None where `through` is given, whose points are drawn")
        model = Plane(model, through)
        x = model.coordinates(through)
    if x is not None:
        evaluation.check(model, x, torch.float64)
        if x.shape[1:] != (2,):
            raise ValueError(f"x: expected points [B, 2], got shape {tuple(x.shape)}; use through= for larger inputs")
    if y is not None and (x is None or not isinstance(y, Tensor) or y.shape != x.shape[:1]):
        points = "no points" if x is None else f"{len(x)} points"
        raise ValueError(f"y: expected a tensor of the classes of {points}, got {described(y)}")
    extent = _around(x) if extent is None else check_extent(extent)
    like = x if x is not None else next(model.parameters(), torch.zeros(1, device="cpu")).detach()
    _check_target(model, like, target)
    ax = new_axes((6, 5)) if ax is None else ax
    _draw_probability(ax, model, extent, like, target, resolution, colorbar)
    regions = regions_on_plane(model, extent, like=like, progress=progress)
    _draw_boundaries(ax, regions, decision_boundary(model, regions, like, target))
    if x is not None:
        _draw_balls(ax, x, margin(model, x, p).value, p)
        _draw_gradients(ax, model, x, target, extent)
        _draw_points(ax, x, y)
    if legend:
        _draw_legend(ax, p, balls=x is not None)
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    first, second = ("distance along the plane", "distance across") if through is not None else ("$x_1$", "$x_2$")
    ax.set(xlabel=first, ylabel=second)
    return ax


def _around(x: Tensor | None) -> Extent:
    if x is None:
        raise ValueError("extent: expected left, right, bottom, top where no points are given")
    low, high = x.amin(0).double(), x.amax(0).double()
    space = 0.15 * (high - low).max().item() or 1.0
    (left, bottom), (right, top) = (low - space).tolist(), (high + space).tolist()
    return left, right, bottom, top


def _draw_probability(
    ax: Axes, model: nn.Module, extent: Extent, like: Tensor, target: int, resolution: int, colorbar: bool
) -> None:
    across, up = (
        torch.linspace(low, high, 2 * resolution + 1, dtype=torch.float64, device="cpu")[1::2]
        for low, high in (extent[:2], extent[2:])
    )
    grid = torch.cartesian_prod(up, across).flip(1).to(like)
    with torch.no_grad():
        logit = logits_of(model(grid.clone()))
        probability = logit.sigmoid() if logit.size(1) == 1 else logit.softmax(1)[:, target : target + 1 or None]
    image = probability.view(resolution, resolution).float().cpu().numpy()
    # Pale, so that lines and arrows show on it.
    drawn = ax.imshow(image, "PuOr", origin="lower", extent=extent, vmin=0, vmax=1, alpha=0.4, interpolation="bilinear")
    if colorbar:
        name = "the positive class" if logit.size(1) == 1 else f"class {range(logit.size(1))[target]}"
        ax.figure.colorbar(drawn, ax=ax, label=f"predicted probability of {name}", shrink=0.85)


def _check_target(model: nn.Module, like: Tensor, target: int) -> None:
    origin = like.new_zeros(1, 2)
    # Refuses layers in training mode, which the model itself would update.
    evaluation.values_of(model, origin, torch.float64)
    with torch.no_grad():
        classes = logits_of(model(origin)).size(1)
    if check_count("target", target, -classes) >= classes:
        raise ValueError(f"target: expected a class from {-classes} to {classes - 1}, got {target}")


def _draw_boundaries(ax: Axes, regions: list[Tensor], decision: Tensor) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    polygons = [polygon.numpy() for polygon in regions]
    ax.add_collection(PolyCollection(polygons, facecolors="none", edgecolors="0.25", linewidths=0.35))
    if len(decision):
        segments: Any = decision.numpy()
        style = {"colors": "black", "linewidths": 2, "capstyle": "round"}
        ax.add_collection(LineCollection(segments, label="decision boundary", zorder=2.5, **style))


def _draw_balls(ax: Axes, x: Tensor, radius: Tensor, p: float) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Patch, Polygon

    balls: list[Patch] = []
    for (a, b), r in zip(x.tolist(), radius.tolist()):
        if r == 0 or r == float("inf"):
            continue
        corners = [(1, 0), (0, 1), (-1, 0), (0, -1)] if p == 1 else [(1, 1), (-1, 1), (-1, -1), (1, -1)]
        balls.append(Circle((a, b), r) if p == 2 else Polygon([(a + r * i, b + r * j) for i, j in corners]))
    ax.add_collection(PatchCollection(balls, facecolor="none", edgecolor="black", linewidth=1.2, zorder=3))


def _draw_gradients(ax: Axes, model: nn.Module, x: Tensor, target: int, extent: Extent) -> None:
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        logit = logits_of(model(points.clone()))
        (gradient,) = torch.autograd.grad(logit[:, target if logit.size(1) > 1 else 0].sum(), points)
    longest = gradient.norm(dim=1).max().item() or 1.0
    arrows = gradient.cpu() * 0.1 * (extent[1] - extent[0]) / longest
    (a, b), (u, v) = x.detach().cpu().t(), arrows.t()
    ax.quiver(a, b, u, v, angles="xy", scale_units="xy", scale=1, width=0.004, color="black", zorder=4)


def _draw_points(ax: Axes, x: Tensor, y: Tensor | None) -> None:
    classes = torch.zeros(len(x), dtype=torch.long, device="cpu") if y is None else y.cpu()
    for i, label in enumerate(classes.unique()):
        a, b = x.detach().cpu()[classes == label].t()
        marker, colour = "osD^"[i % 4], ("white", *COLOURS)[i % 5]
        name = "input" if y is None else f"class {label}"
        ax.scatter(a, b, s=12, color=colour, marker=marker, edgecolors="black", linewidths=0.9, zorder=5, label=name)


def _draw_legend(ax: Axes, p: float, balls: bool) -> None:
    handles, labels = _legend_entries(ax, p, balls)
    if handles:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
        ax.legend(handles, labels, fontsize="small", ncols=3, frameon=False, **below)


def draw_legend_of_panels(figure: Figure, ax: Axes, p: float) -> None:
    """One legend below all panels of a figure, in which what is in `ax` is named."""
    figure.legend(*_legend_entries(ax, p, balls=True), loc="outside lower center", ncols=5, frameon=False)


def _legend_entries(ax: Axes, p: float, balls: bool) -> tuple[list[Any], list[str]]:
    """Handles and labels of what has a label, and of the balls and arrows, for a legend."""
    from matplotlib.lines import Line2D

    handles, labels = ax.get_legend_handles_labels()
    if balls:
        ball = Line2D([], [], linestyle="", color="black", fillstyle="none", marker={1.0: "D", 2.0: "o"}.get(p, "s"))
        arrow = Line2D([], [], linestyle="", color="black", marker=r"$\rightarrow$", markersize=12)
        handles += [ball, arrow]
        labels += [f"margin, l{p:g}", "gradient of the logit"]
    return handles, labels
