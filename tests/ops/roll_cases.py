"""Inputs of roll_max_pool and what it should give, by a loop over windows that shares no code with it."""

import itertools

import operators as ops
import torch
import torch.nn.functional as F
from ops.operator_cases import outputs_and_gradients

from llr_fast.dispatch import backend

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


def computed(name, function, *tensors):
    """Outputs, and gradients of their sum with fixed random weights."""
    with backend(name):
        return outputs_and_gradients(function, tensors, ())


def expected(function, *tensors):
    return outputs_and_gradients(function, tuple(t.double().cpu() for t in tensors), ())


def check(found, wanted, rtol):
    """Relative to the largest entry."""
    for a, b in zip(found, wanted, strict=True):
        scale = float(b.abs().amax()) if b.numel() else 1.0
        torch.testing.assert_close(a.double().cpu(), b, rtol=rtol, atol=rtol * max(scale, 1e-30))
