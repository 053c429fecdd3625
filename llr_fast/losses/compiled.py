"""A step of ROLL inside a compiled function: the evaluation is one call for Dynamo, and traced by what comes behind it.

Dynamo does not follow tensors that carry a linearization; AOTAutograd records what the evaluation does when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llr_fast.ops.common.arguments import accumulation_dtype

Evaluate = Callable[[Any, Tensor, Tensor], tuple[Any, Tensor]]
_evaluate: Evaluate | None = None


def evaluated(loss: Any, schedule: Tensor, x: Tensor) -> tuple[Any, Tensor]:
    """`loss.penalised(x, *schedule)` in a trace, with the options in `schedule` as inputs of the graph."""
    from torch._dynamo.comptime import comptime

    comptime(_prepare)  # ahead of the look-up below; the compiler is not imported before somebody compiles
    assert _evaluate is not None
    return _evaluate(loss, schedule, x)


def _prepare(_: Any) -> None:
    global _evaluate
    if _evaluate is None:
        _evaluate = torch._dynamo.nonstrict_trace(_penalised)


def _penalised(loss: Any, schedule: Tensor, x: Tensor) -> tuple[Any, Tensor]:
    x = x.view([int(size) for size in x.shape])  # no variables, which not all that is traced takes: a graph for each
    lam, C, gamma = schedule.to(x.device).unbind()
    dtype = accumulation_dtype(x.dtype)
    found: tuple[Any, Tensor] = loss.penalised(x, lam.to(dtype), C.to(dtype), gamma)
    return found
