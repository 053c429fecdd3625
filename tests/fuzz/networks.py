"""A random network and inputs for it from one integer."""

import copy
import random
from dataclasses import dataclass

import oracle
import torch
from torch import Tensor, nn

from . import blocks

MOST_NEURONS = 80
SHAPES = [(3,), (5,), (8,), (12,), (6,), (1,), (1, 4, 4), (2, 3, 3), (3, 2, 4), (1, 5, 5), (4, 2), (3, 4)]
DTYPES = {torch.float32: 45, torch.float64: 45, torch.bfloat16: 10}  # and how often
SCALES = {1.0: 80, 1e6: 10, 1e-24: 10}  # of weights, and how often


@dataclass
class Network:
    """`model` in evaluation mode with inputs x [B, ...]; weights of several layers are multiplied by `scale`."""

    seed: int
    model: nn.Module
    x: Tensor
    scale: float

    def twin(self) -> nn.Module:
        """The same function, in float64 and so that autograd can differentiate it."""
        twin = copy.deepcopy(self.model).double()
        for part, original in zip(twin.modules(), self.model.modules()):
            if isinstance(part, blocks.ChangedGain):
                part.in_place = False
            if isinstance(part, blocks.Following):
                part.fixed = original.constant(self.x).detach().double()
        return twin

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def __str__(self) -> str:
        return f"x {tuple(self.x.shape)} {self.dtype}, weights times {self.scale:g}\n{self.model}"


def build(seed: int) -> Network:
    """Always the same for the same seed; torch's and Python's generators stay as they are."""
    draw = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = draw.choice(SHAPES)
        model = _randomised(_body(draw, shape), draw).eval()
        (dtype,) = draw.choices(list(DTYPES), list(DTYPES.values()))
        # Biases of few bits on kinks of few bits, next to which all else vanishes, are on both sides of them.
        (scale,) = (1.0,) if dtype == torch.bfloat16 else draw.choices(list(SCALES), list(SCALES.values()))
        _rescale(model, scale, draw.random() < 0.5)
        if draw.random() < 0.2:
            _freeze(model, draw)
        x = torch.randn(draw.choice([1, 2, 3, 3]), *shape)
        return Network(seed, model.to(dtype), x.to(dtype), scale)


def _body(draw: random.Random, shape: tuple) -> nn.Module:
    """Parts that fit one after the other, and a hidden dense layer and an output of three classes."""
    parts, budget = [], MOST_NEURONS
    for _ in range(draw.randint(1, 5)):
        fitting = [part for part in blocks.PARTS if part.fits(shape)]
        part = draw.choice(fitting)(draw, shape)
        neurons, after = _probe(part, shape)
        if neurons <= budget and 0 < after.numel() <= 40:
            parts.append(part)
            budget, shape = budget - neurons, tuple(after.shape[1:])
    features = torch.Size(shape).numel()
    return nn.Sequential(*parts, nn.Flatten(), blocks.dense(draw, features, draw.randint(2, 5)), nn.Identity())


@torch.no_grad()
def _probe(part: nn.Module, shape: tuple) -> tuple[int, Tensor]:
    """The number of its neurons for one sample, and what it makes of zeros [1, ...]."""
    with oracle.Recorder() as recorder:
        after = part.eval()(torch.zeros(1, *shape))
    return sum(len(note.z) for note in recorder.layers), after


@torch.no_grad()
def _randomised(model: nn.Module, draw: random.Random) -> nn.Module:
    features = next(module.out_features for module in model[-2] if isinstance(module, nn.Linear))
    model[-1] = nn.Linear(features, 3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.uniform_(-1.5, 1.5)
            module.bias.normal_()
        if isinstance(module, blocks.Keeping):
            module.feature = None
    return model


@torch.no_grad()
def _rescale(model: nn.Module, scale: float, keep_biases: bool) -> None:
    """In up to eight layers where weights grow, so that gradients leave float32, and three where they shrink."""
    if scale == 1:
        return
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv1d))]
    for layer in layers[: 8 if scale > 1 else 3]:
        layer.weight.mul_(scale)
        if layer.bias is not None and not keep_biases:
            layer.bias.zero_()


def _freeze(model: nn.Module, draw: random.Random) -> None:
    parameters = list(model.parameters())
    for parameter in parameters[:-1]:
        parameter.requires_grad_(draw.random() < 0.5)
