"""Inputs of roll_activation and what it should give, by autograd of torch's own activations."""

import math
from collections.abc import Callable
from functools import partial

import torch
from ops import operator_cases as oc
from torch import Tensor
from torch.nn import functional as F

from llr_fast.dispatch import backend
from llr_fast.ops.roll_activation import roll_activation


def bent(z: Tensor) -> Tensor:
    """A slope below the lower of two kinks, of which none is at 0."""
    return (F.leaky_relu(z + 0.3, 0.2) - 0.3).clamp(max=0.8)


def shifted_prelu(z: Tensor, weight: Tensor) -> Tensor:
    return F.prelu(z - 0.5, weight) + 0.5


# name -> (torch's function, the arguments that say the same)
ACTIVATIONS: dict[str, tuple[Callable, dict]] = {
    "relu": (F.relu, {}),
    "relu6": (F.relu6, {"upper": 6.0}),
    "hardtanh": (F.hardtanh, {"lower": -1.0, "upper": 1.0}),
    "hardtanh, kinks at 0.1 and 0.7": (partial(F.hardtanh, min_val=0.1, max_val=0.7), {"lower": 0.1, "upper": 0.7}),
    "leaky_relu": (partial(F.leaky_relu, negative_slope=0.1), {"below": 0.1}),
    "leaky_relu, falling": (partial(F.leaky_relu, negative_slope=-0.5), {"below": -0.5}),
    "clamp from below": (partial(torch.clamp, min=-0.5), {"lower": -0.5}),
    "clamp from above": (partial(torch.clamp, max=0.7), {"lower": -math.inf, "upper": 0.7}),
    "bent": (bent, {"lower": -0.3, "upper": 0.8, "below": 0.2}),
    "prelu": (F.prelu, {}),
    "prelu of channels": (F.prelu, {}),
    "prelu of channels, kink at 0.5": (shifted_prelu, {"lower": 0.5}),
}
SOME = ("relu", "bent", "prelu of channels")
# Odd, unit and empty sizes, several blocks, channels of several blocks, and channels that end within a block.
SHAPES = [(5,), (3, 7), (1, 1), (4, 3, 5, 7), (2, 5, 3, 300), (1, 2, 35, 37), (0, 3, 2), (2, 3, 0), (2, 0)]
# Every activation of some shapes, and some activations of every shape, with one direction and with several in turn.
CASES = [
    (name, shape, (1, 3)[(i + j) % 2])
    for i, name in enumerate(ACTIVATIONS)
    for j, shape in enumerate(SHAPES)
    if shape in SHAPES[1:5:2] or name in SOME
]
MIXED = [
    (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float64),
]  # fmt: skip


def kinks(name: str) -> list[float]:
    named = ACTIVATIONS[name][1]
    return [k for k in (named.get("lower", 0.0), named.get("upper", math.inf)) if math.isfinite(k)]


def inputs(name, shape, directions, dtypes=(torch.float32, torch.float32), device="cpu", channels_last=False):
    """z, tangents and, of PReLU, the slope; no z lies where the activation or the hinge of its distance bends."""
    z = 2 * torch.randn(shape, dtype=torch.float64).to(dtypes[0])
    for kink in kinks(name):
        distance = (z.double() - kink).abs()
        z[(distance < 1e-2) | ((distance - 1).abs() < 1e-2)] = 1.75
    z[(z.double() - sum(kinks(name)) / len(kinks(name))).abs() < 1e-2] = 1.75
    tangents = torch.randn(directions, *shape, dtype=torch.float64).to(dtypes[1])
    if channels_last:
        z = z.contiguous(memory_format=torch.channels_last)
        tangents = torch.stack([t.contiguous(memory_format=torch.channels_last) for t in tangents])
    found = [z, tangents]
    if "prelu" in name:
        found.append(torch.rand(shape[1] if "channels" in name and len(shape) > 1 else 1).to(dtypes[0]))
    return tuple(t.to(device) for t in found)


def oracle(name: str, z: Tensor, tangents: Tensor, *below: Tensor, store: bool = True) -> tuple[Tensor, ...]:
    z = z if z.requires_grad else z.clone().requires_grad_()
    out = ACTIVATIONS[name][0](z, *below) if z.numel() else z * (1 + sum(b.sum() for b in below))
    (slope,) = torch.autograd.grad(out.sum(), z, create_graph=True)
    hinges = torch.stack(
        [F.relu(1 - F.l1_loss(z, z.new_full((), k).expand_as(z), reduction="none")) for k in kinks(name)]
    )
    sums = torch.stack([torch.einsum("ki,ki->", *[tangents.flatten(1)] * 2), hinges.amax(0).sum()])
    return out, tangents * slope if store else tangents.new_empty(0), sums


def ours(name: str, z: Tensor, tangents: Tensor, *below: Tensor, store: bool = True) -> tuple[Tensor, ...]:
    named = ACTIVATIONS[name][1] | ({"below": below[0]} if below else {})
    return roll_activation(z, tangents, **named, store=store)


def arguments(name: str, z: Tensor, tangents: Tensor, *below: Tensor, store: bool = True) -> tuple:
    """What the operator itself takes."""
    named = {"lower": 0.0, "upper": math.inf, "below": 0.0} | ACTIVATIONS[name][1]
    inner = z[0, 0].numel() if z.dim() > 1 and len(z) and z.size(1) else 1
    kinks = named["lower"], named["upper"]
    return z.flatten(), tangents.flatten(1), None, below[0] if below else None, named["below"], *kinks, inner, store


def backward_arguments(args: tuple, d_out: Tensor, d_masked: Tensor, d_sums: Tensor, code: Tensor) -> tuple:
    """What its gradient takes, where the operator took `args`."""
    _, tangents, factor, slope, below, _, _, inner, store = args
    return d_out, d_masked if store else None, d_sums, tangents, code, factor, slope, below, inner


def expected(name: str, tensors: tuple[Tensor, ...], store: bool = True) -> list[Tensor]:
    """The outputs, and the gradients of their weighted sum, of the oracle in float64 on the CPU."""
    wide = tuple(t.double().cpu() for t in tensors)
    return oc.outputs_and_gradients(partial(oracle, name, store=store), wide, ())


def computed(name: str, tensors: tuple[Tensor, ...], by: str, *wanted: bool, store: bool = True) -> list[Tensor]:
    with backend(by):
        return oc.outputs_and_gradients(partial(ours, name, store=store), tensors, (), wanted or (True, True, True))


def assert_close(found: list[Tensor], wanted: list[Tensor], *dtypes: torch.dtype) -> None:
    """All to the coarser of two types, and the sums to that in which they are held."""
    oc.assert_close(found, wanted, max(dtypes, key=oc.TOLERANCE.__getitem__))
    for a, b in zip(found[2], wanted[2], strict=True):
        torch.testing.assert_close(a.double().cpu(), b.double().cpu(), rtol=oc.TOLERANCE[found[2].dtype], atol=1e-9)


# What is to be had from z = -inf, -2, -0.25, 0, 0.25, 1, 2, inf and NaN with tangents of 1 by kinks at 0 and 1, with a
# slope of 0.5 below: out, masked, and what the loss has to sum up.
SPECIAL = torch.tensor([-math.inf, -2, -0.25, 0, 0.25, 1, 2, math.inf, math.nan])
SPECIAL_OUT = torch.tensor([-math.inf, -1, -0.125, 0, 0.25, 1, 1, 1, math.nan])
SPECIAL_MASKED = torch.tensor([0.5, 0.5, 0.5, 0.5, 1, 1, 0, 0, 0.5])
SPECIAL_HINGES = torch.tensor([math.nan, 0, 0.75, 1, 0.75, 1, 0, math.nan, math.nan])
# The derivative of the hinge, which is 0 on a kink.
SPECIAL_SIDES = torch.tensor([0, 0, 1.0, 0, -1, 0, 0, 0, 0])


def assert_kinks_are_not_rounded(device: str = "cpu") -> None:
    """0.8 lies below the bfloat16 that is nearest to it, and above the nearest float16."""
    for dtype, slope in ((torch.bfloat16, 0), (torch.float16, 1)):
        z = torch.tensor([0.8], dtype=dtype, device=device)
        assert roll_activation(z, torch.ones_like(z)[None], upper=0.8)[1].item() == slope
