"""Inside its margin a network is affine with one pattern; one step past it, it has another."""

import math
import random

import networks
import oracle
import pytest
import torch
from torch import nn

import llr_fast

DTYPE = torch.float64
NAMES = [
    "relu",
    "leaky_relu",
    "hardtanh",
    "relu6",
    "abs",
    "softshrink",
    "prelu_each_channel",
    "maximum",
    "minimum_constant",
    "concatenating",
    "reused",
    "conv1d",
    "conv2d",
    "conv3d",
    "residual",
    "recurrent_time_first",
    "time_distributed",
    "frames",
    "decoder",
    "max_pool1d_padded",
    "max_pool2d_ceil",
    "max_pool2d_of_relu",
    "adaptive_max_pool2d",
    "hardshrink",
    "threshold",
]


def in_ball(p: float, count: int, shape, generator) -> torch.Tensor:
    """Points of the l_p unit ball, half of them on its sphere."""
    points = torch.randn(count, math.prod(shape), generator=generator, dtype=DTYPE)
    if p == math.inf:
        points[::3] = points[::3].sign()
    if p == 1:
        points[::3] *= torch.nn.functional.one_hot(torch.arange(len(points[::3])) % points.shape[1], points.shape[1])
    points /= torch.linalg.vector_norm(points, p, dim=1, keepdim=True)
    points[1::2] *= torch.rand(len(points[1::2]), 1, generator=generator, dtype=DTYPE)
    return points.view(count, *shape)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_affine_within_the_margin(case, name, p):
    model, x, _ = case(name)
    margin = llr_fast.margin(model, x, p).value
    generator = torch.Generator().manual_seed(0)
    for b, sample in enumerate(x.split(1)):
        steps = 0.999 * margin[b] * in_ball(p, 60, x.shape[1:], generator)
        with torch.no_grad():
            output = model(sample)
            moved = model(sample + steps)
        jacobian = torch.autograd.functional.jacobian(lambda point: model(point)[0], sample).flatten(output.dim() - 1)
        affine = output + (jacobian.reshape(-1, steps[0].numel()) @ steps.flatten(1).T).T.reshape(moved.shape)
        torch.testing.assert_close(moved, affine, rtol=1e-9, atol=1e-10)
        pattern = llr_fast.activation_pattern(model, sample)
        assert (llr_fast.activation_pattern(model, sample + steps) == pattern).all()


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_pattern_changes_at_the_boundary_point(case, name, p):
    model, x, _ = case(name)
    margin = llr_fast.margin(model, x, p)
    step = margin.boundary_point(x) - x
    torch.testing.assert_close(torch.linalg.vector_norm(step.flatten(1), p, dim=1), margin.value, rtol=1e-9, atol=0)
    pattern = llr_fast.activation_pattern(model, x)
    assert torch.equal(llr_fast.activation_pattern(model, x + 0.9999 * step), pattern)
    assert (llr_fast.activation_pattern(model, x + 1.0001 * step) != pattern).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_ordered(case, name):
    """||.||_inf <= ||.||_2 <= ||.||_1 <= D ||.||_inf, hence eps_inf <= eps_2 <= eps_1 <= D eps_inf."""
    model, x, _ = case(name)
    one, two, infinity = (llr_fast.margin(model, x, p).value for p in (1, 2, math.inf))
    slack = 1 + 1e-12
    assert (
        (infinity <= two * slack).all()
        and (two <= one * slack).all()
        and (one <= x[0].numel() * infinity * slack).all()
    )


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_scaling_the_input_map_scales_the_margin(p):
    model, x = networks.build("relu")
    before = llr_fast.margin(model, x, p).value
    model[0].weight.data *= 8
    torch.testing.assert_close(llr_fast.margin(model, x / 8, p).value, before / 8, rtol=1e-10, atol=0)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_translation_and_permutation_of_the_input(p):
    model, x = networks.build("relu")
    before = llr_fast.margin(model, x, p).value
    order, shift = torch.randperm(5), torch.randn(5, dtype=DTYPE)
    moved = torch.nn.Sequential(networks.Apply(lambda x: x[:, order] - shift), model)
    found = llr_fast.margin(moved, (x + shift)[:, order.argsort()], p).value
    torch.testing.assert_close(found, before, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, scale, rtol",
    [
        (torch.float64, 1e-60, 1e-8),
        (torch.float64, 1e60, 1e-8),
        (torch.float32, 2e-13, 1e-4),
        (torch.float32, 2e13, 1e-4),
    ],
)
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_extreme_scales(p, dtype, scale, rtol):
    """Neither squares of gradients nor bounds may overflow or vanish."""
    model, x = networks.build("relu")
    model, x = model.to(dtype), x.to(dtype)
    before = llr_fast.margin(model, x, p).value
    scaled = torch.nn.Sequential(networks.Apply(lambda x: x * scale), model)
    for method in ("exact", "search"):
        found = llr_fast.margin(scaled, x / scale, p, method=method).value
        torch.testing.assert_close(found * scale, before, rtol=rtol, atol=0)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_duplicate_neurons(p):
    """Ties everywhere: the margin is that of one copy."""
    model, x = networks.build("relu")
    before = llr_fast.margin(model, x, p).value
    twice = torch.nn.Sequential(
        networks.Apply(lambda x: torch.cat([model[0](x), model[0](x)], 1)),
        torch.nn.ReLU(),
        networks.Apply(lambda h: model[2](h[:, :8])),
        torch.nn.ReLU(),
    )
    for method in ("exact", "search"):
        torch.testing.assert_close(llr_fast.margin(twice, x, p, method=method).value, before, rtol=1e-9, atol=0)


class Rearranged(nn.Module):
    """A random chain of shape changes, which may take the batch axis anywhere, between a mixing map and a kink."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self.register_buffer("mix", torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=DTYPE))

    def forward(self, x):
        draw = random.Random(self.seed)
        y = torch.nn.functional.leaky_relu(x @ self.mix, -0.5)
        for _ in range(draw.randint(1, 5)):
            axis = draw.randrange(y.dim())
            match draw.choice(["permute", "flatten", "unflatten", "split off", "unsqueeze", "select"]):
                case "permute":
                    y = y.permute(*draw.sample(range(y.dim()), y.dim()))
                case "flatten" if axis:
                    y = y.flatten(axis - 1, axis)
                case "unflatten" if y.shape[axis] % 2 == 0:
                    y = y.unflatten(axis, (-1, 2))
                case "split off" if y.shape[axis] % 2 == 0:
                    y = y.unflatten(axis, (2, -1))
                case "unsqueeze":
                    y = y.unsqueeze(axis)
                case "select" if y.shape[axis] > 1:
                    y = y.narrow(axis, 0, y.shape[axis] - 1)
        return (y - 0.1).abs()


CUT = [6, 18, 24, 42, 52, 59, 64, 75, 101, 108, 117, 120, 126, 130, 144, 145, 148]  # the seeds of these models


def test_the_batch_axis_may_go_anywhere():
    """Neurons belong to their samples, in the order of a batch of one; models that cut into the batch are refused."""
    refused = []
    for seed in range(150):
        model = Rearranged(seed)
        x = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
        try:
            found = llr_fast.gradient_norms(model, x)
        except llr_fast.MixedSamplesError:
            refused.append(seed)
        else:
            for layer, expected in zip(found, zip(*[oracle.neurons(model, sample) for sample in x.split(1)])):
                torch.testing.assert_close(layer.distance, torch.stack([sample.distance for sample in expected]))
                torch.testing.assert_close(layer.norm, torch.stack([sample.norm(2) for sample in expected]))
    assert refused == CUT
