"""The modes of torch in which an operation was asked for, to compute it in them later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Modes:
    """Whether gradients are recorded, and how autocast is set for a type of device."""

    device: str
    graph: bool
    autocast: bool
    dtype: torch.dtype

    @staticmethod
    def current(device: str) -> Modes:
        autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return Modes(device, torch.is_grad_enabled(), autocast, dtype)

    @contextlib.contextmanager
    def entered(self, graph: bool = True) -> Iterator[None]:
        """A block in these modes; without `graph` it records no gradients."""
        with (
            torch.set_grad_enabled(self.graph and graph),
            torch.autocast(self.device, dtype=self.dtype, enabled=self.autocast),
        ):
            yield
