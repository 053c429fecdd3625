"""Streams over batches of data, as a DataLoader yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

PATIENCE = 2  # seconds of work before a progress bar appears


def stream(
    model: nn.Module, batches: Iterable[Any], description: str, progress: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The inputs x [B, ...] and the labels, if there are any, of every batch, on the model's device.

    Args:
        batches: tensors x, or tuples or lists that begin with x and, if they are longer, y.
        progress: whether long work shows a bar.

    Raises:
        TypeError: `batches` is one tensor, whose entries would be samples and not batches; a batch is no tensor.
        ValueError: there is no batch.
    """
    if isinstance(batches, Tensor):
        raise TypeError("batches: expected an iterable of batches, got one tensor; pass [x] or x.split(size)")
    device = next((parameter.device for parameter in model.parameters()), None)
    empty = True
    for batch in tqdm(batches, desc=description, unit="batch", delay=PATIENCE, disable=not progress):
        x, y = (batch[0], batch[1] if len(batch) > 1 else None) if isinstance(batch, (tuple, list)) else (batch, None)
        if not isinstance(x, Tensor):
            raise TypeError(f"batches: expected tensors, or tuples that begin with one, got {type(x).__name__}")
        empty = False
        yield x.to(device, non_blocking=True), y if y is None else y.to(device, non_blocking=True)
    if empty:
        raise ValueError("batches: expected at least one batch, got none")
