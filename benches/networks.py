"""The networks that the benches run. Activations are nn.ReLU modules, out of place and called once each."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*dims: int) -> nn.Sequential:
    """A chain of dense layers with ReLU between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(dims):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def convnet(channels: int, size: int, width: int = 8) -> nn.Sequential:
    """Two convolutions on images [channels, size, size], and a dense layer on the mean of each map."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(size),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(size: int, width: int = 64) -> tuple[nn.Module, Tensor]:
    """ResNet-18 in evaluation mode, its max-pooling replaced by average pooling as in the paper, and an image.

    Its running statistics are those of random images, so that activations keep their scale through all layers.
    """
    stem = [nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(3, 2, 1)]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks: list[nn.Module] = []
    for stage, (inputs, outputs) in enumerate(pairwise(widths)):
        blocks += [BasicBlock(inputs, outputs, 1 if stage == 0 else 2), BasicBlock(outputs, outputs, 1)]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    with torch.no_grad():
        for _ in range(3):
            model.train()(2 * torch.rand(4, 3, size, size))
    smooth = F.avg_pool2d(F.pad(torch.rand(1, 3, size, size), (2,) * 4, mode="reflect"), 5, 1)
    return model.eval(), 2 * smooth
