"""gradient_distortion, against the exact regions of networks with one input and against plain loops."""

import networks
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.regions.distortion import _Ball, _genetic, _uniform

DTYPE = torch.float64
SMALL = {"samples": 200, "population": 40, "generations": 3, "progress": False}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    model[0].weight.data *= 4
    model[0].bias.data *= 4
    return model, torch.tensor([[0.3], [0.5], [0.04]], dtype=DTYPE), torch.tensor([0, 2, 1])


def gradient(model, point, label):
    point = point.detach().clone().requires_grad_()
    return torch.autograd.grad(model(point[None])[0, label], point)[0]


def test_equals_exact_regions_of_a_line():
    model, x, y = line_network()
    found = llr_fast.gradient_distortion(
        model, x, y, 0.2, samples=4000, population=400, generations=5, generator=seeded()
    )
    starts, ends = (x - 0.2).clamp(0, 1), (x + 0.2).clamp(0, 1)
    for i, crossings in enumerate(llr_fast.regions_along(model, starts, ends)):
        change = torch.stack([gradient(model, m, y[i]) - gradient(model, x[i], y[i]) for m in crossings.midpoints])
        change = change.abs().sum(1)
        assert found.maximal[i].item() == pytest.approx(change.max().item(), rel=1e-9)
        error = (found.expected[i] - crossings.lengths @ change).abs()
        deviation = (crossings.lengths @ change.square() - (crossings.lengths @ change) ** 2).sqrt()
        assert error < 4 * deviation / 4000**0.5


@pytest.mark.parametrize("name", ["relu", "conv2d", "max_pool2d", "recurrent_batch_first"])
def test_point_lies_in_the_ball_and_has_the_change(name):
    model, x = networks.build(name)
    y = torch.tensor([0, 1, 1])
    clip = (x.min().item(), x.max().item())
    found = llr_fast.gradient_distortion(model, x, y, 0.5, clip, generator=seeded(), **SMALL)
    assert found.point.shape == x.shape and (found.point - x).abs().max() <= 0.5 + 1e-12
    assert clip[0] <= found.point.min() and found.point.max() <= clip[1]
    for i in range(3):
        change = (gradient(model, found.point[i], y[i]) - gradient(model, x[i], y[i])).abs().sum()
        torch.testing.assert_close(change, found.maximal[i])
    assert (found.expected <= found.maximal).all() and (found.expected <= found.baseline).all()


def test_nothing_changes_within_the_linf_margin():
    model, x = networks.build("conv2d")
    radius = 0.999 * llr_fast.margin(model, x, float("inf")).value.min().item()
    found = llr_fast.gradient_distortion(model, x, torch.tensor([0, 1, 1]), radius, None, **SMALL)
    assert found.maximal.max() < 1e-12 and found.expected.max() < 1e-12


def test_counts_evaluations(monkeypatch):
    model, x, y = line_network()
    changes, count = _Ball.changes, []

    def counting(self, points):
        count.append(points.shape[:2].numel())
        return changes(self, points)

    monkeypatch.setattr(_Ball, "changes", counting)
    found = llr_fast.gradient_distortion(model, x, y, 0.1, baseline=False, **SMALL)
    assert found.baseline is None and found.evaluations == 40 + 3 * 30
    assert sum(count) == 3 * (200 + 130)
    count.clear()
    llr_fast.gradient_distortion(model, x, y, 0.1, **SMALL)
    assert sum(count) == 3 * (200 + 130)  # the baseline goes on from the samples of the mean


def test_defaults_are_the_papers(monkeypatch):
    model, x, y = line_network()
    changes, count = _Ball.changes, []
    monkeypatch.setattr(_Ball, "changes", lambda self, points: count.append(points.size(1)) or changes(self, points))
    found = llr_fast.gradient_distortion(model, x[:1], y[:1], 8 / 256, baseline=False, progress=False)
    assert found.evaluations == 4800 + 30 * 3600 and sum(count) == found.evaluations + 8000


def test_reproducible_by_generator():
    model, x = networks.build("conv2d")
    y = torch.tensor([0, 1, 1])
    first, again, other = (
        llr_fast.gradient_distortion(model, x, y, 0.5, None, generator=seeded(s), **SMALL) for s in (0, 0, 1)
    )
    assert torch.equal(first.maximal, again.maximal) and torch.equal(first.expected, again.expected)
    assert not torch.equal(first.expected, other.expected)


@pytest.mark.parametrize("memory, largest", [(1, 1), (20_000, 6), (10**9, 105)])
def test_memory_bounds_what_is_done_at_a_time(memory, largest, monkeypatch):
    model, x, y = line_network()
    gradients, sizes = _Ball._gradients, []

    def noting(self, points):
        sizes.append(points.shape[:2].numel())
        return gradients(self, points)

    monkeypatch.setattr(_Ball, "_gradients", noting)
    options = {"samples": 30, "population": 20, "generations": 1, "progress": False, "generator": seeded()}
    found = llr_fast.gradient_distortion(model, x, y, 0.2, memory=memory, **options)
    assert max(sizes) == largest
    assert found.evaluations == 35 and (found.expected > 0).all() and (found.maximal >= found.expected).all()


def test_genetic_search_follows_its_definition():
    """Kept points are the best of all seen; children lie between two of them."""
    ball = Recording()
    largest, point = _genetic(ball, 7, population=20, generations=4, kept=5)
    assert [sum(c.size(1) for c in generation) for generation in ball.generations] == [20, 15, 15, 15, 15]
    seen = torch.cat(ball.generations[0], 1)
    for parents, children in zip(ball.parents, ball.generations[1:]):
        best = seen[0, :, 0].topk(5).values
        assert torch.equal(parents[0, :, 0].sort(descending=True).values, best)
        seen = torch.cat([seen, *children], 1)
    assert largest == point[0, 0] == seen[..., 0].max()


@pytest.mark.parametrize("samples, evaluations, total", [(30, 10, 30), (10, 30, 30), (20, 20, 20), (30, 10, 40)])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_mean_of_the_samples_and_largest_of_as_many_as_the_search(samples, evaluations, total, chunk):
    """The change of the n-th point is n, so what belongs to neither would show."""

    class Counting:
        count = 0

        def uniform(self, count):
            return torch.zeros(2, count)

        def changes(self, points):
            first = self.count
            self.count += points.size(1)
            return torch.arange(first, self.count, dtype=DTYPE).expand(2, -1)

    mean, largest = _uniform(Counting(), chunk, samples, total, evaluations)
    assert mean.tolist() == 2 * [pytest.approx((samples - 1) / 2)] and largest.tolist() == 2 * [evaluations - 1]


class Recording:
    """Stands in for a ball whose change is the point's first entry; some children are better than their parents."""

    def __init__(self):
        self.generations, self.parents, self.generator = [[]], [], seeded()

    def empty(self):
        return torch.zeros(1, 0, 2)

    def uniform(self, count):
        return torch.rand(1, count, 2, generator=self.generator)

    def children(self, parents, count):
        if not self.parents or self.parents[-1] is not parents:
            self.parents.append(parents)
            self.generations.append([])
        return 1.2 * torch.rand(1, count, 2, generator=self.generator)

    def changes(self, points):
        self.generations[-1].append(points)
        return points[..., 0]


def test_children_are_convex_combinations_of_two():
    y = torch.tensor([0])
    bar = type("Bar", (), {"update": lambda self, n: None})()
    ball = _Ball(nn.Flatten(), torch.zeros(1, 3, dtype=DTYPE), y, 1.0, None, seeded(), bar)
    parents = torch.eye(3, dtype=DTYPE)[None]
    children = ball.children(parents, 500)[0]
    torch.testing.assert_close(children.sum(1), torch.ones(500, dtype=DTYPE))
    assert ((children > 0).sum(1) <= 2).all() and children.min() >= 0 and ((children > 0.01).sum(0) > 100).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"radius": -1.0}, "radius: expected a number from 0"),
        ({"clip": (0.4, 1)}, "clip: expected a range that holds x"),
        ({"y": torch.tensor([0, 1])}, r"y: expected int64 of shape \(3,\)"),
        ({"y": torch.tensor([0, 1, 3])}, "y: expected classes of the model"),
        ({"samples": 0}, "samples: expected at least 1"),
        ({"keep": 1.5}, "keep: expected a number from 0 to 1"),
        ({"generations": -1}, "generations: expected at least 0"),
    ],
)
def test_refuses(options, message):
    model, x, y = line_network()
    with pytest.raises(ValueError, match=message):
        llr_fast.gradient_distortion(model, x, **{"y": y, "radius": 0.1, **options})


class Tripled(torch.autograd.Function):
    """The identity, with a gradient that is not its own."""

    @staticmethod
    def forward(ctx, z):
        return 1 * z

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


def hooked(z):
    if z.requires_grad:
        z.register_hook(lambda gradient: 3 * gradient)
    return z


NOT_AUTOGRADS = {"detach": lambda z: (z + z.detach()) / 2, "function": Tripled.apply, "hook": hooked}


@pytest.mark.parametrize("name", NOT_AUTOGRADS)
def test_gradients_that_are_not_the_functions_are_refused(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), networks.Apply(NOT_AUTOGRADS[name]), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="gradients by autograd that are those of the function"):
        llr_fast.gradient_distortion(model, torch.rand(2, 4), torch.tensor([0, 1]), 0.1, samples=10, population=4)


def test_samples_that_mix_are_refused_even_for_one_input():
    model = nn.Sequential(networks.Apply(lambda x: x - x.mean(0)), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(llr_fast.MixedSamplesError):
        llr_fast.gradient_distortion(model, torch.rand(1, 4), torch.tensor([0]), 0.1, samples=10, population=4)


def test_models_that_write_to_their_input_and_inputs_of_another_dtype():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    options = {"samples": 50, "population": 10, "generations": 1, "progress": False}

    def expected(function, x):
        model = nn.Sequential(networks.Apply(function), body)
        generator = torch.Generator().manual_seed(0)
        return llr_fast.gradient_distortion(model, x, y, 0.3, None, generator=generator, **options).expected

    plain = expected(lambda x: x - 0.5, x.double())
    assert torch.equal(expected(lambda x: x.sub_(0.5), x.double()), plain)
    torch.testing.assert_close(expected(lambda x: x - 0.5, x), plain, rtol=0.05, atol=0)
    with torch.inference_mode():
        assert torch.equal(expected(lambda x: x - 0.5, x.double()), plain)
