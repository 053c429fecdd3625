"""How much the gradient of the true-class logit changes near an input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llr_fast import certify
from llr_fast.batches import PATIENCE
from llr_fast.checks import check_count, check_range


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
    memory: int = certify.MEMORY_BUDGET,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Distortion:
    """Expected and maximal l1 change of the true-class logit's gradient in an l_inf ball (Table 4 of the paper).

    The maximum is searched by a genetic algorithm: from a uniform population, each generation keeps the points of the
    largest change, replaces the rest by random convex combinations of two of those kept, and projects them to the ball;
    there is no mutation. It is a lower bound of the true maximum. The baseline draws uniform points afresh, as many as
    the search evaluated, so that the difference shows what the search adds.

    Args:
        model: a piecewise-linear network in evaluation mode with output [B, classes].
        x: [B, ...], within `clip`.
        y: [B] int64, the classes.
        radius: of the l_inf ball, in units of x.
        clip: the range of inputs that the ball is cut with; None for no limits.
        samples: of the mean.
        population, generations, keep: of the genetic search; `keep` is the part of the population that survives.
        baseline: whether to compute it, which doubles the work.
        memory: bytes that the activations of one evaluation, and the points of one, may take.
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
    _check(model, x, y, radius, clip, keep)
    for name, value in (("samples", samples), ("population", population), ("generations", generations)):
        check_count(name, value)
    check_count("memory", memory)
    kept = min(population, max(2, round(keep * population)))
    evaluations = population + generations * (population - kept)
    uniform = max(samples, evaluations) if baseline else samples
    points = _points_at_once(model, x, memory)
    images = max(1, min(len(x), points // population))
    parts = []
    with tqdm(
        total=len(x) * (evaluations + uniform), desc="gradients", delay=PATIENCE, disable=not progress, unit_scale=True
    ) as bar:
        for inputs, labels in zip(x.detach().split(images), y.split(images)):
            ball = _Ball(model, inputs, labels, radius, clip, max(1, points // len(inputs)), generator, bar)
            expected, best = ball.uniform(samples, uniform if baseline else 0)
            maximal, point = ball.genetic(population, generations, kept)
            parts.append((expected, maximal, best, point))
    expected, maximal, best, point = (torch.cat(tensors) for tensors in zip(*parts))
    return Distortion(expected, maximal, best if baseline else None, point, evaluations)


class _Ball:
    """The ball around each of I inputs [I, ...], cut with the range of inputs, and the changes met in it.

    At most `chunk` points of each input are evaluated at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        radius: float,
        clip: tuple[float, float] | None,
        chunk: int,
        generator: torch.Generator | None,
        bar: tqdm,
    ) -> None:
        self._model, self._y, self._chunk, self._generator, self._bar = model, y, chunk, generator, bar
        self._low, self._high = x - radius, x + radius
        if clip is not None:
            self._low, self._high = self._low.clamp(*clip), self._high.clamp(*clip)
        self._centre = self._gradients(x.unsqueeze(1))

    def uniform(self, samples: int, evaluations: int) -> tuple[Tensor, Tensor]:
        """[I] each: the mean over the first `samples` uniform points, and the maximum over the first `evaluations`."""
        total = torch.zeros(len(self._y), dtype=torch.float64, device=self._y.device)
        best = torch.zeros_like(self._low.flatten(1)[:, 0])
        done = 0
        while done < max(samples, evaluations):
            found = self._changes(self._draw(min(self._chunk, max(samples, evaluations) - done)))
            total += found[:, : max(0, samples - done)].double().sum(1)
            if done < evaluations:
                best = torch.maximum(best, found[:, : evaluations - done].amax(1))
            done += found.size(1)
        return (total / samples).to(best.dtype), best

    def genetic(self, population: int, generations: int, kept: int) -> tuple[Tensor, Tensor]:
        """The largest change [I] and its point [I, ...]."""
        points = self._low[:, None].expand(-1, 0, *self._low.shape[1:])
        survivors = (points, points.flatten(2).sum(2))
        survivors = self._generation(survivors, population, kept, lambda count: self._draw(count))
        for _ in range(generations):
            parents = survivors[0]
            survivors = self._generation(
                survivors, population - kept, kept, lambda count, parents=parents: self._children(parents, count)
            )
        return survivors[1][:, 0], survivors[0][:, 0]
