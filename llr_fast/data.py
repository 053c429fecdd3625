"""Streams over batches of data, as a DataLoader yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from llr_fast.checks import check_finite, check_input, check_model, described

PATIENCE = 2  # seconds of work before a progress bar appears


def stream(
    model: nn.Module, batches: Iterable[Any], description: str, progress: bool, argument: str = "batches"
) -> Iterator[tuple[Tensor, Any]]:
    """The inputs x [B, ...] of every batch, on the model's device, and what comes with them as labels, or None.

    Args:
        batches: tensors x, or tuples or lists that begin with x and, if they are longer, y.
        progress: whether long work shows a bar.
        argument: what the caller's user knows `batches` by.

    Raises:
        TypeError: `batches` is one tensor, whose entries would be samples and not batches, or a data set, whose
            entries are; a batch is no tensor.
        ValueError: there is no batch, or one is no input of the model.
    """
    check_model(model)
    if isinstance(batches, Tensor):
        raise TypeError(f"{argument}: expected an iterable of batches, got one tensor; pass [x] or x.split(size)")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise TypeError(
            f"{argument}: expected an iterable of batches, got the data set {described(batches)}, which has single "
            "samples; pass torch.utils.data.DataLoader(dataset, batch_size), with None where they are batches"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, dict)):
        raise TypeError(f"{argument}: expected an iterable of batches, got {described(batches)}")
    device = next((parameter.device for parameter in model.parameters()), None)
    empty = True
    for index, batch in enumerate(tqdm(batches, desc=description, unit="batch", delay=PATIENCE, disable=not progress)):
        name = f"{argument}: batch {index}: x"
        if isinstance(batch, (tuple, list)) and batch:
            x, y = batch[0], batch[1] if len(batch) > 1 else None
        else:
            x, y = batch, None
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{argument}: expected tensors, or tuples that begin with one, got {described(x)} in batch {index}"
            )
        empty = False
        x = x.to(device, non_blocking=True)
        check_input(model, x, name)
        check_finite(name, x)
        yield x, y
    if empty:
        raise ValueError(f"{argument}: expected at least one batch, got none")
