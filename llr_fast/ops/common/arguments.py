"""Checks of operator arguments: the messages name the argument, what was expected and what was got."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...norms import Statistic

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATISTICS = (Statistic.SUM_SQUARES, Statistic.SUM_ABS, Statistic.MAX_ABS)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over elements of a type are held: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(name: str, tensor: Tensor, shape: str, sizes: tuple[int | tuple[int, ...] | None, ...]) -> None:
    """Raise unless a floating-point tensor has these sizes; None allows any, a tuple any of several.

    `shape` is how the message words the expected shape.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    fits = tensor.dim() == len(sizes) and all(
        want is None or got == want or (isinstance(want, tuple) and got in want)
        for got, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {shape}, got {list(tensor.shape)}")


def check_alike(**tensors: Tensor) -> None:
    """Raise unless all tensors have the dtype and device of the first."""
    (first, model), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != model.dtype:
            raise TypeError(f"{name}: expected {model.dtype} as {first} has, got {tensor.dtype}")
        if tensor.device != model.device:
            raise ValueError(f"{name}: expected device {model.device} as {first} has, got {tensor.device}")


def check_statistic(statistic: Statistic | str) -> str:
    """Its name, for the operator's schema."""
    if statistic not in STATISTICS:
        raise ValueError(f"statistic: expected one of {', '.join(s.value for s in STATISTICS)}, got {statistic!r}")
    return Statistic(statistic).value


def refuse_forward_mode(op: str, *tensors: Tensor) -> None:
    """Raise for dual tensors: the operators have no forward-mode formula, and torch would return zeros."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(f"{op}: forward-mode differentiation is not supported; use reverse mode")
