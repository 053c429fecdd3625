"""The networks that learn MNIST, and how each variant of the loss trains them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from llr_fast import ROLLLoss
from llr_fast.paper.datasets import Images
from llr_fast.paper.training import Training, fit

MEAN, STD = 0.1307, 0.3081
BATCH = 64
LAZY = 8  # steps of one penalty, where it is lazy


class Variant(NamedTuple):
    """A loss: cross-entropy, with ROLL unless C is None."""

    C: float | None = None
    lam: float = 2.0
    gamma: float = 100.0
    estimator: str = "exact"
    samples: int = 1
    every: int = 1

    @property
    def name(self) -> str:
        if self.C is None:
            return "vanilla"
        every = f"-every{self.every}" if self.every > 1 else ""
        return f"C{self.C:g}-lam{self.lam:g}-gamma{self.gamma:g}-{self.estimator}{every}"

    def loss(self, model: nn.Module) -> ROLLLoss | None:
        return None if self.C is None else ROLLLoss(model, **self._asdict())


class Split(NamedTuple):
    """Images with labels."""

    train: Subset[tuple[Tensor, ...]]
    validation: Subset[tuple[Tensor, ...]]
    test: TensorDataset


def split(images: Images, mean: float = 0.0, std: float = 1.0, flat: bool = False) -> Split:
    """The paper's: 55,000 to train, 5,000 to validate, the first of a shuffle with seed 1; of fewer the same parts."""
    train, test = (
        TensorDataset((x.flatten(1) if flat else x.unsqueeze(1)).sub(mean).div(std), y)
        for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y))
    )
    order = numpy.arange(len(train))
    numpy.random.RandomState(1).shuffle(order)
    held = len(train) // 12
    return Split(Subset(train, order[held:].tolist()), Subset(train, order[:held].tolist()), test)


def dense(pixels: int) -> nn.Sequential:
    """The paper's network for MNIST: four hidden layers of 300."""
    sizes = (pixels, 300, 300, 300, 300)
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(300, 10))


def convolutional(pixels: int) -> nn.Sequential:
    """A small one for square images: two convolutions of stride 2 and a hidden dense layer."""
    side = round(pixels**0.5)
    for _ in range(2):
        side = (side + 1) // 2
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * side**2, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, roll: ROLLLoss | None, data: Split, epochs: int, path: Path) -> int:
    """Trains with the paper's optimizer and leaves the model in its best epoch, which is returned.

    The best epoch is that of the lowest total loss on the validation images.

    Args:
        model: what is trained.
        roll: around the model; None for cross-entropy alone.
        path: where the epochs are kept.
    """

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        output, penalty = roll(batch[0]) if roll else (model(batch[0]), 0.0)
        return F.cross_entropy(output, batch[1]) + penalty

    def batches() -> DataLoader[tuple[Tensor, ...]]:
        if roll:
            roll.steps = 0  # in every epoch, after which a run may be resumed
        return _batches(data.train, BATCH, shuffle=True)

    @torch.no_grad()
    def validation() -> float:
        total = sum(loss(batch).item() * len(batch[1]) for batch in _batches(data.validation, 500))
        return total / len(data.validation)

    training = Training(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5, nesterov=True),
        loss,
        batches,
        {"validation": validation},
    )
    best = fit(training, epochs, path, path.stem)["validation"]
    model.load_state_dict(best["state"])
    return int(best["epoch"])


@torch.no_grad()
def accuracy(model: nn.Module, images: TensorDataset) -> float:
    """From 0 to 1."""
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in _batches(images, 1000))
    return correct / len(images)


def _batches(
    data: Subset[tuple[Tensor, ...]] | TensorDataset, size: int, shuffle: bool = False
) -> DataLoader[tuple[Tensor, ...]]:
    """Each read as a whole: to collect images one by one takes longer than a step of these networks."""
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(order, size, drop_last=False))
