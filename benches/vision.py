"""Networks in the manner of well-known ones, for images of 128 pixels and 10 classes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation=nn.ReLU) -> nn.Sequential:
    """A convolution, a batch-norm, and an activation unless it is None."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


def head(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10)]


class Residual(nn.Module):
    """inside(x) + shortcut(x), and what comes after the sum."""

    def __init__(self, inside: nn.Module, shortcut: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.inside, self.shortcut, self.after = inside, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inside(x) + self.shortcut(x))


class Concatenated(nn.Module):
    """The results of several branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def resnet50() -> nn.Module:
    layers, inputs = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(count):
            stride = 2 if stage and not block else 1
            bottleneck = nn.Sequential(
                conv(inputs, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1, activation=None)
            )
            shortcut = nn.Identity() if block else conv(inputs, 4 * width, 1, stride, activation=None)
            layers.append(Residual(bottleneck, shortcut, nn.ReLU()))
            inputs = 4 * width
    return nn.Sequential(*layers, *head(inputs))


def vgg11() -> nn.Module:
    layers, inputs = [], 3
    for width, count in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(count):
            layers.append(conv(inputs, width, 3))
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 16, 1024), nn.ReLU(), nn.Linear(1024, 10))


def mobilenet_v2() -> nn.Module:
    layers, inputs = [conv(3, 32, 3, 2, activation=nn.ReLU6)], 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, count, first_stride in stages:
        for block in range(count):
            hidden, stride = inputs * expansion, 1 if block else first_stride
            inside = nn.Sequential(
                *([conv(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 else []),
                conv(hidden, hidden, 3, stride, hidden, nn.ReLU6),
                conv(hidden, width, 1, activation=None),
            )
            layers.append(Residual(inside, nn.Identity(), nn.Identity()) if block else inside)
            inputs = width
    return nn.Sequential(*layers, conv(320, 1280, 1, activation=nn.ReLU6), *head(1280))


def densenet121() -> nn.Module:
    """Batch-norm and activation come before each convolution."""
    layers, width, growth = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64, 32
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            width //= 2
            layers += [nn.BatchNorm2d(2 * width), nn.ReLU(), nn.Conv2d(2 * width, width, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
        for _ in range(count):
            new = nn.Sequential(
                *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4 * growth, 1, bias=False)),
                *(nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)),
            )
            layers.append(Concatenated(nn.Identity(), new))
            width += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *head(width))


def googlenet() -> nn.Module:
    def inception(inputs: int, *widths: int) -> nn.Module:
        one, before_three, three, before_five, five, pooled = widths
        return Concatenated(
            conv(inputs, one, 1),
            nn.Sequential(conv(inputs, before_three, 1), conv(before_three, three, 3)),
            nn.Sequential(conv(inputs, before_five, 1), conv(before_five, five, 3)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(inputs, pooled, 1)),
        )

    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    third = [inception(192, 64, 96, 128, 16, 32, 32), inception(256, 128, 128, 192, 32, 96, 64)]
    widths = ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64))
    widths += ((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128))
    sizes = [480, *(one + three + five + pooled for one, _, three, _, five, pooled in widths)]
    fourth = [inception(inputs, *each) for (inputs, _), each in zip(pairwise(sizes), widths, strict=True)]
    fifth = [inception(832, 256, 160, 320, 32, 128, 128), inception(832, 384, 192, 384, 48, 128, 128)]
    stem = [conv(3, 64, 7, 2), pool(), conv(64, 64, 1), conv(64, 192, 3), pool()]
    return nn.Sequential(*stem, *third, pool(), *fourth, pool(), *fifth, *head(1024))


NETWORKS = {
    "ResNet-50": resnet50,
    "VGG-11": vgg11,
    "MobileNetV2": mobilenet_v2,
    "DenseNet-121": densenet121,
    "GoogLeNet": googlenet,
}
