"""Runs a network on a linearized tensor."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map_only

from llr_fast.linearized import rules  # noqa: F401  (fills the table)
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.tensor import LinearizedTensor
from llr_fast.linearized.torch_modes import is_traced
from llr_fast.process import uncompiled

T = TypeVar("T")


def linearize(x: Tensor, linearization: Linearization, evaluation: Evaluation[T]) -> tuple[Any, list[T]]:
    """Evaluates the model at `x` [B, ...]; returns its output (plain tensors) and what is kept of its neurons.

    Also where the model raises, it holds no linearized tensor afterwards.
    """
    root = LinearizedTensor(x, linearization, Samples(x.size(0)), evaluation)
    with contextlib.nullcontext() if is_traced() else uncompiled:
        try:
            output = evaluation.model(root)
            tree_map_only(LinearizedTensor, LinearizedTensor.check_no_function, output)
            evaluation.check_watched()
            output = tree_map_only(LinearizedTensor, lambda t: t.value, output)
        finally:
            evaluation.finish()
    return output, evaluation.layers
