"""The l_p margin: how far every input can move before the network's linear piece changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates import evaluation, search
from llr_fast.certificates.frozen import Frozen, freeze
from llr_fast.certificates.rigorous import assumptions
from llr_fast.certificates.rigorous import bounds as rigorous_bounds
from llr_fast.certificates.rigorous.enclosure import Enclosure
from llr_fast.certificates.strategy import Bounded, Method, Options
from llr_fast.checks import check_tensor
from llr_fast.linearized.torch_modes import as_written


@dataclass(frozen=True)
class Margin:
    """The margins of a batch of B samples; see `margin`.

    Attributes:
        value: [B], the margin; +inf where no neuron bounds the region.
        layer: [B], index into `layer_names` of the neuron that bounds the region; -1 where none does.
        neuron: [B], flat index of that neuron among those of its layer; -1 where there is none.
        offset: [B], that neuron's value minus its nearest kink.
        gradient: [B, *x.shape[1:]] float64, gradient of that neuron with respect to x; zero where there is none.
        layer_names: path of the module and name of the function, for each call of a piecewise-linear function.
        exact: [B] bool; False where a probability of failure remains (method "search").
        p: the norm.
        lower, upper: [B], with `rigorous`: bounds of the margin in real arithmetic; else None.
        proven: [B] bool, with `rigorous`: whether the side of its kink that each neuron is on is proven; where not,
            `lower` is 0.
        unproven: with `rigorous`, for each sample the first neuron whose side is not proven, its layer and its flat
            index there; None where all are.
    """

    value: Tensor
    layer: Tensor
    neuron: Tensor
    offset: Tensor
    gradient: Tensor
    layer_names: list[str]
    exact: Tensor
    p: float
    lower: Tensor | None = None
    upper: Tensor | None = None
    proven: Tensor | None = None
    unproven: list[tuple[int, int] | None] | None = None

    def boundary_point(self, x: Tensor) -> Tensor:
        """The point nearest to `x` in l_p on the boundary of its linear region.

        Args:
            x: [B, ...], the points that the margins belong to.

        Returns:
            [B, ...] in the dtype of the margins; NaN where the margin is infinite.

        Example:
            >>> import torch, llr_fast
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
            >>> x = torch.randn(5, 2)
            >>> margin = llr_fast.margin(model, x, p=1)
            >>> distance = (margin.boundary_point(x) - x).abs().sum(1)
            >>> torch.allclose(distance, margin.value)
            True
        """
        check_tensor("x", x)
        if x.shape != self.gradient.shape:
            raise ValueError(f"x: expected the shape of the batch, {tuple(self.gradient.shape)}, got {tuple(x.shape)}")
        gradient = self.gradient.flatten(1)
        norm = norms.norm(gradient, norms.dual(self.p))[:, None]
        unit = gradient / norm
        if self.p == math.inf:
            step = gradient.sign()
        elif self.p == 2:
            step = unit
        else:
            steepest = unit.abs().argmax(1, keepdim=True)
            step = torch.zeros_like(unit).scatter(1, steepest, unit.gather(1, steepest).sign())
        step = (step / norm).to(self.value.dtype)
        moved = x.flatten(1) - self.offset[:, None] * step
        return moved.masked_fill(self.value.isinf()[:, None], math.nan).view(x.shape)


@as_written
def margin(
    model: nn.Module,
    x: Tensor,
    p: float = 2,
    *,
    method: Method = "auto",
    failure_probability: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
    rigorous: bool = False,
) -> Margin:
    """The l_p margin of every sample: the radius of the largest l_p ball around it on which `model` is affine.

    eps_p(x) = min over hidden neurons of |z - nearest kink| / ||grad_x z||_q with 1/p + 1/q = 1 (Eq. 3 of Lee et al.,
    2019, in closed form). The model is run as it is and is not changed.

    What is certified is the network with its weights as they are, computed in float64. Constants that it makes of its
    weights, as weight normalisation does, it makes in its own dtype: the rounded ones are certified. The model has to
    be a function of x: one that draws random numbers or keeps a state is refused, for one more forward pass.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite; any shape of sample.
        p: 1, 2 or inf.
        method: "exact" computes the gradient norms of all neurons, from Gram matrices for p = 2 and chains of dense
            layers, else from all input axes. "search" bounds all norms from 14 to 28 random directions and computes
            exactly those that can decide the minimum; the result is the exact margin, except with probability
            `failure_probability` per sample. "auto" takes the cheaper one.
        failure_probability: of the search, for each sample.
        dtype: of the values that decide on which side of a kink a point is; gradients have float64.
        generator: of the search's random directions.
        rigorous: also enclose the margin in real arithmetic, with parameters and inputs as the exact numbers that they
            are: the model is affine within `lower` of x and has a kink within `upper`, except with
            `failure_probability` where `exact` is False. docs/rigorous.md has the argument, and what it assumes.
            Functions without a bound of their rounding are refused.

    Raises:
        NotPiecewiseLinearError: the model applies a function that is not piecewise linear, or unknown.
        ValueError: unknown p or method, empty or non-finite x, a layer in training mode, samples that mix, a model that
            is no function of x, values or gradients beyond float64.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> _ = torch.nn.init.constant_(model[0].weight, 2.0), torch.nn.init.constant_(model[0].bias, -1.0)
        >>> llr_fast.margin(model, torch.tensor([[2.0]])).value  # |2 * 2 - 1| / 2
        tensor([1.5000], dtype=torch.float64)
    """
    options = Options(p, method, failure_probability, generator).checked()
    evaluation.check(model, x, dtype)
    if rigorous:
        assumptions.check(x, dtype)
    samples = evaluation.samples_at_once(model, x, dtype)
    return _joined([_of_part(model, part, options, dtype, rigorous) for part in x.split(samples)])


def _joined(parts: Sequence[Margin]) -> Margin:
    """Those of a batch."""
    rigorous = parts[0].unproven is not None
    names = ("value", "layer", "neuron", "offset", "gradient", "exact", *(("lower", "upper", "proven") * rigorous))
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    unproven = [which for part in parts for which in part.unproven or []] if rigorous else None
    return Margin(**joined, layer_names=parts[0].layer_names, p=parts[0].p, unproven=unproven)


def _of_part(model: nn.Module, x: Tensor, options: Options, dtype: torch.dtype, rigorous: bool) -> Margin:
    frozen = freeze(model, x, dtype, bounds=rigorous)
    return _enclosed_of_frozen(model, frozen, options) if rigorous else _of_frozen(model, frozen, options, dtype)


def _enclosed_of_frozen(model: nn.Module, frozen: Frozen, options: Options) -> Margin:
    """With an enclosure; the evaluation has noted what rounding does."""
    if not frozen.layers:
        none = _unbounded(frozen.x, options.p, torch.float64)
        return _enclosed(none, Enclosure(none.value, none.value, torch.stack([none.layer, none.neuron], 1), None))
    enclosure, exact = _enclosure(frozen, options)
    nearest = enclosure.nearest or Bounded.by(options, model, frozen).nearest()
    return _enclosed(_margin(frozen, nearest, exact, options.p), enclosure)


def _enclosure(frozen: Frozen, options: Options) -> tuple[Enclosure, bool]:
    """And whether it holds without a probability."""
    chain = frozen.chain() if options.by_gram else None
    if options.method == "exact":
        return rigorous_bounds.without_chance(frozen, options.q, chain), True
    found = rigorous_bounds.if_shallow(frozen, options.q, chain) if options.exact(frozen, chain) else None
    if found is not None:
        return found, True
    return rigorous_bounds.by_sketch(frozen, options.q, options.failure_probability, options.generator), False


def _of_frozen(model: nn.Module, frozen: Frozen, options: Options, dtype: torch.dtype) -> Margin:
    if not frozen.layers:
        return _unbounded(frozen.x, options.p, dtype)
    found = Bounded.by(options, model, frozen)
    return _margin(frozen, found.nearest(), found.exact, options.p)


def _margin(frozen: Frozen, found: search.Nearest, exact: bool, p: float) -> Margin:
    offset = search.entries([layer.offset for layer in frozen.layers], found.layer, found.neuron)
    sure = torch.full_like(found.value, exact, dtype=torch.bool)
    names = [layer.name for layer in frozen.layers]
    return Margin(found.value, found.layer, found.neuron, offset, found.gradient, names, sure, p)


def margins_in_turn(
    model: nn.Module, x: Tensor, options: Options, last: str, apart: bool, rigorous: bool
) -> tuple[Margin, Margin, Tensor]:
    """The margins without the last layer of neurons, those with it, and the pieces [B, n] that its neurons are on.

    Its name begins with `last`; where there is no such layer n is 0. Unless they are to be found `apart`, which takes
    longer, both are those with it, as they are with enclosures. The arguments are those that `margin` has checked.
    """
    below, whole, pieces = [], [], []
    for part in x.split(evaluation.samples_at_once(model, x, torch.float64)):
        frozen = freeze(model, part, torch.float64, bounds=rigorous)
        has_last = bool(frozen.layers) and frozen.layers[-1].name.startswith(last)
        pieces.append(frozen.layers[-1].piece if has_last else part.new_empty(len(part), 0, dtype=torch.short))
        if rigorous:
            pair = [_enclosed_of_frozen(model, frozen, options)] * 2
        elif has_last:
            found = Bounded.by(options, model, frozen)
            nearest = found.nearest_in_turn() if apart else [found.nearest()] * 2
            pair = [_margin(frozen, neurons, found.exact, options.p) for neurons in nearest]
        else:
            pair = [_of_frozen(model, frozen, options, torch.float64)] * 2
        below.append(pair[0])
        whole.append(pair[1])
    return _joined(below), _joined(whole), torch.cat(pieces)


def _enclosed(margin: Margin, by: Enclosure) -> Margin:
    return replace(
        margin,
        lower=by.lower,
        upper=by.upper,
        proven=by.undecided[:, 0] < 0,
        unproven=[None if layer < 0 else (layer, neuron) for layer, neuron in by.undecided.tolist()],
    )


def _unbounded(x: Tensor, p: float, dtype: torch.dtype) -> Margin:
    """The margins of a network without hidden neurons."""
    infinite = torch.full_like(x.flatten(1)[:, 0], math.inf, dtype=dtype)
    none = torch.full_like(infinite, -1, dtype=torch.long)
    sure = torch.ones_like(none, dtype=torch.bool)
    gradient = torch.zeros_like(x, dtype=torch.float64)
    return Margin(infinite, none, none, torch.zeros_like(infinite), gradient, [], sure, p)
