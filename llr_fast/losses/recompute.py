"""Sums of many parts that a backward pass computes again, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.torch_modes import Modes

Part = Callable[[int], Sequence[Tensor]]


def recomputed_sum(part: Part, starts: Sequence[int], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Sums over `starts` of the tensors that `part(start)` returns.

    Neither pass holds more than one part, but for a backward pass with create_graph=True. `torch.utils.checkpoint`
    would keep the nodes of every part's graph, small allocations between the large ones that come and go, which leave
    a CPU's heap full of holes: in a step of 100 parts many times the memory of a part.

    Args:
        part: repeatable, and differentiable in `leaves` alone.
        leaves: what gradients are computed for.
    """
    modes = Modes.current(leaves[0].device.type if leaves else "cpu")
    return list(_RecomputedSum.apply(part, starts, modes, *leaves))  # type: ignore[no-untyped-call]


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without a history that the given ones depend on and that require gradients."""
    found, seen = [], set()
    nodes = [tensor.grad_fn for tensor in tensors]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
            found += [node.variable] if hasattr(node, "variable") else []
    return found


class _RecomputedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, starts: Sequence[int], modes: Modes, *leaves: Tensor) -> Any:
        ctx.part, ctx.starts, ctx.modes = part, starts, modes
        ctx.save_for_backward(*leaves)
        return tuple(summed(part(start) for start in starts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        def of_part(start: int) -> Sequence[Tensor]:
            with ctx.modes.entered():
                tensors = ctx.part(start)
            # Not every tensor depends on the leaves: norms in front of the first trained layer do not.
            differentiable = [pair for pair in zip(tensors, gradients, strict=True) if pair[0].requires_grad]
            if not differentiable:
                return [torch.zeros_like(leaf) for leaf in ctx.saved_tensors]
            found: Sequence[Tensor] = torch.autograd.grad(
                [tensor for tensor, _ in differentiable],
                ctx.saved_tensors,
                [gradient for _, gradient in differentiable],
                retain_graph=True,  # parts may have a part of their graphs in common
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
                materialize_grads=True,
            )
            return found

        return None, None, None, *summed(of_part(start) for start in ctx.starts)


def summed(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Of each of their tensors, part by part."""
    total: list[Tensor] = []
    for part in parts:
        total = [a + b for a, b in zip(total, part, strict=True)] if total else list(part)
    return total
