"""Inputs of roll_activation and roll_max_pool and what they should give, by formulas that share no code with them."""

import itertools
import math

import operators as ops
import torch
import torch.nn.functional as F

from llr_fast.dispatch import backend

# name -> the activation of torch, its kinks, and the arguments of roll_activation
RAMPS = {
    "relu": (F.relu, (0.0,), {}),
    "relu6": (lambda z: F.relu6(z), (0.0, 6.0), {"upper": 6.0}),
    "hardtanh": (lambda z: F.hardtanh(z, -0.7, 0.4), (-0.7, 0.4), {"lower": -0.7, "upper": 0.4}),
    "clamp_min": (lambda z: z.clamp(min=-0.5), (-0.5,), {"lower": -0.5}),
    "clamp_max": (lambda z: z.clamp(max=1.5), (1.5,), {"lower": -math.inf, "upper": 1.5}),
    "leaky_relu": (lambda z: F.leaky_relu(z, 0.2), (0.0,), {"below": 0.2}),
    "leaky_relu_down": (lambda z: F.leaky_relu(z, -0.5), (0.0,), {"below": -0.5}),
}
# [K, *shape of z]: odd, unit and empty sizes, and more than one block
SHAPES = [(1, 3, 7), (3, 2, 5, 3, 4), (2, 1, 1), (1, 0, 4), (1, 5000), (2, 3, 2, 41, 37)]
# space, kernel, stride, padding, dilation
WINDOWS = [
    ((7,), (3,), (2,), (1,), (1,)),
    ((5, 6), (3, 2), (2, 2), (1, 0), (1, 1)),
    ((6, 7), (2, 3), (1, 2), (0, 1), (2, 1)),
    ((9, 4), (1, 1), (2, 1), (0, 0), (1, 1)),
    ((4, 3, 5), (2, 2, 3), (2, 1, 2), (1, 0, 1), (1, 1, 1)),
]
LONG = ((3, 5003), (2, 3), (1, 2), (0, 1), (1, 1))  # more windows than a block has


def size_of(windows):
    space, *parameters = windows
    pool = getattr(F, f"max_pool{len(space)}d")
    return tuple(pool(torch.empty(1, *space), *parameters).shape[1:])


def hinges(z, kinks):
    distance = torch.stack([(z - kink).abs() for kink in kinks]).amin(0)
    return (1 - distance).clamp(min=0).sum()


def activation_oracle(name, z, tangents):
    function, kinks, _ = RAMPS[name]
    (slope,) = torch.autograd.grad(function(z).sum(), z, materialize_grads=True)
    return function(z), tangents * slope, torch.stack([tangents.square().sum(), hinges(z, kinks)])


def prelu_oracle(z, tangents, slope):
    shape = (-1, *[1] * (z.dim() - 2)) if slope.numel() > 1 else (1,)
    masked = torch.where(z > 0, tangents, tangents * slope.view(shape))
    return F.prelu(z, slope), masked, torch.stack([tangents.square().sum(), hinges(z, (0.0,))])


def pool_oracle(z, tangents, windows):
    """Window by window."""
    space, kernel, stride, padding, dilation = windows
    out, winning, squares, leads = [], [], [], []
    for b, c, *place in itertools.product(*map(range, (*z.shape[:2], *size_of(windows)))):
        axes = zip(place, kernel, stride, padding, dilation, space)
        ranges = [[w * s - p + j * d for j in range(k) if 0 <= w * s - p + j * d < n] for w, k, s, p, d, n in axes]
        entries = list(itertools.product(*ranges))
        values = torch.stack([z[(b, c, *at)] for at in entries])
        rows = torch.stack([tangents[(slice(None), b, c, *at)] for at in entries])
        winner = int(values.argmax())
        losers = [i for i in range(len(entries)) if i != winner]
        out.append(values[winner])
        winning.append(rows[winner])
        squares.append((rows[winner] - rows[losers]).square().sum())
        leads.append((1 - (values[winner] - values[losers])).clamp(min=0).sum())
    shape = (*z.shape[:2], *size_of(windows))
    sums = torch.stack([torch.stack(squares).sum(), torch.stack(leads).sum()])
    return torch.stack(out).view(shape), torch.stack(winning, 1).view(-1, *shape), sums


def pool(z, tangents, windows):
    _, *parameters = windows
    return ops.roll_max_pool(z, tangents, *parameters, size_of(windows))


def draw(shape, dtype=torch.float32, tangents=None, device="cpu"):
    """z and tangents for a shape [K, *z.shape]; no kink lies between the number and its double."""
    z = 2 * torch.randn(shape[1:], dtype=torch.float64)
    return z.to(device, dtype), torch.randn(shape, dtype=torch.float64).to(device, tangents or dtype)


def arguments(windows, inner, directions, dtype, of_tangents=None, samples=4):
    """What the operator itself takes."""
    z, tangents = draw((directions, samples, *windows[0], inner), dtype, of_tangents)
    _, *parameters = windows
    return z, tangents, [number for each in (*parameters, size_of(windows)) for number in each]


def backward_arguments(args, d_out, d_winning, d_sums, index):
    """What its gradient takes, where the operator took `args`."""
    return d_out, d_winning, d_sums, *args[:2], index, args[2]


def channels_last(tensor, channels):
    """The same entries, of which those of the axis `channels` lie beside each other."""
    return tensor.movedim(channels, -1).contiguous().movedim(-1, channels)


def with_gradients(function, *tensors):
    """Outputs, and gradients of their sum with fixed random weights."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    found = function(*leaves)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in found]
    gradients = torch.autograd.grad(found, leaves, weights, materialize_grads=True)
    return [t.detach() for t in (*found, *gradients)]


def computed(name, function, *tensors):
    with backend(name):
        return with_gradients(function, *tensors)


def expected(function, *tensors):
    return with_gradients(function, *(t.double().cpu() for t in tensors))


def check(found, wanted, rtol):
    """Relative to the largest entry."""
    for a, b in zip(found, wanted, strict=True):
        scale = float(b.abs().amax()) if b.numel() else 1.0
        torch.testing.assert_close(a.double().cpu(), b, rtol=rtol, atol=rtol * max(scale, 1e-30))
