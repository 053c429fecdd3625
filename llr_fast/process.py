"""Settings of the whole process that several threads may need changed at once."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch


class Held:
    """A context manager for threads: the first one in enters `change()`, the last one out leaves it."""

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._holders = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._holders:
                entered = self._change()
                entered.__enter__()
                self._entered = entered
            self._holders += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._entered.__exit__(None, None, None)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    # Where the compiler was never imported nothing is compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


# Compiled parts of a model run as written: their graphs know nothing of linearized tensors.
uncompiled = Held(_eager)
