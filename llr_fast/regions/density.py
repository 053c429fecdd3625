"""Local complexity: how many neurons have a kink near a point."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from llr_fast import norms
from llr_fast.certificates import bounds, evaluation, sketch
from llr_fast.certificates.bounds import Probe
from llr_fast.certificates.frozen import Backward, Frozen, freeze
from llr_fast.certificates.search import MANY
from llr_fast.checks import check_choice, check_count, check_generator, check_range
from llr_fast.data import PATIENCE
from llr_fast.linearized.torch_modes import as_written

Method = Literal["exact", "search", "sketch", "auto"]
METHODS: tuple[Method, ...] = get_args(Method)
_AFFORDABLE = 2**24  # derivatives of all neurons by all inputs of one sample, all of which are then computed


@as_written
def region_density(
    model: nn.Module,
    x: Tensor,
    radius: float,
    p: float = 2,
    *,
    method: Method = "auto",
    directions: int = 64,
    failure_probability: float = 1e-10,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Tensor:
    """The number of hidden neurons that have a kink within the l_p distance `radius` of each sample.

    A neuron counts where |z - nearest kink| <= radius ||grad_x z||_q with 1/p + 1/q = 1, everything taken at x. This is
    exact for kinks inside the current linear region and on its boundary, so the number is 0 exactly where the radius
    is less than the margin. Beyond the boundary other neurons have changed their pieces, and kinks bend there: the
    number is that of the hyperplanes {z = kink}, continued straight from the current region, which meet the ball. It
    is exact everywhere for neurons of a first layer, and a first-order measure of how densely regions lie for others.

    Args:
        model: a piecewise-linear network in evaluation mode.
        x: [B, ...], finite.
        radius: in units of x, at least 0.
        p: 1, 2 or inf.
        method: "exact" computes all gradient norms. "search" bounds them from 14 to 28 random directions and computes
            exactly those that can make a neuron count: good for radii at which few do. "sketch" (p = 2 and inf)
            estimates every norm from random directions. "auto" is "exact" for small networks, else "sketch", for p = 1
            "search".
        directions: of the sketch. A norm's relative standard error is 1 / sqrt(2 directions) for p = 2 and
            pi / (2 sqrt(directions)) for p = inf, for the default 9% and 20%. The radius carries the same error: a
            neuron is counted wrongly only where its kink is about that close to the sphere.
        failure_probability: that the search misses a neuron of a sample.
        generator: of the random directions.
        progress: whether long work shows a progress bar.

    Returns:
        [B], int64.

    Raises:
        ValueError: unknown p or method, negative radius, a sketch for p = 1; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> x = torch.tensor([[0.5, -3.0], [0.25, 0.25]])
        >>> llr_fast.region_density(torch.nn.ReLU(), x, radius=1.0)
        tensor([1, 2])
    """
    p = check_choice("p", p, norms.NORMS)
    check_choice("method", method, METHODS)
    radius, directions = check_range("radius", radius, 0), check_count("directions", directions)
    failure_probability = check_range("failure_probability", failure_probability, 1e-300, 0.5)
    check_generator(generator)
    evaluation.check(model, x, torch.float64)
    if method == "sketch" and p == 1:
        raise ValueError("method: expected 'exact' or 'search' for p = 1, because no sketch estimates ||grad z||_inf")
    counts, q = [], norms.dual(p)
    for part in x.split(evaluation.samples_at_once(model, x, torch.float64)):
        frozen = freeze(model, part, torch.float64)
        total = sum(layer.z.size(1) for layer in frozen.layers)
        chosen = _automatic(part, total, p) if method == "auto" else method
        if not frozen.layers:
            counts.append(torch.zeros(len(part), dtype=torch.long, device=x.device))
            continue
        if chosen == "search":
            probe = Probe.random(frozen, q, generator)
            upper = bounds.by_search(frozen, probe, q, failure_probability, generator)
            counts.append(_verified(frozen, probe.fine, torch.cat(upper, 1), radius, q, progress))
            continue
        if chosen == "exact":
            measured = bounds.exact_norms(frozen, Probe.fixed(frozen), q, frozen.chain() if q == 2 else None)
        else:
            measured = _estimates(frozen, Probe.random(frozen, q, generator), q, directions, generator)
        counts.append(_within(torch.cat(frozen.distances, 1), torch.cat(measured, 1), radius).sum(1))
    return torch.cat(counts)


def _automatic(x: Tensor, neurons: int, p: float) -> Method:
    if x[0].numel() * neurons <= _AFFORDABLE:
        return "exact"
    return "search" if p == 1 else "sketch"


def _within(distance: Tensor, norm: Tensor, radius: float) -> Tensor:
    """A neuron whose gradient is zero has no kink anywhere, not even where it sits on one."""
    return (distance <= radius * norm) & (norm > 0)


def _estimate(statistic: Tensor, q: float, directions: int) -> Tensor:
    """||g||_2 from E (g.v)^2 = ||g||_2^2, and ||g||_1 from E ln|g.v| = ln ||g||_1 for Cauchy v."""
    return (statistic / directions).exp() if q == 1 else (statistic / directions).sqrt()


def _estimates(
    frozen: Frozen, probe: Probe, q: float, directions: int, generator: torch.Generator | None
) -> list[Tensor]:
    def measure(dtype: torch.dtype, scale: float) -> list[Tensor]:
        found = sketch.statistics(frozen, q, directions, generator, dtype, scale)
        return [_estimate(statistic, q, directions) for statistic in found]

    return bounds.in_range(measure, probe)


def _verified(frozen: Frozen, backward: Backward, bound: Tensor, radius: float, q: float, progress: bool) -> Tensor:
    """The exact count, by back-propagation of every neuron that counts with the bound [B, N] of its norm."""
    x, layers = frozen.x, frozen.layers
    distance = torch.cat(frozen.distances, 1)
    layer_of = torch.cat([torch.full(layer.z.shape[1:], i, device=x.device) for i, layer in enumerate(layers)])
    place_of = torch.cat([torch.arange(layer.z.size(1), device=x.device) for layer in layers])
    candidates = [row.nonzero().squeeze(1) for row in _within(distance, bound, radius)]
    count = torch.zeros(len(x), dtype=torch.long, device=x.device)
    columns = pad_sequence(candidates, batch_first=True, padding_value=-1)
    backward = backward.wider(min(MANY, columns.size(1)))
    parts = columns.split(backward.width, 1)
    for neuron in tqdm(parts, desc="neurons near the point", delay=PATIENCE, disable=not progress):
        none = neuron < 0
        layer = layer_of[neuron].masked_fill(none, -1)
        gradient = backward.gradients(layer, place_of[neuron], layer.unique().tolist())
        norm = norms.norm(gradient.flatten(0, 1), q).view(neuron.shape)
        count += (_within(distance.gather(1, neuron.clamp_min(0)), norm, radius) & ~none).sum(1)
    return count
