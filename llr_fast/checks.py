"""Checks of what users pass in; every message names the argument, what was expected and what was got."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def check_not_distributed(model: nn.Module) -> None:
    """`model` is what a loss wraps: data parallelism goes around the loss, where hooks see plain tensors.

    Raises ValueError where the model or a part of it is wrapped by DistributedDataParallel or sharded by fully_shard.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported by whoever shards
    sharded = getattr(fsdp, "FSDPModule", ())
    for path, module in model.named_modules():
        if isinstance(module, (nn.parallel.DistributedDataParallel, sharded)):
            how = "fully_shard" if isinstance(module, sharded) else "DistributedDataParallel"
            where = f"its module {path!r}" if path else "it"
            raise ValueError(
                f"model: {where} is wrapped by {how}; wrap the loss instead, {how}(Loss(model)), and nothing inside it"
            )


def check_input(model: nn.Module, x: Any) -> None:
    """`x` is a batch [B, ...] of floating-point samples, B at least 1, on the model's device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point() or x.layout != torch.strided:
        raise ValueError(f"x: expected a dense tensor of a floating-point dtype, got {x.dtype}, {x.layout}")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x: expected shape [B, ...] with at least one sample and one input, got {tuple(x.shape)}")
    device = next((p.device for p in model.parameters()), x.device)
    if device != x.device:
        raise ValueError(f"x: expected a tensor on the model's device {device}, got one on {x.device}")


def check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        bad = int(torch.isfinite(tensor).logical_not().sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite entries")


def check_direction(direction: Any, x: Tensor) -> None:
    """`direction` has the shape and device of `x` and is finite."""
    if not isinstance(direction, Tensor):
        raise TypeError(f"direction: expected a torch.Tensor, got {type(direction).__name__}")
    if direction.shape != x.shape or direction.device != x.device:
        raise ValueError(
            f"direction: expected the shape and device of x, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(direction.shape)} on {direction.device}"
        )
    if not direction.is_floating_point():
        raise ValueError(f"direction: expected a floating-point dtype, got {direction.dtype}")
    check_finite("direction", direction)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {value}")


def check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_value_dtype(dtype: Any) -> None:
    check_choice("dtype", dtype, (torch.float32, torch.float64))
