"""A tape of what a network does to its linearization: with the pattern frozen, the network is this linear program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.tensor import identity
from llr_fast.linearized.torch_modes import Modes


@dataclass(frozen=True)
class Operation:
    """A method of a linearization, called with constants and then with further linearizations, all known by number."""

    method: str
    operands: tuple[int, ...]
    constants: tuple[Any, ...]
    modes: Modes | None


@dataclass
class Tape:
    """The operations of one evaluation, to be done to any linearization; what is derived for it is of `dtype`.

    Constants of the network are copies, which nobody else can change (`Evaluation.owned`). The evaluation begins with
    `Noted(tape)` in place of a linearization. With `device` each operation is done in the
    modes for that type of device in which it was noted, else in those of the moment. Once `finished`, what checkpointed
    parts of the network compute again is not noted.
    """

    dtype: torch.dtype
    device: str | None = None
    finished: bool = False
    operations: list[Operation] = field(default_factory=list)

    def along(self, linearization: Any, statistic: str | None) -> Iterator[Tensor]:
        """Does the same to a linearization of the input; what `activate` measures of each layer, in turn.

        A linearization is let go after its last use, and what no layer depends on is left out.
        """
        last_use = {number: i for i, operation in enumerate(self.operations) for number in operation.operands}
        known = {0: linearization}
        del linearization
        for i, operation in enumerate(self.operations[: self._end()]):
            first, *others = (known[number] for number in operation.operands)
            known = {number: value for number, value in known.items() if last_use[number] > i}
            constants = (*operation.constants, *others, *([statistic] if operation.method == "activate" else []))
            with operation.modes.entered(torch.is_grad_enabled()) if operation.modes else contextlib.nullcontext():
                result = getattr(first, operation.method)(*constants)
            if operation.method == "activate":
                result, measured = result
                yield measured
            if i + 1 in last_use:
                known[i + 1] = result

    def products(self) -> Iterator[tuple[int, list[Operation]]]:
        """Layers that are one product of the input with weights, up to factors: their number, and the operations."""
        activations = [operation for operation in self.operations if operation.method == "activate"]
        for layer, activation in enumerate(activations):
            path: list[Operation] = []
            number = activation.operands[0]
            while number and len(self.operations[number - 1].operands) == 1:
                path.insert(0, self.operations[number - 1])
                number = path[0].operands[0]
            steps = [o.method for o in path if not (o.method == "pointwise" and o.constants[0] is identity)]
            if not number and steps and steps[0] in ("convolved", "linear") and set(steps[1:]) <= {"scaled"}:
                yield layer, path

    def _end(self) -> int:
        return max((i + 1 for i, operation in enumerate(self.operations) if operation.method == "activate"), default=0)


def _noting(method: str) -> Callable[..., Noted]:
    def note(self: Noted, *arguments: Any) -> Noted:
        tape = self.tape
        if tape.finished:
            return self
        others = [argument.number for argument in arguments if isinstance(argument, Noted)]
        constants = tuple(argument for argument in arguments if not isinstance(argument, Noted))
        modes = None if tape.device is None else Modes.current(tape.device)
        tape.operations.append(Operation(method, (self.number, *others), constants, modes))
        return Noted(tape, len(tape.operations))

    return note


@dataclass(frozen=True)
class Noted:
    """A linearization that computes nothing: the result of the tape's operation `number`, or its input, 0."""

    tape: Tape
    number: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.tape.dtype

    @property
    def keeps(self) -> bool:
        return not self.tape.finished

    pointwise = _noting("pointwise")
    batched = _noting("batched")
    convolved = _noting("convolved")
    scaled = _noting("scaled")
    linear = _noting("linear")
    reshaped = _noting("reshaped")
    mapped = _noting("mapped")
    __getitem__ = _noting("__getitem__")  # of a function that returns several tensors

    def activate(self, slope: Tensor, statistic: str | None) -> tuple[Noted, Tensor]:
        return _noting("activate")(self, slope), slope.new_empty(0, *slope.shape, dtype=self.dtype)


def values_alone() -> Noted:
    """In place of a linearization where none is asked for."""
    return Noted(Tape(torch.float32, finished=True))
