"""A step of ROLL inside a compiled function: the evaluation is one call for Dynamo, and traced by what comes behind it.

Dynamo does not follow tensors that carry a linearization; AOTAutograd records what the evaluation does when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llr_fast.losses.clock import loss_of
from llr_fast.ops.common.arguments import accumulation_dtype

Evaluate = Callable[[str, dict[str, Tensor], Tensor, Tensor], tuple[Any, Tensor]]
_evaluate: Evaluate | None = None


class _Penalised(nn.Module):
    """A loss whose call is that of its `penalised` in a trace, with the options in `schedule`."""

    loss: Any

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, schedule: Tensor, x: Tensor) -> tuple[Any, Tensor]:
        # Sizes are no variables, which not all that is traced takes: each has a graph of its own.
        x = x.view([int(size) for size in x.shape])
        lam, C, gamma = schedule.to(x.device).unbind()
        dtype = accumulation_dtype(x.dtype)
        found: tuple[Any, Tensor] = self.loss.penalised(x, lam.to(dtype), C.to(dtype), gamma)
        return found


def evaluated(loss: nn.Module, key: str, schedule: Tensor, x: Tensor) -> tuple[Any, Tensor]:
    """`loss.penalised(x, *schedule)` in a trace; parameters, buffers and options are inputs of the graph.

    `key` is that of the loss's clock, by which the traced function knows the loss: torch 2.11 takes no modules there.
    """
    from torch._dynamo.comptime import comptime

    comptime(_prepare)  # ahead of the look-up below; the compiler is not imported before somebody compiles
    assert _evaluate is not None
    return _evaluate(key, {**dict(loss.named_parameters()), **dict(loss.named_buffers())}, schedule, x)


def _prepare(_: Any) -> None:
    global _evaluate
    if _evaluate is None:
        _evaluate = torch._dynamo.nonstrict_trace(_penalised)


def _penalised(key: str, tensors: dict[str, Tensor], schedule: Tensor, x: Tensor) -> tuple[Any, Tensor]:
    tensors = {f"loss.{name}": tensor for name, tensor in tensors.items()}
    found: tuple[Any, Tensor] = torch.func.functional_call(_Penalised(loss_of(key)), tensors, (schedule, x))
    return found
