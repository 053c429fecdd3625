"""Which module of a model is running."""

from __future__ import annotations

import sys
from functools import cached_property
from types import FrameType

from torch import nn

from llr_fast.outputs import Around, network_in


class RunningModule:
    """Finds the module of a model whose forward is running, in the frames of the functions that called."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def path(self) -> str:
        """Its path in the user's network; a class name for that network itself and for what is around it."""
        module = self.find()
        return self._paths.get(id(module)) or type(module).__name__

    def find(self) -> nn.Module:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(owner, nn.Module) and id(owner) in self._paths:
                return owner
            frame = frame.f_back
        return self._model

    @cached_property
    def _paths(self) -> dict[int, str]:
        around = {id(module): "" for module in self._model.modules() if isinstance(module, Around)}
        return around | {id(module): path for path, module in network_in(self._model).named_modules()}
