"""Training that can be interrupted after any epoch, and selection of the best epoch."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
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
        context: entered for the forward and backward pass of every step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]
    batches: Callable[[], Iterable[Any]]
    scores: Mapping[str, Callable[[], float]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def fit(
    training: Training, epochs: int, path: Path | None, description: str, every: int = 1
) -> dict[str, dict[str, Any]]:
    """Trains, from where the file at `path` ends if it exists.

    Args:
        training: what to train.
        epochs: in all.
        path: of the file that keeps the latest state; None: an interruption loses everything.
        description: of the progress bar.
        every: number of epochs between two states that are kept; the last is kept in any case.

    Returns:
        For each score the best epoch: "epoch" (from 1), "score", and "state", a state_dict of the model.

    Raises:
        ValueError: the file is damaged.
    """
    model, optimizer = training.model, training.optimizer
    done, best = 0, {}
    if path and path.exists():
        kept = state(path)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        done, best = kept["epoch"], kept["best"]
    for epoch in tqdm(range(done + 1, epochs + 1), desc=description, unit="epoch", initial=done, total=epochs):
        model.train()
        for batch in tqdm(training.batches(), desc=f"epoch {epoch}", unit="step", leave=False, delay=2):
            optimizer.zero_grad()
            with training.context():
                training.loss(batch).backward()
            optimizer.step()
        model.eval()
        for name, score in training.scores.items():
            value = score()
            value = math.inf if math.isnan(value) else value
            if name not in best or value < best[name]["score"]:
                best[name] = {"epoch": epoch, "score": value, "state": copy.deepcopy(model.state_dict())}
        if path and (epoch % every == 0 or epoch == epochs):
            _keep(path, model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch, best=best)
    model.eval()
    return best


def state(path: Path) -> dict[str, Any]:
    """What `fit` kept; raises ValueError where the file is damaged."""
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        return kept
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected the state of a training run, got a damaged file; delete it") from error


def _keep(path: Path, **state: Any) -> None:
    partial = path.with_suffix(".partial")
    torch.save({**state, "random": torch.get_rng_state()}, partial)
    partial.replace(path)  # whole, or not at all
