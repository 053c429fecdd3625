"""Whether a model draws random numbers: a certificate is of a function."""

from __future__ import annotations

import contextlib
import pickle
import random
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llr_fast.certificates.agreement import model_dtype
from llr_fast.linearized.modules import RunningModule
from llr_fast.outputs import network_in
from llr_fast.process import uncompiled

States = tuple[list[Tensor], object, bytes]


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
    found = _found(model, x)
    if found is not None:
        raise ValueError(
            f"model: expected a function of x alone, got random numbers drawn in module {found!r}; "
            "certificates need it switched off, mostly by model.eval()"
        )


@torch.no_grad()
def _found(model: nn.Module, x: Tensor) -> str | None:
    """The first module that draws random numbers in this thread."""
    of_torch = _OfTorch(RunningModule(model))
    others = _Others(model)
    with uncompiled, of_torch, others.watching(), others:
        model(x.detach().to(model_dtype(model, x), copy=True))  # it may write to it
    return of_torch.found or others.found


class _OfTorch(TorchDispatchMode):
    """Finds the first module of a model in which an operation of torch draws random numbers."""

    def __init__(self, module: RunningModule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None
        self._module = module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found is None and torch.Tag.nondeterministic_seeded in func.tags:
            self.found = self._module.path()
        return func(*args, **(kwargs or {}))


class _Others(TorchFunctionMode):
    """Finds the first module of a model in which Python's or numpy's generators move outside of torch's functions.

    What other threads draw while those run is not mistaken for the model's, but what they draw in between is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: str | None = None
        self._module = RunningModule(model)
        modules = network_in(model).named_modules()
        self._names = {id(module): path or type(module).__name__ for path, module in modules}
        self._running: list[str] = []
        self._before = _others()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look(self._module.path())
        result = func(*args, **(kwargs or {}))
        self._before = _others()
        return result

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which modules are seen to begin and end, in this thread alone: hooks would be every thread's."""
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or code.co_name != "forward" or not code.co_argcount:
            return
        name = self._names.get(id(frame.f_locals.get(code.co_varnames[0])))
        if name is None:
            return
        if event == "return":
            self._look(self._running.pop())
            return
        if self._running:
            self._look(self._running[-1])
        self._before = _others()
        self._running.append(name)

    def _look(self, name: str) -> None:
        if self.found is None and _others() != self._before:
            self.found = name


def _others() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state())


def _same(a: States, b: States) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]
