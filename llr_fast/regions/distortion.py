"""How much the gradient of the true-class logit changes near an input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast.certificates import evaluation
from llr_fast.certificates.agreement import model_dtype, plain_output
from llr_fast.checks import check_count, check_generator, check_range
from llr_fast.data import PATIENCE
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.torch_modes import as_written
from llr_fast.outputs import Logits, logits_of
from llr_fast.regions.observed import Observed


@dataclass(frozen=True)
class Distortion:
    """The l1 change ||grad f(x')_y - grad f(x)_y||_1 around B inputs; see `gradient_distortion`.

    Attributes:
        expected: [B], mean over uniform samples.
        maximal: [B], the largest that the genetic search met.
        baseline: [B], the largest of `evaluations` uniform samples; None if it was switched off.
        point: [B, ...], the x' of `maximal`.
        evaluations: number of gradients that the genetic search, and as many that the baseline, took for each input.
    """

    expected: Tensor
    maximal: Tensor
    baseline: Tensor | None
    point: Tensor
    evaluations: int


@as_written
def gradient_distortion(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    clip: tuple[float, float] | None = (0, 1),
    *,
    samples: int = 8000,
    population: int = 4800,
    generations: int = 30,
    keep: float = 0.25,
    baseline: bool = True,
    memory: int = evaluation.MEMORY_BUDGET,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Distortion:
    """Expected and maximal l1 change of the true-class logit's gradient in an l_inf ball (Table 4 of the paper).

    The maximum is searched by a genetic algorithm: from a uniform population, each generation keeps the points of the
    largest change, replaces the rest by random convex combinations of two of those kept, and projects them to the ball;
    there is no mutation. It is a lower bound of the true maximum. The baseline draws uniform points afresh, as many as
    the search evaluated, so that the difference shows what the search adds. That may be nothing: convex combinations
    move away from the faces of the ball, and the baseline can find the larger change.

    Args:
        model: a piecewise-linear network in evaluation mode with output [B, classes], found as by `evaluate`.
        x: [B, ...], within `clip`.
        y: [B] int64, the classes.
        radius: of the l_inf ball, in units of x.
        clip: the range of inputs that the ball is cut with; None for no limits.
        samples: of the mean.
        population, generations, keep: of the genetic search; `keep` is the part of the population that survives.
        baseline: whether to compute it, which doubles the work.
        memory: bytes that the points and activations of one evaluation may take, estimated from the number of neurons.
        generator: of all random numbers, on the device of x; the same state and arguments give the same result.
        progress: whether long work shows a progress bar.

    Raises:
        ValueError: an option is out of range, x is not within `clip`, y does not fit; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(1, 2))
        >>> _ = torch.nn.init.constant_(model[1].weight, 3.0)
        >>> x, y = torch.tensor([[0.25]]), torch.tensor([1])
        >>> llr_fast.gradient_distortion(model, x, y, 0.5, (-1, 1), samples=100, population=40, generations=2).maximal
        tensor([3.])
    """
    samples, population = check_count("samples", samples), check_count("population", population)
    generations, memory = check_count("generations", generations, 0), check_count("memory", memory)
    keep, radius = check_range("keep", keep, 0, 1), check_range("radius", radius, 0)
    check_generator(generator)
    clip = _range(clip)
    _check(model, x, y, clip)
    x = x.detach().to(model_dtype(model, x))
    _check_gradients(model, x, y, radius, clip)
    kept = min(population, max(2, round(keep * population)))
    evaluations = population + generations * (population - kept)
    uniform = max(samples, evaluations) if baseline else samples
    points = _points_at_once(model, x, memory)
    images = max(1, min(len(x), points // population))
    bar = tqdm(
        total=len(x) * (evaluations + uniform),
        desc="gradients",
        unit_scale=True,
        delay=PATIENCE,
        disable=not progress,
    )
    parts = []
    with bar:
        for inputs, labels in zip(x.detach().split(images), y.split(images)):
            ball = _Ball(model, inputs, labels, radius, clip, generator, bar)
            chunk = max(1, points // len(inputs))
            expected, random = _uniform(ball, chunk, samples, uniform, evaluations)
            parts.append((expected, *_genetic(ball, chunk, population, generations, kept), random))
    expected, maximal, point, random = (torch.cat(tensors) for tensors in zip(*parts))
    return Distortion(expected, maximal, random if baseline else None, point, evaluations)


class _Ball:
    """The ball around each of I inputs x [I, ...], cut with the range of inputs, and how the gradient changes in it."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        radius: float,
        clip: tuple[float, float] | None,
        generator: torch.Generator | None,
        bar: tqdm,
    ) -> None:
        self._model, self._y, self._generator, self._bar = model, y, generator, bar
        self._low, self._high = (t[:, None] for t in _box(x, radius, clip))
        self._gradient = self._gradients(x[:, None])

    def empty(self) -> Tensor:
        """No points: [I, 0, ...]."""
        return self._low[:, :0]

    def uniform(self, count: int) -> Tensor:
        """[I, count, ...]"""
        return self._low + self._random(count, *self._low.shape[2:]) * (self._high - self._low)

    def children(self, parents: Tensor, count: int) -> Tensor:
        """[I, count, ...]: random convex combinations of two of the parents [I, n, ...], projected."""
        chosen = (self._random(2, count) * parents.size(1)).long().clamp_max(parents.size(1) - 1)
        mother, father = (_rows(parents, index) for index in chosen.unbind(1))
        weight = self._random(count, *[1] * (parents.dim() - 2))
        return torch.lerp(mother, father, weight).clamp(self._low, self._high)

    def changes(self, points: Tensor) -> Tensor:
        """[I, n]: the l1 distance of the gradients at the points [I, n, ...] from those at x."""
        self._bar.update(points.size(0) * points.size(1))
        return (self._gradients(points) - self._gradient).flatten(2).abs().sum(2)

    def _gradients(self, points: Tensor) -> Tensor:
        labels = self._y.repeat_interleave(points.size(1))
        return _gradient(self._model, points.flatten(0, 1), labels).view(points.shape)

    def _random(self, *shape: int) -> Tensor:
        like = self._low
        return torch.rand(len(like), *shape, dtype=like.dtype, device=like.device, generator=self._generator)


def _box(x: Tensor, radius: float, clip: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """The lowest and the highest point of the balls around x."""
    low, high = x - radius, x + radius
    return (low, high) if clip is None else (low.clamp(*clip), high.clamp(*clip))


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[B, ...]: that of the logit y [B] at x [B, ...]."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        logits = logits_of(model(x.clone())).gather(1, y.clone()[:, None])  # it may write to its input
        return torch.autograd.grad(logits.sum(), x)[0]


def _uniform(ball: _Ball, chunk: int, samples: int, total: int, evaluations: int) -> tuple[Tensor, Tensor]:
    """[I] each, of `total` uniform points: mean change of the first `samples`, largest of the first `evaluations`."""
    means, largest = [], []
    for start in range(0, total, chunk):
        found = ball.changes(ball.uniform(min(chunk, total - start)))
        means.append(found[:, : max(0, samples - start)].double().sum(1) / samples)
        largest.append(torch.nn.functional.pad(found, (1, 0))[:, : max(0, evaluations - start) + 1].amax(1))
    return torch.stack(means).sum(0).to(found.dtype), torch.stack(largest).amax(0)


def _genetic(ball: _Ball, chunk: int, population: int, generations: int, kept: int) -> tuple[Tensor, Tensor]:
    """The largest change [I] that the search meets and its point [I, ...]."""
    points = ball.empty()
    changes = points.flatten(2).sum(2)
    points, changes = _survivors(ball, chunk, ball.uniform, population, points, changes, kept)
    for _ in range(generations):
        born = functools.partial(ball.children, points)
        points, changes = _survivors(ball, chunk, born, population - kept, points, changes, kept)
    return changes[:, 0], points[:, 0]


def _survivors(
    ball: _Ball,
    chunk: int,
    propose: Callable[[int], Tensor],
    count: int,
    points: Tensor,
    changes: Tensor,
    kept: int,
) -> tuple[Tensor, Tensor]:
    """The `kept` points of the largest changes, among those given and `count` new ones; largest first.

    New points are dropped as soon as enough better ones are known, so that a population never exists as a whole.
    """
    for start in range(0, count, chunk):
        new = propose(min(chunk, count - start))
        changes = torch.cat([changes, ball.changes(new)], 1)
        changes, order = changes.topk(min(kept, changes.size(1)))
        points = _rows(torch.cat([points, new], 1), order)
    return points, changes


def _rows(points: Tensor, index: Tensor) -> Tensor:
    """[I, k, ...]: the points [I, n, ...] at `index` [I, k]."""
    return points[torch.arange(len(points), device=points.device)[:, None], index]


def _range(clip: tuple[float, float] | None) -> tuple[float, float] | None:
    """`clip` as Python numbers."""
    if clip is None:
        return None
    numbers = isinstance(clip, Sequence) and all(isinstance(v, Real) and not isinstance(v, bool) for v in clip)
    if not numbers or len(clip) != 2 or not clip[0] <= clip[1]:
        raise ValueError(f"clip: expected two numbers, the lower one first, or None, got {clip!r}")
    return float(clip[0]), float(clip[1])


def _check(model: nn.Module, x: Tensor, y: Tensor, clip: tuple[float, float] | None) -> None:
    evaluation.check(model, x, torch.float64)
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.dtype != torch.long or y.device != x.device:
        got = f"{y.dtype} {tuple(y.shape)} on {y.device}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: expected int64 of shape ({len(x)},) on {x.device}, got {got}")
    output = logits_of(plain_output(model, x[:1]))
    if y.min() < 0 or y.max() >= output.size(1):
        classes = f"classes from {y.min()} to {y.max()} and output of shape {tuple(output.shape)}"
        raise ValueError(f"y: expected classes of the model, which has output [B, classes], got {classes}")
    if clip is not None and not (clip[0] <= x.min() and x.max() <= clip[1]):
        raise ValueError(f"clip: expected a range that holds x, {x.min():g} to {x.max():g}, got {clip}")


def _check_gradients(model: nn.Module, x: Tensor, y: Tensor, radius: float, clip: tuple[float, float] | None) -> None:
    """Raises where autograd's gradients are not the function's, as behind detach(), hooks and some custom functions.

    One point of each ball is looked at, in a batch of two or more, which shows whether samples mix.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    part, direction = (torch.rand(x.shape, generator=generator, device="cpu").to(x) for _ in range(2))
    x = torch.lerp(*_box(x, radius, clip), part)
    x, y, direction = (t.repeat(2, *[1] * (t.dim() - 1)) if len(t) == 1 else t for t in (x, y, direction.double()))
    observed = Observed(Logits(model))
    evaluation.layers_of(observed, x, Directions(direction.unsqueeze(0)), torch.float64)
    rates = observed.tangents(x, 1)[0, :, 1:].gather(1, y[:, None]).squeeze(1)
    terms = _gradient(model, x, y).double() * direction
    difference = (terms.flatten(1).sum(1) - rates).abs()
    tolerance = max(1e-3, 64 * torch.finfo(x.dtype).eps) * (terms.flatten(1).abs().sum(1) + rates.abs())
    if (difference > tolerance).any():
        raise ValueError(
            "model: expected gradients by autograd that are those of the function, got others: detach(), no_grad(), "
            "hooks on gradients, custom functions or constants that change after use are in the way"
        )


def _points_at_once(model: nn.Module, x: Tensor, memory: int) -> int:
    """How many points a forward and a backward pass can take."""
    neurons = sum(layer.z.size(1) for layer in evaluation.values_of(model, x[:1], torch.float64))
    # A point with its gradient, its parents and their choice; a neuron's input, output and gradients.
    return max(1, memory // (x.element_size() * (8 * x[0].numel() + 6 * neurons)))
