"""Training that can be interrupted after any epoch, and selection of the best epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass
class Training:
    """What a training run is made of.

    Attributes:
        model: ends in the state after the last epoch.
        optimizer: of its parameters.
        loss: of one batch.
        batches: of one epoch.
        scores: name -> what to select an epoch by, computed after each; the lowest is best.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]
    batches: Callable[[], Iterable[Any]]
    scores: Mapping[str, Callable[[], float]]


def fit(training: Training, epochs: int, path: Path, description: str) -> dict[str, dict[str, Any]]:
    """Trains, from where the file at `path` ends if it exists, and keeps the state of every epoch in that file.

    Returns:
        For each score the best epoch: "epoch" (from 1), "score", and "state", a state_dict of the model.
    """
    model, optimizer = training.model, training.optimizer
    done, best = 0, {}
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        done, best = kept["epoch"], kept["best"]
    for epoch in tqdm(range(done + 1, epochs + 1), desc=description, unit="epoch", initial=done, total=epochs):
        model.train()
        for batch in tqdm(training.batches(), desc=f"epoch {epoch}", unit="step", leave=False, delay=2):
            optimizer.zero_grad()
            training.loss(batch).backward()
            optimizer.step()
        model.eval()
        for name, score in training.scores.items():
            value = score()
            value = math.inf if math.isnan(value) else value
            if name not in best or value < best[name]["score"]:
                best[name] = {"epoch": epoch, "score": value, "state": copy.deepcopy(model.state_dict())}
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        partial = path.with_suffix(".partial")
        torch.save({**kept, "epoch": epoch, "best": best}, partial)
        partial.replace(path)  # whole, or not at all
    model.eval()
    return best
