"""Checks of what users pass in; every message names the argument, what was expected and what was got."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

T = TypeVar("T")


class WithDerivatives(Tensor):
    """A tensor of a linearized evaluation, as models see it; known here so that a caller can be told from a model."""

    def plain(self) -> Tensor:
        """The value as a tensor of its own, in the dtype that the model saw."""
        raise NotImplementedError


class Loss(nn.Module):
    """A loss that wraps the network `model`."""

    model: nn.Module


_DISTRIBUTING = {  # module, which whoever uses it has imported, and class; and what goes around a loss
    "DistributedDataParallel": ("torch.nn.parallel", "DistributedDataParallel", "DistributedDataParallel"),
    "DataParallel": ("torch.nn.parallel", "DataParallel", "DistributedDataParallel"),
    "replicate": ("torch.distributed._composable.replicate", "DDP", "DistributedDataParallel"),
    "FullyShardedDataParallel": ("torch.distributed.fsdp", "FullyShardedDataParallel", "fully_shard"),
    "fully_shard": ("torch.distributed.fsdp", "FSDPModule", "fully_shard"),
}


def check_model(model: Any) -> None:
    """`model` is a network as it was written: no loss around it, and nothing of it scripted or traced."""
    for holder in ("", ".module", "._orig_mod"):  # of data parallelism, of torch.compile
        inner = getattr(model, holder[1:], None) if holder else model
        if isinstance(inner, Loss):
            raise TypeError(f"model: expected the network, got a {type(inner).__name__} of it; pass loss{holder}.model")
    if how := _compiled(model):
        raise TypeError(f"model: expected a network that runs as Python, got one that was {how}; pass the eager model")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {described(model)}")
    for path, module in model.named_modules():
        if how := _compiled(module):
            raise TypeError(
                f"model: expected a network that runs as Python, got one whose module {path!r} was {how}; "
                "pass the eager model"
            )


def _compiled(model: Any) -> str | None:
    """How its functions came to be out of sight, if they are."""
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        return "scripted or traced"
    exported = getattr(sys.modules.get("torch.export"), "ExportedProgram", ())  # imported by whoever exports
    return "exported" if isinstance(model, exported) else None  # what its module() returns does run as Python


def check_no_transform() -> None:
    interpreter = torch._C._functorch.peek_interpreter_stack()
    if interpreter is not None:
        raise RuntimeError(
            f"torch.func transforms, here {interpreter.key().name.lower()}, do not reach through the linearized "
            "evaluation: call it outside of them, and differentiate a loss by loss.backward() or torch.autograd.grad"
        )


def check_not_distributed(model: nn.Module) -> None:
    """`model` is what a loss wraps: data parallelism goes around the loss, where hooks see plain tensors.

    Raises ValueError where the model or a part of it is wrapped or sharded, or is one of the copies that DataParallel
    makes for several devices, whose parameters are no leaves.
    """
    kinds = tuple(filter(None, (getattr(sys.modules.get(p), kind, None) for p, kind, _ in _DISTRIBUTING.values())))
    for path, module in model.named_modules():
        is_copy = getattr(module, "_is_replica", False)
        if not is_copy and not isinstance(module, kinds):
            continue
        where = f"its module {path!r}" if path else "it"
        if is_copy:
            raise ValueError(
                f"model: {where} is a copy that DataParallel made for one of several devices; use "
                "DistributedDataParallel(Loss(model)) in a process for each"
            )
        for how, (package, kind, around) in _DISTRIBUTING.items():
            if isinstance(module, getattr(sys.modules.get(package), kind, ())):
                raise ValueError(
                    f"model: {where} is wrapped by {how}; wrap the loss instead, {around}(Loss(model)), and nothing "
                    "inside it"
                )


def check_input(model: nn.Module, x: Any, name: str = "x") -> None:
    """`x` is a batch [B, ...] of floating-point samples, B at least 1, on the model's device."""
    check_no_transform()
    check_tensor(name, x)
    if isinstance(x, WithDerivatives):
        raise TypeError("model: expected a network, got one that calls a loss or certificate; pass loss.model")
    if not x.is_floating_point() or x.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor of a floating-point dtype, got {x.dtype}, {x.layout}")
    if x.dim() < 2 or x.numel() == 0:
        shape = tuple(x.shape)
        raise ValueError(f"{name}: expected shape [B, ...] with at least one sample and one input, got {shape}")
    device = next((p.device for p in model.parameters()), x.device)
    if device != x.device:
        raise ValueError(f"{name}: expected a tensor on the model's device {device}, got one on {x.device}")


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {described(value)}")


def check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        bad = int(torch.isfinite(tensor).logical_not().sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite entries")


def check_direction(direction: Any, x: Tensor) -> None:
    """`direction` has the shape and device of `x` and is finite."""
    check_tensor("direction", direction)
    if direction.shape != x.shape or direction.device != x.device:
        raise ValueError(
            f"direction: expected the shape and device of x, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(direction.shape)} on {direction.device}"
        )
    if not direction.is_floating_point():
        raise ValueError(f"direction: expected a floating-point dtype, got {direction.dtype}")
    check_finite("direction", direction)


def check_generator(generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: expected a torch.Generator or None, got {described(generator)}; "
            "torch.Generator().manual_seed(seed) makes one"
        )


def check_choice(name: str, value: Any, choices: Sequence[T]) -> T:
    """Returns the choice that equals the value, which may be a number of numpy's."""
    plain = isinstance(value, (str, Real, torch.dtype)) and not isinstance(value, bool)
    if not plain or value not in choices:
        got = repr(value) if plain else described(value)
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {got}")
    return choices[choices.index(value)]


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Returns the value as a Python number; it may be one of numpy's, but no tensor."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {described(value)}")
    number: float = int(value) if isinstance(value, Integral) else float(value)
    if not low <= number <= high or abs(number) == math.inf:
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {value}")
    return number


def check_count(name: str, value: Any, low: int = 1) -> int:
    """Returns the value as a Python integer; it may be one of numpy's, but no tensor."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {described(value)}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")
    return int(value)


def check_seed(seed: int) -> None:
    """It is one of torch's."""
    check_range("seed", seed, -(2**63), 2**63 - 1)


def described(value: Any) -> str:
    """Its type, and for tensors and arrays their shape and what makes a number of one entry."""
    name = type(value).__name__
    if not isinstance(value, (Tensor, numpy.ndarray)):
        return name
    return f"{name} of shape {tuple(value.shape)}" + ("; pass its .item()" if not value.shape else "")


def check_folder(name: str, folder: Path) -> None:
    """Makes the folder where there is none; files can be written into it, or OSError is raised."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{name}: expected a folder to write into, got {folder} ({error.strerror})") from error


def check_value_dtype(dtype: Any) -> None:
    check_choice("dtype", dtype, (torch.float32, torch.float64))
