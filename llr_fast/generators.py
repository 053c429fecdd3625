"""Whether a model draws random numbers: a certificate is of a function."""

from __future__ import annotations

import contextlib
import functools
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llr_fast.linearize import Evaluation
from llr_fast.process import uncompiled

States = tuple[list[Tensor], object, bytes]
_TIMES = 5  # that a model is seen drawing, so that it was not another thread


def states(device: torch.device) -> States:
    """Of torch's generators for the CPU and the device, of Python's and of numpy's."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda], *_others()


def check(model: nn.Module, x: Tensor, before: States) -> None:
    """Raises ValueError, naming the module, where the model at x moves a generator from the states `before`.

    They may also have moved because other threads draw numbers, so the model has to be seen drawing them.
    """
    if _same(before, states(x.device)):
        return
    for _ in range(_TIMES):
        watch = _Watch(model)
        with uncompiled, torch.no_grad(), watch, watch.hooks():
            model(x.clone())
        if watch.found is None:
            return
    raise ValueError(
        f"model: expected a function of x alone, got random numbers drawn in module {watch.found!r}; "
        "certificates need it switched off, mostly by model.eval()"
    )


class _Watch(TorchDispatchMode):
    """Finds the first module of a model that draws random numbers in this thread.

    Numbers of Python's and numpy's generators are missed at the next torch operation, or at the end of the module.
    Other threads draw them too, mostly during torch operations.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: str | None = None
        self._model, self._evaluation, self._others = model, Evaluation(model), _others()
        self._running: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found is None and torch.Tag.nondeterministic_seeded in func.tags:
            self.found = self._evaluation.module_path()
        self._look_at_others(self._evaluation.module_path())
        result = func(*args, **(kwargs or {}))
        self._others = _others()
        return result

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for path, module in self._model.named_modules():
                name = path or type(module).__name__
                stack.enter_context(module.register_forward_pre_hook(functools.partial(self._enter, name)))
                stack.enter_context(module.register_forward_hook(self._leave))
            yield

    def _enter(self, name: str, *_: Any) -> None:
        if self._running:
            self._look_at_others(self._running[-1])
        self._running.append(name)

    def _leave(self, *_: Any) -> None:
        self._look_at_others(self._running.pop())

    def _look_at_others(self, name: str) -> None:
        if self.found is None and _others() != self._others:
            self.found = name


def _others() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state())


def _same(a: States, b: States) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]
