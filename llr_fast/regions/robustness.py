"""How far an input can move before the predicted class changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast.certificates import evaluation
from llr_fast.certificates.margin import Margin, margin, margins_in_turn
from llr_fast.certificates.rigorous import assumptions
from llr_fast.certificates.strategy import Options
from llr_fast.checks import check_count, check_range, check_tensor
from llr_fast.data import PATIENCE
from llr_fast.linearized.torch_modes import as_written
from llr_fast.outputs import Logits
from llr_fast.regions.decision import Decision, predicted
from llr_fast.regions.walk import Walk


@dataclass(frozen=True)
class Robustness:
    """Within which distance a batch of B samples keeps its classes; see `robustness`.

    Attributes:
        lower: [B] float64: no input nearer than this has another class.
        upper: [B] float64: the distance of `adversarial`; +inf where none was found.
        adversarial: [B, *x.shape[1:]] float64, a point on the boundary to another class, where that has as large a
            logit up to rounding; NaN where none was found.
        exact: [B] bool: `lower` and `upper` are the distance to the nearest input of another class.
        regions: [B] int64: how many linear regions were visited.
        proven: [B] bool, with `rigorous`: whether the predicted class and the side of its kink that each neuron is on
            are proven; else None.
    """

    lower: Tensor
    upper: Tensor
    adversarial: Tensor
    exact: Tensor
    regions: Tensor
    proven: Tensor | None = None


@as_written
def robustness(
    model: nn.Module,
    x: Tensor,
    p: float = 2,
    *,
    y: Tensor | None = None,
    regions: int | None = 1,
    until: float = math.inf,
    progress: bool = False,
    failure_probability: float = 1e-10,
    generator: torch.Generator | None = None,
    rigorous: bool = False,
) -> Robustness:
    """The l_p distance within which every sample keeps its class, from below and from above.

    With one region it is the smaller of the region's margin and the distance to where another class takes over: the
    leads of the predicted class join the neurons that `margin` searches, at little more than its cost. With more
    regions, a walk from region to region in the order of their distances (GeoCert; Jordan et al., 2019) raises the
    lower bound until it meets the nearest input of another class. Each region takes the gradients of all neurons and a
    small quadratic (p = 2) or linear program for each facet, so it is for small networks, few inputs, or short
    distances.

    Args:
        model: a piecewise-linear network in evaluation mode, of logits [B, classes], or [B] or [B, 1] of one logit,
            whose sign decides; or with them as its attribute or entry `logits`, or first in a tuple.
        x: [B, ...], finite.
        p: 1, 2 or inf.
        y: [B], the classes to be kept, integers; the predicted ones if not given. Where another class is predicted all
            distances are 0.
        regions: how many linear regions may be visited for each sample; None for as many as it takes. The lower bound
            holds wherever the walk stops.
        until: a distance; the walk may stop once it knows whether another class is as near as that.
        progress: whether long work shows a progress bar.
        failure_probability, generator: of the search for the nearest neuron, as in `margin`.
        rigorous: with one region, bounds that hold in real arithmetic, as those of `margin`: within `lower` of x the
            predicted class is the same, and within `upper` another one has as large a logit. Where a sign or the class
            itself is not proven, `lower` is 0. `adversarial` is the computed point.

    Raises:
        ValueError: the output has no logits, y are no classes, more than one region with `rigorous`; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for parameter, values in zip(model.parameters(), ([[1.0], [1.0]], [0.0, -1.0], [[-1.0, 3.0]], [-0.5])):
        ...     parameter.data = torch.tensor(values)  # down from -0.5 at x = 0, up with slope 2 from x = 1
        >>> near = llr_fast.robustness(model, torch.tensor([[0.5]]))
        >>> near.lower.item(), near.exact.item()  # to the kinks at 0 and 1
        (0.5, False)
        >>> all = llr_fast.robustness(model, torch.tensor([[0.5]]), regions=None)
        >>> round(all.adversarial.item(), 6), all.exact.item()
        (1.75, True)
    """
    options = Options(p, "auto", failure_probability, generator)
    return with_margins(model, x, options, y, regions, until, progress, apart=False, rigorous=rigorous)[1]


def with_margins(
    model: nn.Module,
    x: Tensor,
    options: Options,
    y: Tensor | None,
    regions: int | None,
    until: float,
    progress: bool = False,
    apart: bool = True,
    rigorous: bool = False,
) -> tuple[Margin, Robustness]:
    """The margins as well, from the same evaluation, if `apart`; arguments as those of `robustness`."""
    options = options.checked()
    if regions is not None:
        regions = check_count("regions", regions)
    if until != math.inf:
        until = check_range("until", until, 0)
    if rigorous and regions != 1:
        raise ValueError(f"regions: expected 1 with rigorous=True, got {regions}")
    evaluation.check(model, x, torch.float64)
    if rigorous:
        assumptions.check(x, torch.float64)
        options = replace(options, failure_probability=options.failure_probability / 2)  # of two searches
    if y is not None:
        _check_labels(x, y)
    last = f"{Decision.__name__}:"
    margins, nearest, pieces = margins_in_turn(Decision(model), x, options, last, apart, rigorous)
    classes, count = predicted(model, x, pieces)
    found = _of_one_region(nearest, x, pieces.size(1) > 0)
    if rigorous:
        region = margin(model, x, **vars(options), rigorous=True)
        found = _enclosed(found, nearest, region)
    if y is not None:
        if not (y < count).all():
            raise ValueError(f"y: expected classes from 0 to {count - 1}, got {y.max().item()}")
        wrong = classes != y.to(classes.device)
        found.lower[wrong] = 0.0
        if found.proven is not None:
            wrong &= found.proven
        found.upper[wrong] = 0.0
        found.adversarial[wrong], found.exact[wrong] = x[wrong].detach().double(), True
    left = ~found.exact & (found.lower <= until)
    if regions != 1 and left.any():
        _walk(model, x, classes, options.p, found, left, regions, until, progress)
    return margins, found


def _of_one_region(nearest: Margin, x: Tensor, decided: bool) -> Robustness:
    """Where a decision is the nearest of all neurons it is on the boundary of the region, and exact.

    Its neurons are the last layer, where there is a decision.
    """
    last = len(nearest.layer_names) - 1
    decides = (nearest.layer == last) & nearest.value.isfinite() & decided
    upper = nearest.value.masked_fill(~decides, math.inf)
    point = nearest.boundary_point(x.detach().double())
    point[~decides] = math.nan
    # Without any kink the network is affine, and without a decision constant.
    exact = decides | nearest.value.isinf()
    return Robustness(nearest.value.clone(), upper, point, exact, torch.ones_like(nearest.layer))


def _enclosed(found: Robustness, nearest: Margin, region: Margin) -> Robustness:
    """In real arithmetic, by the enclosed margins with the decisions among the neurons, and without.

    The kink within `upper` is that of a decision where the region is known to reach beyond it.
    """
    assert nearest.lower is not None and nearest.upper is not None and region.lower is not None
    decides = (nearest.upper <= region.lower) & nearest.upper.isfinite()
    upper = nearest.upper.masked_fill(~decides, math.inf)
    point = found.adversarial.clone()
    point[~decides] = math.nan
    exact = decides | nearest.lower.isinf()
    return Robustness(nearest.lower, upper, point, exact, found.regions, nearest.proven)


def _check_labels(x: Tensor, y: Tensor) -> None:
    check_tensor("y", y)
    if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"y: expected integers of shape {tuple(x.shape[:1])}, got {y.dtype} of {tuple(y.shape)}")
    if (y < 0).any():
        raise ValueError(f"y: expected classes from 0, got {y.min().item()}")


def _walk(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    p: float,
    found: Robustness,
    left: Tensor,
    regions: int | None,
    until: float,
    progress: bool,
) -> None:
    """Raises the bounds of the samples that are `left`, [B]."""
    logits = Logits(model)
    with tqdm(desc="robustness", unit="region", delay=PATIENCE, disable=not progress) as bar:
        for i in left.nonzero().flatten().tolist():
            walk = Walk(logits, x[i : i + 1], int(classes[i]), p)
            exact = walk.run(regions, until, bar.update)
            found.regions[i], found.exact[i], found.upper[i] = walk.visited, exact, walk.upper
            found.lower[i] = walk.upper if exact else min(max(walk.lower, float(found.lower[i])), walk.upper)
            if walk.nearest is not None:
                moved = torch.from_numpy(walk.nearest).to(x.device).view(x.shape[1:])
                found.adversarial[i] = x[i].detach().double() + moved
