"""Chains of dense layers: the squared gradient norms of all their neurons, from Gram matrices J J^T.

A chain's weights and slopes are all that these need; once all are known `gram_norms` can leave out every unit that is
off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.operations import Activated, Linear, Mapped, Operation, Pointwise, Reshaped
from llr_fast.linearized.tape import Entry, Tape
from llr_fast.ops.gram_norms import gram_norms, gram_norms_total
from llr_fast.precision import full_precision


def chain_of(tape: Tape, shape: Sequence[int]) -> Chain | None:
    """The network that a tape noted at x of `shape` [B, ...], up to its last hidden layer, as a chain of dense layers.

    None where it is no chain, or a hidden layer is not on the way to the last one.
    """
    layers, _, left = _followed(tape, shape)
    return layers[-1] if layers and not left and _in_a_row(layers) else None


def topped_chain_of(tape: Tape, shape: Sequence[int], samples: Samples) -> Topped | None:
    """The same where the last layer of neurons, in which the samples lie like that, is sums of what a chain ends in.

    So are the leads of a max-pooling, as in the decision of a classifier. None where it is no such network.
    """
    layers, known, left = _followed(tape, shape)
    numbers = [entry.operands for entry in left[1:]]
    if not left or numbers != [(entry.results[0],) for entry in left[:-1]] or left[0].operands[0] not in known:
        return None
    end = known[left[0].operands[0]]
    *operations, last = (entry.operation for entry in left)
    if not isinstance(last, Activated) or not _in_a_row([*layers, end]):
        return None
    if not all(isinstance(o, Reshaped) or (isinstance(o, Mapped) and o.of_sizes is not None) for o in operations):
        return None
    return Topped(end, tuple(operations), samples)


def _followed(tape: Tape, shape: Sequence[int]) -> tuple[list[Chain], dict[int, Chain], list[Entry]]:
    """The chain below each activation, that of each number, and what is left from the first operation that ends it."""
    known: dict[int, Chain] = {0: Chain(tuple(shape), tape.dtype)}
    layers: list[Chain] = []
    entries = tape.up_to_last_activation()
    for i, entry in enumerate(entries):
        below = known[entry.operands[0]]
        with entry.entered():
            above = _extended(below, entry.operation) if len(entry.operands) == 1 else None
        if above is None:
            return layers, known, entries[i:]
        known[entry.results[0]] = above
        if isinstance(entry.operation, Activated):
            layers.append(below)
    return layers, known, []


def _in_a_row(layers: list[Chain]) -> bool:
    """Whether each is on the way to the last one, one weight behind the other."""
    in_turn = [len(layer.weights) for layer in layers] == list(range(1, len(layers) + 1))
    return in_turn and all(a is b for layer in layers for a, b in zip(layer.weights, layers[-1].weights))


def _extended(chain: Chain, operation: Operation | Activated) -> Chain | None:
    """The chain with one operation more, if it still is one."""
    batch, *sample = chain.shape
    if isinstance(operation, Pointwise) and operation.is_identity and operation.shape == chain.shape:
        return chain
    if isinstance(operation, Reshaped):
        flattens = not chain.weights and operation.shape == (batch, math.prod(sample))
        return replace(chain, shape=operation.shape) if flattens or operation.shape == chain.shape else None
    if isinstance(operation, Linear) and len(sample) == 1:
        shape, weight = (batch, operation.weight.size(0)), operation.weight
        if len(chain.weights) == len(chain.slopes):
            return replace(chain, shape=shape, weights=(*chain.weights, weight))
        product = weight.to(chain.dtype) @ chain.weights[-1].to(chain.dtype)  # no activation between them
        return replace(chain, shape=shape, weights=(*chain.weights[:-1], product))
    if isinstance(operation, Activated) and len(chain.weights) == len(chain.slopes) + 1:
        return replace(chain, slopes=(*chain.slopes, operation.slope.to(chain.dtype)))
    return None


@dataclass(frozen=True)
class Chain:
    """The weights and slopes between the network's input and a tensor of `shape` [B, n]."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    weights: tuple[Tensor, ...] = ()
    slopes: tuple[Tensor, ...] = ()

    def norms(self, dtype: torch.dtype, scale: float) -> tuple[list[Tensor], list[Tensor]]:
        """For each hidden layer the gradients' l2 norms [B, n] times `scale`, computed in `dtype`, and upper bounds.

        The bounds hold the rounding of a product w G w^T, whose terms add up to (sum_j |w_j| ||g_j||)^2 however much of
        that cancels.
        """
        weights, slopes = ([t.to(dtype) for t in tensors] for tensors in (self.weights, self.slopes))
        weights[0] = weights[0] * scale
        norms: list[Tensor] = []
        bounds: list[Tensor] = []
        with full_precision:
            for i, squares in enumerate(gram_norms(weights, slopes)):
                rounding = 2 * weights[i].size(1) * torch.finfo(dtype).eps
                terms = squares if i == 0 else ((bounds[-1] * slopes[i - 1].abs()) @ weights[i].abs().t()).square()
                exact = squares.clamp_min(0).expand(self.shape[0], -1)
                norms.append(exact.sqrt())
                bounds.append((exact + rounding * terms).sqrt())
        return norms, bounds

    def bounds(self, dtype: torch.dtype, scale: float) -> list[Tensor]:
        """For each hidden layer upper bounds [B, n] of the norms times `scale`, computed in `dtype`."""
        return self.norms(dtype, scale)[1]

    def squared_norms(self) -> list[Tensor]:
        """[B, n] for each hidden layer."""
        return [part.expand(self.shape[0], -1) for part in gram_norms(self.weights, self.slopes)]

    def total_of_squared_norms(self) -> Tensor:
        """Their sum over samples, layers and neurons, a scalar."""
        total = gram_norms_total(self.weights, self.slopes)
        return total if self.slopes else self.shape[0] * total  # the first layer's norms are the same for all samples


@dataclass(frozen=True)
class Topped:
    """A chain with one more layer of neurons, the results of `operations` on its last ones, where `samples` lie."""

    chain: Chain
    operations: tuple[Operation | Activated, ...]
    samples: Samples

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Those of the chain."""
        return self.chain.weights

    def bounds(self, dtype: torch.dtype, scale: float) -> list[Tensor]:
        """As those of a chain; of the last layer by the triangle inequality, from the norms of what it adds up."""
        *bounds, last = self.chain.bounds(dtype, scale)
        sizes = Directions(last.double().unsqueeze(0))
        for operation in self.operations:
            sizes = operation.absolute(sizes)
        return [*bounds, self.samples.rows(sizes.tangents[0]).to(dtype)]
