"""Recurrent layers whose activation is ReLU, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.rules.affine import require_constant
from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


@rule("rnn_relu_cell")
def _cell(
    function: Any,
    input: Any,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> LinearizedTensor:
    return F.relu(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))  # type: ignore[return-value]


@rule("rnn_relu")
def _rnn(
    function: Any,
    input: Any,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Of a tensor [time, batch, features], or [batch, time, features], as torch.nn.RNN calls it."""
    x = input if isinstance(input, LinearizedTensor) else hx
    if not isinstance(params, Sequence):
        raise refuse(x, function, "packed sequences are not supported")
    require_constant(function, *params)
    outputs: Any = input.transpose(0, 1) if batch_first and input.dim() == 3 else input
    each, directions, last = 4 if has_biases else 2, 2 if bidirectional else 1, []
    for layer in range(num_layers):
        found = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = params[number * each : (number + 1) * each]
            steps = list(outputs.unbind(0))
            states = _states(steps[::-1] if direction else steps, hx[number], weights)
            last.append(states[-1])
            found.append(torch.stack(states[::-1] if direction else states))
        outputs = torch.cat(found, -1)
        if dropout and layer < num_layers - 1:
            outputs = F.dropout(outputs, dropout, train)
    return (outputs.transpose(0, 1) if batch_first and input.dim() == 3 else outputs), torch.stack(last)


def _states(steps: Sequence[Any], state: Any, weights: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for step in steps:
        state = _cell(None, step, state, *weights)
        found.append(state)
    return found
