"""The tensors that a network returns, and the logits among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llr_fast.checks import described


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All of them, in any nest of containers and, where torch knows nothing of these, of mappings and objects."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_of(dict(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            yield from tensors_of(vars(leaf))


def reals_of(output: Any) -> list[Tensor]:
    """The tensors of real numbers among them, and complex ones as their real and imaginary parts [..., 2]."""
    numbers = (tensor for tensor in tensors_of(output) if tensor.is_floating_point() or tensor.is_complex())
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in numbers]


class Around(nn.Module):
    """What the library puts around a user's network, `model`, whose modules keep their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def network_in(model: nn.Module) -> nn.Module:
    """The user's network."""
    return network_in(model.model) if isinstance(model, Around) else model


class Logits(Around):
    """A model whose output is its logits alone."""

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x))


def logits_of(output: Any) -> Tensor:
    """[B, classes], or [B, 1]: the output itself, its attribute or entry `logits`, or the first entry of a tuple.

    Raises:
        ValueError: there is none, or it has more axes.
    """
    found = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        found = output.get("logits", found)
    elif isinstance(output, (tuple, list)) and output and found is None:
        found = output[0]
    found = output if isinstance(output, Tensor) else found
    if not isinstance(found, Tensor):
        entries = f" with the entries {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ValueError(
            "model: expected logits, as a tensor, the first entry of a tuple, or an entry or attribute `logits`, got "
            f"{described(output)}{entries}; wrap the model in one that returns its logits"
        )
    if found.dim() not in (1, 2):
        raise ValueError(f"model: expected logits [B, classes] or [B], got shape {tuple(found.shape)}")
    return found.unsqueeze(1) if found.dim() == 1 else found
