"""Products of matrices and other sums over axes, with constants; sparse ones too."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.errors import MixedSamplesError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.blocks import in_blocks, roundings
from llr_fast.linearized.local import NoBoundError, Sums, size
from llr_fast.linearized.rules.affine import constants, moves, require_constant
from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse
from llr_fast.linearized.torch_modes import like


@rule("linear")
def _linear(function: Any, x: LinearizedTensor, weight: Tensor, bias: Tensor | None = None) -> LinearizedTensor:
    require_constant(function, weight, bias)
    samples = x.samples.kept((x.value.dim() - 1,), "linear")
    (w, b), (for_tangents, _) = constants(x, weight, bias)
    together = x.linearization.linear_with(x.value, w, for_tangents)
    if together is not None:
        value, linearization = together
        return x.replaced(value if b is None else value + b, linearization, samples)

    def sums() -> Sums:
        outputs, inputs = w.shape if w.dim() == 2 else (1, len(w))
        back = max(outputs, inputs + 1)
        return Sums((x.value,), terms=roundings(w, -1) + 1, back=back, constant=0.0 if b is None else b)

    bounded = x.evaluation.settings.bounds
    value = in_blocks(F.linear, x.value, w, -1, b) if bounded else F.linear(x.value, w, b)
    return x.replaced(value, x.linearization.linear(for_tangents), samples, sums=sums)


@rule("matmul", "mm", "bmm", "mv", "__matmul__", "__rmatmul__", torch.sparse.mm, takes_sparse=True)
def _matmul(function: Any, a: Any, *args: Any, **named: Any) -> LinearizedTensor:
    (b,) = (*args, *named.values())  # torch calls it other, mat2 or vec
    if function.__name__ == "__rmatmul__":
        a, b = b, a
    x, factor = (a, b) if isinstance(a, LinearizedTensor) else (b, a)
    if isinstance(factor, LinearizedTensor):
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    if factor.layout != torch.strided:
        return _sparse_times(factor, x) if x is b else _sparse_times(factor.t(), x.mT).mT  # type: ignore[return-value, arg-type]
    (for_value,), (for_tangents,) = constants(x, factor)
    rank, contracted = x.value.dim(), x.value.dim() - (1 if x is a or x.value.dim() == 1 else 2)
    samples = x.samples.kept((contracted,), "matmul")

    x_first = x is a

    def product(t: Tensor, by: Tensor) -> Tensor:
        return torch.matmul(t, by) if x_first else torch.matmul(by, t)

    value = product(x.value, for_value)
    # A vector takes an axis away from behind the batch axis; more axes of the constant are put in front.
    kept_rank = rank - (for_value.dim() == 1 and samples.dim < contracted)
    samples = samples if samples.count == 1 else samples.shifted(value.dim() - kept_rank)
    linearization = x.linearization.mapped(
        lambda t: product(t, like(for_tangents, t)), absolute=lambda t: product(t, size(for_tangents, t))
    )

    def sums() -> Sums:
        return Sums((x.value,), terms=x.value.size(contracted), back=for_value.numel())

    return x.replaced(value, linearization, samples, sums=sums)


def _sparse_times(matrix: Tensor, x: LinearizedTensor) -> LinearizedTensor:
    """A sparse matrix times x [n] or [n, m]: each of its entries takes a row of x along, as an edge of a graph does."""
    entries = matrix.to_sparse_coo().coalesce()
    into, out_of = entries.indices()
    weight = entries.values().view(-1, *[1] * (x.value.dim() - 1))
    messages: Any = torch.index_select(x, 0, out_of) * weight
    nothing = x.new_zeros(matrix.size(0), *x.value.shape[1:])
    return torch.index_add(nothing, 0, into, messages)  # type: ignore[return-value]


@rule("addmm", "addmv", "baddbmm")
def _addmm(function: Any, input: Any, *args: Any, beta: Any = 1, alpha: Any = 1, **named: Any) -> LinearizedTensor:
    if not isinstance(input, LinearizedTensor):
        x = next(operand for operand in (*args, *named.values()) if isinstance(operand, LinearizedTensor))
        ((input,), _) = constants(x, input)  # so that it is multiplied in the precision of values
        if x.evaluation.settings.bounds and beta not in (0, 1, -1):
            raise NoBoundError
    elif input.evaluation.settings.bounds and not any(moves(o) for o in (*args, *named.values())):
        raise NoBoundError  # of the product of two constants
    total: LinearizedTensor = torch.mul(input, beta) + torch.matmul(*args, *named.values()) * alpha
    return total


@rule("tensordot")
def _tensordot(function: Any, a: Any, b: Any, dims: Any = 2, out: None = None) -> LinearizedTensor:
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    pairs = (range(a.dim() - dims, a.dim()), range(dims)) if isinstance(dims, int) else dims
    first, second = ([d % t.dim() for d in along] for t, along in zip((a, b), pairs, strict=True))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_a = [next(letters) for _ in range(a.dim())]
    of_b = [of_a[first[second.index(d)]] if d in second else next(letters) for d in range(b.dim())]
    left = [letter for d, letter in enumerate(of_a) if d not in first]
    right = [letter for d, letter in enumerate(of_b) if d not in second]
    return torch.einsum(f"{''.join(of_a)},{''.join(of_b)}->{''.join(left + right)}", a, b)  # type: ignore[return-value]


@rule("einsum")
def _einsum(function: Any, equation: str, *operands: Any) -> LinearizedTensor:
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    where = [i for i, operand in enumerate(operands) if moves(operand)]
    where = where or [i for i, operand in enumerate(operands) if isinstance(operand, LinearizedTensor)][:1]
    x: LinearizedTensor = operands[where[0]]
    if len(where) > 1:
        raise refuse(x, function, "the product of two tensors that depend on the network's input is not linear")
    others = [None if i == where[0] else operand for i, operand in enumerate(operands)]
    for_value, for_tangents = constants(x, *others)
    inputs, output = _explicit(equation.replace(" ", ""), [operand.dim() for operand in operands])
    label = inputs[where[0]][x.samples.dim]
    frozen = [(term, t.samples) for term, t in zip(inputs, others, strict=True) if isinstance(t, LinearizedTensor)]
    apart = any(term[s.dim] != label or s.inner != x.samples.inner for term, s in frozen)
    if x.samples.count > 1 and (label not in output or apart):
        raise MixedSamplesError(f"einsum {equation!r} sums over the axis that holds the samples, or multiplies others")

    def product(t: Tensor, others: list[Any]) -> Tensor:
        terms = [t if i == where[0] else other for i, other in enumerate(others)]
        return torch.einsum(f"{','.join(inputs)}->{output}", *terms)

    samples = Samples(x.samples.count, max(output.find(label), 0), x.samples.inner)
    linearization = x.linearization.mapped(
        lambda t: product(t, [like(c, t) for c in for_tangents]),
        absolute=lambda t: product(t, [None if c is None else size(c, t) for c in for_tangents]),
    )
    value = product(x.value, for_value)

    def sums() -> Sums:
        shapes = [operand.shape for operand in operands]
        named = [pair for term, shape in zip(inputs, shapes, strict=True) for pair in zip(term, shape, strict=True)]
        lengths: dict[str, int] = {}
        for letter, length in named:
            lengths[letter] = max(length, lengths.get(letter, 1))
        products = math.prod(lengths.values())
        terms, back = (len(inputs) + math.ceil(products / max(1, t.numel())) for t in (value, x.value))
        return Sums((x.value,), terms=terms, back=back)

    return x.replaced(value, linearization, samples, sums=sums)


def _explicit(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """An einsum equation with letters for its ellipses and an output: one term for each operand, and the output."""
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    broadcast = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((n for n, term in zip(broadcast, terms, strict=True) if "..." in term), default=0)
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        output = "..." * ("..." in left) + "".join(once)
    letters = [term.replace("...", "".join(free[most - n : most])) for n, term in zip(broadcast, terms, strict=True)]
    return letters, output.replace("...", "".join(free[:most]))
