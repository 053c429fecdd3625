"""Which training steps of a loss have a penalty."""

from __future__ import annotations

import weakref
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from llr_fast.dispatch import LIBRARY


class Clock:
    """Counts the training steps of a loss, of which the first and then every k-th one has a penalty.

    In a graph an operator counts, when it runs: a number that changes while Dynamo traces would compile each step anew.

    Attributes:
        steps: so far.
        every: k.
        is_due: whether the next step has a penalty.
        key: what graphs know it by.
    """

    def __init__(self, loss: nn.Module, steps: int = 0, every: int = 1) -> None:
        self._loss, self.key = weakref.ref(loss), str(id(self))
        _clocks[self.key] = self
        self.set(steps, every)

    def __reduce__(self) -> tuple[Any, ...]:
        return Clock, (self.loss, self.steps, self.every)

    @property
    def loss(self) -> nn.Module:
        loss = self._loss()
        assert loss is not None  # which alone refers to its clock
        return loss

    def set(self, steps: int, every: int) -> None:
        self.steps, self.every = steps, every
        self.is_due = steps % every == 0

    def tick(self) -> None:
        self.set(self.steps + 1, self.every)


_clocks: WeakValueDictionary[str, Clock] = WeakValueDictionary()


def loss_of(key: str) -> nn.Module:
    """The loss whose clock has this key."""
    return _clocks[key].loss


def _tick(x: Tensor, clock: str) -> Tensor:
    """Counts a step of the clock with this key; returns 0, so that a graph has a use for it."""
    _clocks[clock].tick()
    return x.new_zeros(())


LIBRARY.define(
    "tick(Tensor x, str clock) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe),
)
LIBRARY.impl("tick", _tick, "CompositeExplicitAutograd")
torch.library.register_fake("llr_fast::tick", lambda x, clock: x.new_empty(()), lib=LIBRARY)
