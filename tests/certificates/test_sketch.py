"""The bounds of gradient norms hold as often as promised, and are not so loose that they prune nothing."""

import math

import pytest
import torch

from llr_fast.certificates import sketch
from llr_fast.norms import Statistic

DTYPE = torch.float64
DRAWS = 20_000


def upper_bound(measured, q, directions, level):
    return sketch.upper_bound(measured, q, directions, sketch.quantile(q, directions, level))


def statistic(gradient, q, directions, generator):
    """What the evaluation adds up over the directions, for `DRAWS` independent draws."""
    drawn = sketch.draw(q, (DRAWS, directions, gradient.numel()), gradient, generator)
    along = (drawn @ gradient).abs()
    return along.log().sum(1) if sketch.statistic_over_random(q) is Statistic.SUM_LOG_ABS else along.square().sum(1)


GRADIENTS = {
    "one_entry": torch.tensor([0.0, -3.0, 0.0]),
    "equal": torch.ones(8),
    "decaying": 0.3 ** torch.arange(6.0),
    "tiny": 1e-9 * torch.tensor([1.0, -2.0, 3.0]),
    "one_dimension": torch.tensor([-5.0]),
}


@pytest.mark.parametrize("directions", [1, 5, 20])
@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("name", GRADIENTS)
def test_violations_are_as_rare_as_promised(name, q, directions):
    gradient = GRADIENTS[name].to(DTYPE)
    norm = torch.linalg.vector_norm(gradient, q)
    measured = statistic(gradient, q, directions, torch.Generator().manual_seed(0))
    for level in (1e-1, 1e-2, 1e-3):
        share = (upper_bound(measured, q, directions, level) < norm).double().mean().item()
        assert share <= level + 4 * math.sqrt(level * (1 - level) / DRAWS)


@pytest.mark.parametrize("directions", [1, 5, 20])
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gaussian_bound_is_tight(name, directions):
    """For q = 2 the promised rate is attained."""
    gradient = GRADIENTS[name].to(DTYPE)
    measured = statistic(gradient, 2, directions, torch.Generator().manual_seed(1))
    share = (upper_bound(measured, 2, directions, 0.1) < gradient.norm()).double().mean().item()
    assert abs(share - 0.1) <= 4 * math.sqrt(0.09 / DRAWS)


def joint(norms, distances, q, level, draws=DRAWS):
    """Joint bounds of neurons of these gradient norms, each draw of 6 directions a sample of its own: [draws, n]."""
    generator = torch.Generator().manual_seed(7)
    gradients = torch.outer(norms, GRADIENTS["decaying"].to(DTYPE) / GRADIENTS["decaying"].norm(q))
    drawn = sketch.draw(q, (draws, 6, gradients.size(1)), gradients, generator)
    along = (drawn @ gradients.T).abs()
    measured = along.log().sum(1) if sketch.statistic_over_random(q) is Statistic.SUM_LOG_ABS else along.square().sum(1)
    layers = [5, len(norms) - 5]
    statistics, away = measured.split(layers, 1), distances.expand(draws, -1).split(layers, 1)
    return torch.cat(sketch.joint_bounds(list(statistics), list(away), q, 6, level), 1)


@pytest.mark.parametrize("q", [1, 2])
def test_joint_bounds_fail_as_rarely_as_promised(q):
    norms = torch.linspace(0.5, 2, 30, dtype=DTYPE)
    for distances in (torch.ones(30), torch.logspace(-6, 0, 30), torch.linspace(0, 1, 30)):
        failed = (joint(norms, distances.to(DTYPE), q, 0.05) < norms).any(1).double().mean()
        assert failed <= 0.05 + 4 * math.sqrt(0.05 / DRAWS)


MAGNITUDES = {
    "one": torch.ones(30),
    "many": torch.logspace(-6, 0, 30),
    "two": torch.tensor([1.0, 0.01]).repeat(15),
}


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("first", MAGNITUDES)
@pytest.mark.parametrize("name", MAGNITUDES)
def test_joint_bounds_of_orthonormal_gradients(name, first, q):
    """Their tangents are independent, so that their bounds fail independently; in layers of several widths.

    The first sample of the batch is an unlike one. Gaussian bounds fail just as often as promised in the worst case.
    """
    drawn = sketch.draw(q, (DRAWS, 6, 30), torch.ones(1, dtype=DTYPE), torch.Generator().manual_seed(8)).abs()
    measured = drawn.log().sum(1) if sketch.statistic_over_random(q) is Statistic.SUM_LOG_ABS else drawn.square().sum(1)
    distances = MAGNITUDES[name].to(DTYPE).repeat(DRAWS, 1)
    distances[0] = MAGNITUDES[first]
    layers = [15, 10, 5]
    bounds = sketch.joint_bounds(list(measured.split(layers, 1)), list(distances.split(layers, 1)), q, 6, 0.05)
    failed = (torch.cat(bounds, 1)[1:] < 1).any(1).double().mean().item()
    error = 4 * math.sqrt(0.05 / DRAWS)
    assert failed <= 0.05 + error
    if q == 2 and name == first:
        assert failed >= 0.045 - error


@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_joint_bounds_of_neurons_near_their_kinks_are_tighter(q):
    norms = torch.ones(1000, dtype=DTYPE)
    distances = torch.linspace(1e-3, 1, 1000, dtype=DTYPE)
    bounds = joint(norms, distances, q, 1e-10, draws=50)
    equal_parts = joint(norms, torch.ones(1000, dtype=DTYPE), q, 1e-10, draws=50)
    near = distances < 0.01
    assert (bounds[:, near] < 0.8 * equal_parts[:, near]).all()
    assert (bounds < 10 ** (1 / 6) * equal_parts).all()  # of ten magnitudes, and 6 directions


def test_joint_bounds_of_tiny_distances_and_of_empty_layers():
    statistics = [torch.ones(2, 3, dtype=DTYPE), torch.ones(2, 0, dtype=DTYPE)]
    distances = [torch.tensor([[0.0, 1e-300, 1.0], [1e-10, 1e-200, 1e10]], dtype=DTYPE), torch.empty(2, 0, dtype=DTYPE)]
    first, second = sketch.joint_bounds(statistics, distances, 2, 20, 1e-10)
    assert first.isfinite().all() and first.shape == (2, 3) and second.shape == (2, 0)


@pytest.mark.parametrize("q, factor", [(1, 30), (2, 10)])
def test_bounds_at_the_working_point_are_useful(q, factor):
    """20 directions, 1e-10 shared by a million neurons."""
    gradient = GRADIENTS["decaying"].to(DTYPE)
    measured = statistic(gradient, q, 20, torch.Generator().manual_seed(2))
    ratio = upper_bound(measured, q, 20, 1e-16) / torch.linalg.vector_norm(gradient, q)
    assert (ratio > 1).all() and ratio.median() < 2 * factor


@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_bounds_scale_with_the_gradient_and_fall_with_the_level(q):
    gradient = GRADIENTS["equal"].to(DTYPE)
    measured = statistic(gradient, q, 10, torch.Generator().manual_seed(3))
    scaled = statistic(4 * gradient, q, 10, torch.Generator().manual_seed(3))
    bound = upper_bound(measured, q, 10, 1e-6)
    torch.testing.assert_close(upper_bound(scaled, q, 10, 1e-6), 4 * bound)
    assert (upper_bound(measured, q, 10, 1e-3) < bound).all()


@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_no_gradient_has_bound_zero(q):
    zero = torch.zeros(4, dtype=DTYPE)
    assert (upper_bound(statistic(zero, q, 5, torch.Generator().manual_seed(4)), q, 5, 1e-6) == 0).all()


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("level", [1e-10, 1e-20, 1e-100])
def test_smallest_levels_stay_finite(q, level):
    measured = statistic(GRADIENTS["equal"].to(DTYPE), q, 20, torch.Generator().manual_seed(5))[:100]
    bound = upper_bound(measured, q, 20, level)
    assert bound.isfinite().all() and (bound > GRADIENTS["equal"].norm(q)).all()


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_dtype_and_generator(q, dtype):
    like = torch.empty(0, dtype=dtype)
    first, second = (sketch.draw(q, (7, 3), like, torch.Generator().manual_seed(6)) for _ in range(2))
    assert first.dtype == dtype and first.shape == (7, 3) and torch.equal(first, second)
    assert first.isfinite().all()


@pytest.mark.parametrize("directions", [1, 5, 20])
@pytest.mark.parametrize("level", [1e-1, 1e-3, 1e-10])
def test_the_cauchy_bound_is_the_best_of_chernoff(level, directions):
    """E |C|^-s = 1 / cos(pi s / 2): the least deviation d with exp(-s d) E |C|^-s ... = level, on a fine grid of s."""
    s = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=DTYPE)
    least = ((-math.log(level) - directions * (math.pi * s / 2).cos().log()) / s).min().item()
    bound = upper_bound(torch.zeros(1, dtype=DTYPE), 1, directions, level).log().item() * directions
    assert bound == pytest.approx(least, rel=1e-5)
