"""Sequences of several lengths: batches of them, their loss, and how a recurrent network learns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast import ROLLLoss
from llr_fast.paper.datasets import Sequences
from llr_fast.paper.scornn import ScoRNN
from llr_fast.paper.training import Training, fit

BATCH, LEARNING_RATE = 32, 1e-3
EVALUATED = 128  # sequences at once where no gradients are needed


class Variant(NamedTuple):
    """A loss: cross-entropy, with ROLL unless lam is 0."""

    lam: float = 0.0
    C: float = 0.0

    @property
    def name(self) -> str:
        return f"roll-lam{self.lam:g}-C{self.C:g}" if self.lam else "vanilla"


class Group(NamedTuple):
    """Sequences of one length T."""

    x: Tensor  # [n, T, channels]
    y: Tensor  # [n]
    which: Tensor  # [n], their indices in the data set


class Split(NamedTuple):
    train: Sequences
    validation: Sequences
    test: Sequences


def by_length(data: Sequences, chosen: Tensor | None = None) -> list[Group]:
    """The sequences with the indices `chosen` (default: all), those of one length together, short ones first."""
    chosen = torch.arange(len(data.x)) if chosen is None else chosen
    lengths = torch.tensor([len(data.x[i]) for i in chosen])
    parts = [chosen[lengths == length] for length in lengths.unique()]
    return [Group(torch.stack([data.x[i] for i in part]), data.y[part], part) for part in parts]


def split(train: Sequences, test: Sequences, held: int, seed: int) -> Split:
    """Holds out `held` random training sequences of every class for validation.

    Raises:
        ValueError: a class would have none left to train with.
    """
    smallest = int(train.y.bincount().min())
    if not 1 <= held < smallest:
        raise ValueError(f"held: expected 1 to {smallest - 1}, because a class has {smallest} sequences, got {held}")
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))
    validation = torch.cat([order[train.y[order] == label][:held] for label in train.y.unique()]).sort().values
    kept = torch.ones(len(train.y), dtype=torch.bool)
    kept[validation] = False
    return Split(_part(train, kept.nonzero().flatten()), _part(train, validation), test)


def objective(model: ScoRNN, variant: Variant, estimator: str, samples: int) -> Callable[[Sequence[Group]], Tensor]:
    """Cross-entropy and penalty, means over the sequences of all groups: a group counts as often as it has any."""
    options = {"estimator": estimator, "samples": samples}
    roll = ROLLLoss(model, lam=variant.lam, C=variant.C, gamma=100, **options) if variant.lam else None  # type: ignore[arg-type]

    def total(group: Group) -> Tensor:
        output, penalty = roll(group.x) if roll else (model(group.x), 0.0)
        return len(group.y) * (F.cross_entropy(output, group.y) + penalty)

    return lambda groups: torch.stack([total(group) for group in groups]).sum() / sum(len(g.y) for g in groups)


def train(
    model: ScoRNN, variant: Variant, data: Split, settings: Mapping[str, Any], path: Path
) -> dict[str, dict[str, Any]]:
    """Trains with the paper's optimizer.

    Returns:
        The best epochs, as `fit` does: "validation" has the lowest total loss on the validation sequences, "test" on
        the test sequences. The penalty in these scores comes from random directions whatever the estimator.
    """
    estimator, samples = settings["estimator"], settings["samples"]
    scored = objective(model, variant, "rademacher", samples)

    def score(part: Sequences) -> float:
        chunks = torch.arange(len(part.x)).split(EVALUATED)
        with torch.no_grad(), model.one_weight():
            return sum(scored(by_length(part, c)).item() * len(c) for c in chunks) / len(part.x)

    training = Training(
        model,
        torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, amsgrad=True),
        objective(model, variant, estimator, samples),
        lambda: [by_length(data.train, chosen) for chosen in torch.randperm(len(data.train.x)).split(BATCH)],
        {"validation": lambda: score(data.validation), "test": lambda: score(data.test)},
        model.one_weight,
    )
    return fit(training, settings["epochs"], path, path.stem)


def _part(data: Sequences, chosen: Tensor) -> Sequences:
    return Sequences([data.x[i] for i in chosen], data.y[chosen])
