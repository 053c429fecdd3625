"""Evaluations for certificates: values in a chosen precision, no parameter gradients, checked input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llr_fast.certificates import agreement, generators
from llr_fast.certificates.agreement import model_dtype
from llr_fast.checks import check_finite, check_input, check_model, check_value_dtype
from llr_fast.linearized import layers
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.evaluation import Evaluation, Settings
from llr_fast.linearized.layers import Activation, Layer
from llr_fast.linearized.linearization import Linearization, NoLinearization
from llr_fast.linearized.linearize import linearize
from llr_fast.outputs import network_in
from llr_fast.precision import full_precision

MEMORY_BUDGET = 2**29  # bytes that the tangents of an evaluation's neurons may take; larger work is cut into chunks
CHUNK_BUDGET = 2**27  # bytes from which on a larger chunk is slower
ENOUGH_DIRECTIONS = 32  # to share the evaluation of the values that each chunk begins with
CACHE_BUDGET = 2**25  # bytes from which on a larger part of a batch gains nothing
_PART_OF_FREE = 8  # of a GPU's free memory; what the estimates leave out, the caller's own work and libraries need some


def check(model: nn.Module, x: Tensor, dtype: torch.dtype, name: str = "x") -> None:
    """Checks a certificate's model, value dtype and input [B, ...], which its user knows as `name`."""
    check_model(model)
    check_input(model, x, name)
    check_finite(name, x)
    check_value_dtype(dtype)


def layers_of(
    model: nn.Module,
    x: Tensor,
    linearization: Linearization,
    dtype: torch.dtype,
    compared: bool = True,
    rounding: Callable[[Tensor, Linearization], Linearization] | None = None,
    bounds: bool = False,
) -> list[Layer]:
    """The layers of neurons of `model` at `x`, values in `dtype`; with their tangents along directions.

    With `compared`, which costs a forward pass, only if the model is a function of x: it draws no random numbers, and
    as it is, in its own precision, gives the same output up to rounding.
    """
    buffers = _versions_in_training(model)
    collector = layers.tangents if isinstance(linearization, Directions) else layers.values
    settings = Settings(certificate=True, declared=model_dtype(model, x), rounding=rounding, bounds=bounds)
    with full_precision, torch.autocast(x.device.type, enabled=False):
        before = generators.states(x.device)
        output, found = linearize(x.detach().to(dtype), linearization, Evaluation(model, collector, settings))
        if moved := [name for name, version in _versions_in_training(model).items() if buffers.get(name) != version]:
            raise ValueError(
                f"model: expected a function that stays the same, got {moved[0]!r} updated; call model.eval()"
            )
        _check_finite(found)
        if compared:
            plain = agreement.plain_output(model, x)
            generators.check(model, x, before)
            agreement.check(model, x, dtype, output, plain)
    return found


def _check_finite(found: list[Layer]) -> None:
    # A sum takes a fraction of the time, and is finite only where all terms are.
    if not found or torch.stack([layer.z.sum() for layer in found]).isfinite().all():
        return
    for layer in found:
        if not layer.z.isfinite().all():
            raise ValueError(
                f"model: expected finite values of all neurons, got NaN or infinite ones in {layer.name!r}"
            )


def _versions_in_training(model: nn.Module) -> dict[str, int]:
    """How often each buffer of a module in training mode was written to, as spectral normalisation does."""
    return {
        f"{path}.{name}": buffer._version
        for path, module in network_in(model).named_modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_inference()
    }


def values_of(model: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Layer]:
    """The layers of neurons with their values alone."""
    return layers_of(model, x, NoLinearization(), dtype)


def tangent_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The model's dtype, or float32 where that is a low precision."""
    return torch.promote_types(model_dtype(model, x), torch.float32)


@dataclass(frozen=True)
class Budget:
    """Bytes that the tangents of an evaluation may take.

    Attributes:
        memory: in all.
        chunk: of directions at a time, from which on more gain nothing.
        part: of samples at a time, likewise.
    """

    memory: int
    chunk: int
    part: int

    @staticmethod
    def of(device: torch.device) -> Budget:
        """On a CPU what its caches make best, on a GPU a part of the free memory, as few large calls are fastest there.

        A power of 2, so that it is mostly the same in the next run, and with it the order of sums.
        """
        if device.type != "cuda":
            return Budget(MEMORY_BUDGET, CHUNK_BUDGET, CACHE_BUDGET)
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        memory = 1 << max(1, free // _PART_OF_FREE).bit_length() - 1
        return Budget(memory, memory, memory)


def directions_at_once(entries: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many directions at a time stay within the budget if one has `entries` tangents in memory at a time."""
    budget, size = Budget.of(device), entries * _bytes_of_tangent(dtype)
    return max(1, min(budget.memory // size, max(ENOUGH_DIRECTIONS, budget.chunk // size)))


def gradients_at_once(entries: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many neurons of a sample to back-propagate at a time if that keeps `entries` tangents for each."""
    return max(1, Budget.of(device).chunk // (max(1, entries) * _bytes_of_tangent(dtype)))


def _bytes_of_tangent(dtype: torch.dtype) -> int:
    """Incoming and outgoing tangents; float64 convolutions unfold their input."""
    return dtype.itemsize * (4 if dtype.itemsize < 8 else 10)


def samples_at_once(model: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """How many samples to work on at a time: their values and tangents stay within both budgets."""
    if x.size(0) == 1:
        return 1
    try:
        neurons = _neurons(model, x[:1], dtype)
    except ValueError:  # of a model that takes no other batch than this
        neurons = _neurons(model, x, dtype) // x.size(0)
    bytes_per_neuron = 96  # value, piece, slope, tangents in two precisions and bounds, and what sorting takes
    budget = Budget.of(x.device)
    return max(1, min(budget.memory, budget.part) // (max(1, neurons) * bytes_per_neuron))


def _neurons(model: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    counted = Evaluation(model, _count, Settings(certificate=True, declared=model_dtype(model, x)))
    return sum(linearize(x.detach().to(dtype), NoLinearization(), counted)[1])


def _count(activation: Activation, linearization: Linearization) -> tuple[Linearization, int]:
    return linearization, activation.z.numel()
