"""The modes of torch: those in which an operation was asked for, to compute it in them later, and tracing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def as_written(function: F) -> F:
    """The function for compiled callers: Dynamo does not trace tensors that carry a linearization.

    Outside of a trace the compiler is not even imported.
    """
    untraced = torch._compile._disable_dynamo(function)
    name = function.__qualname__.removesuffix(".forward")

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        refuse_export(name)
        torch._dynamo.graph_break(
            f"{name} runs as written, as its loops depend on data; compile without fullgraph=True"
        )
        return untraced(*args, **kwargs)

    return run  # type: ignore[return-value]


def refuse_export(name: str) -> None:
    """Raises where a trace is made to be saved."""
    # The flag itself: Dynamo of torch 2.11 takes is_exporting() for true in every trace.
    if torch.compiler._is_exporting_flag:
        raise RuntimeError(f"{name} is no part of an exported program: export the model, which a loss has in .model")


def like(constant: Any, tangents: Tensor) -> Any:
    """A constant in the dtype of the tangents that it meets, of which a tape has several; autocast does its own."""
    if isinstance(constant, Tensor) and constant.is_complex():
        return constant.to(tangents.dtype.to_complex())
    if not isinstance(constant, Tensor) or not constant.is_floating_point() or constant.dtype == tangents.dtype:
        return constant
    return constant if torch.is_autocast_enabled(tangents.device.type) else constant.to(tangents.dtype)


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


def checkpoint() -> object:
    """What tells the checkpoint apart that is running, by where saved tensors go; None outside of all."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def is_traced() -> bool:
    """Whether operations are recorded for a graph, on tensors without numbers."""
    keys = torch._C._TorchDispatchModeKey
    modes = (torch._C._get_dispatch_mode(key) for key in (keys.FAKE, keys.FUNCTIONAL, keys.PROXY))
    return torch.compiler.is_compiling() or any(mode is not None for mode in modes)
