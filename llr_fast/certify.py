"""Evaluations for certificates: values in a chosen precision, no parameter gradients, checked input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.checks import check_finite, check_input, check_model, check_value_dtype
from llr_fast.directions import Directions, axes
from llr_fast.gram import Gram, NotAChainError
from llr_fast.linearize import Evaluation, Layer, Linearization, LinearizedTensor, Values, linearize
from llr_fast.precision import full_precision

MEMORY_BUDGET = 2**29  # bytes that one evaluation's tangents may take; larger work is cut into chunks
CHUNK_BUDGET = 2**27  # bytes from which on a larger chunk is slower
ENOUGH_DIRECTIONS = 32  # to share the evaluation of the values that each chunk begins with
CACHE_BUDGET = 2**25  # bytes from which on a larger part of a batch gains nothing


def check(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """Checks a certificate's model, input [B, ...] and value dtype."""
    check_model(model)
    check_input(model, x)
    check_finite("x", x)
    check_value_dtype(dtype)


def evaluate(
    model: nn.Module,
    x: Tensor,
    linearization: Linearization,
    dtype: torch.dtype,
    statistic: str | None = None,
    graph: bool = False,
) -> list[Layer]:
    """The layers of neurons of `model` at `x`, values in `dtype`."""
    buffers = _versions_in_training(model)
    evaluation = Evaluation(model, statistic, certificate=True, declared=x.dtype, graph=graph)
    with full_precision(), torch.autocast(x.device.type, enabled=False):
        layers = linearize(model, x.detach().to(dtype), linearization, evaluation)[1]
    if moved := [name for name, version in _versions_in_training(model).items() if buffers.get(name) != version]:
        raise ValueError(f"model: expected a function that stays the same, got {moved[0]!r} updated; call model.eval()")
    for layer in layers:
        if not torch.isfinite(layer.z).all():
            raise ValueError(
                f"model: expected finite values of all neurons, got NaN or infinite ones in {layer.name!r}"
            )
    return layers


def _versions_in_training(model: nn.Module) -> dict[str, int]:
    """How often each buffer of a module in training mode was written to, as spectral normalisation does."""
    return {
        f"{path}.{name}": buffer._version
        for path, module in model.named_modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_inference()
    }


def values(model: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Layer]:
    """The layers of neurons with their values alone."""
    return evaluate(model, x, Values(), dtype)


def tangent_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The model's dtype, or float32 where that is a low precision."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    return torch.promote_types(dtype, torch.float32)


def chunk_of_directions(layers: list[Layer], dtype: torch.dtype, entries: int = 0) -> int:
    """How many directions at a time keep the tangents of the widest layer within the budget.

    `entries` is the size of a direction where they are made chunk by chunk.
    """
    return directions_at_once(max((layer.z.numel() for layer in layers), default=1) + entries, dtype)


def directions_at_once(entries: int, dtype: torch.dtype) -> int:
    """How many directions at a time stay within the budget if one has `entries` tangents in memory at a time."""
    copies = 4  # incoming and outgoing tangents, and a convolution's workspace
    size = entries * dtype.itemsize * copies
    return max(1, min(MEMORY_BUDGET // size, max(ENOUGH_DIRECTIONS, CHUNK_BUDGET // size)))


def all_axes(x: Tensor, chunk: int, dtype: torch.dtype) -> Iterator[Directions]:
    size = x[0].numel()
    return (axes(x, start, min(start + chunk, size), dtype) for start in range(0, size, chunk))


@torch.no_grad()
def statistics(
    model: nn.Module, x: Tensor, chunks: Iterable[Directions], statistic: str, dtype: torch.dtype
) -> list[Tensor]:
    """For each layer the statistic [B, n] over the directions of all chunks."""
    combine = torch.maximum if statistic == "max_abs" else torch.add
    total: list[Tensor] = []
    for chunk in chunks:
        found = [layer.statistic for layer in evaluate(model, x, chunk, dtype, statistic)]
        total = [combine(a, b) for a, b in zip(total, found, strict=True)] if total else found
    return total


def chain(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Gram | None:
    """The model as a chain of dense layers with its slopes at x, if it is one."""
    gram = Gram.start(x, tangent_dtype(model, x))
    try:
        evaluate(model, x, gram, dtype)
    except NotAChainError:
        return None
    return gram.last() if gram.is_chain() else None


def gradient_norms(
    model: nn.Module, x: Tensor, layers: list[Layer], q: float, dtype: torch.dtype, gram: Gram | None
) -> list[Tensor]:
    """For each of the layers found at x the exact l_q norms [B, n] of its neurons' gradients.

    From the Gram matrices of a chain where they are given, which is for q = 2, else from all input axes.
    """
    if gram is not None:
        with full_precision():
            return [squares.clamp_min(0).sqrt() for squares in gram.squared_norms()]
    tangents = tangent_dtype(model, x)
    chunks = all_axes(x, chunk_of_directions(layers, tangents, x[0].numel()), tangents)
    return [norms.from_statistic(s, q) for s in statistics(model, x, chunks, norms.statistic_of(q), dtype)]


def samples_at_once(model: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """How many samples to work on at a time: their values and tangents stay within both budgets."""
    if x.size(0) == 1:
        return 1
    count = _Count(model, certificate=True, declared=x.dtype)
    linearize(model, x.detach().to(dtype), Values(), count)
    bytes_per_neuron = 64  # value, piece, slope, tangent and bound of each neuron, and what sorting takes
    samples = min(MEMORY_BUDGET, CACHE_BUDGET) * x.size(0) // (max(1, count.neurons) * bytes_per_neuron)
    return max(1, samples)


class _Count(Evaluation):
    """Counts the neurons of all samples and keeps nothing of them."""

    neurons = 0

    def report(self, function: str, x: LinearizedTensor, *_: Any) -> Linearization:
        self.neurons += x.value.numel()
        linearization: Linearization = x.linearization
        return linearization


class Backward:
    """Gradients of chosen neurons by back-propagation through the linearization.

    A tangent is linear in the direction, so its derivative by the direction is the neuron's gradient, whatever the
    direction: the backward passes run through the frozen pattern and need no graph of the values.
    """

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            zero = torch.zeros(1, *x.shape, dtype=tangent_dtype(model, x), device=x.device)
            self.direction = zero.requires_grad_()
            self.layers = evaluate(model, x.clone(), Directions(self.direction), dtype, graph=True)
            self.tangents = [layer.statistic[0] for layer in self.layers]

    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradient(self, layer: Tensor, neuron: Tensor) -> Tensor:
        """[B, ...]: for each sample the gradient of its neuron `neuron` [B] in layer `layer` [B], none where -1."""
        total = self.direction.sum() * 0
        for index in layer.unique().tolist():
            rows = (layer == index).nonzero().squeeze(1)
            if index >= 0:
                total = total + self.tangents[index][rows, neuron[rows]].sum()
        with full_precision(), torch.autocast(total.device.type, enabled=False):  # which reach into backward passes too
            return torch.autograd.grad(total, self.direction, retain_graph=True)[0][0]
