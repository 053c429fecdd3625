"""A tape of what a network does to its linearization: with the pattern frozen, the network is this linear program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from llr_fast.linearized import operations
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.local import Absolute, Sums
from llr_fast.linearized.operations import Activated, Operation
from llr_fast.linearized.torch_modes import Modes

M = TypeVar("M")
Activate = Callable[[Directions, Tensor], tuple[Directions, M]]


@dataclass(frozen=True)
class Local:
    """What rounding may do to the result of one operation.

    Attributes:
        error: a bound of the error of each entry of its value, [B, ...]; None of an exact one.
        terms: roundings that a product passes through in the operation or in its transpose, at most.
        samples: where the samples lie in the value.
    """

    error: Tensor | None
    terms: int
    samples: Samples | None = None


EXACT = Local(None, 0)


@dataclass(frozen=True)
class Entry:
    """An operation, and the numbers of its operands and results; 0 is the network's input.

    `local` is known where the evaluation bounds its rounding.
    """

    operation: Operation | Activated
    operands: tuple[int, ...]
    results: range
    modes: Modes | None
    local: Local = EXACT

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """The modes in which the operation was noted, else those of the moment."""
        return self.modes.entered(torch.is_grad_enabled()) if self.modes else contextlib.nullcontext()


# Takes an entry and its operands, a list that it may empty; returns the results.
Step = Callable[[Entry, list[Directions]], Sequence[Directions]]


@dataclass
class Tape:
    """The operations of one evaluation, to be done to any directions; what is derived for them is of `dtype`.

    Constants of the network are copies, which nobody else can change (`Evaluation.owned`). The evaluation begins with
    `Taped(tape, 0)`. With `device` each operation is done in the modes for that type of device in which it was noted,
    else in those of the moment. Once `finished`, what checkpointed parts of the network compute again is not noted.
    """

    dtype: torch.dtype
    device: str | None = None
    finished: bool = False
    entries: list[Entry] = field(default_factory=list)
    _known: int = 1

    def note(self, operation: Operation | Activated, operands: tuple[int, ...], results: int) -> range:
        """Returns the numbers of the results."""
        numbers = range(self._known, self._known + results)
        modes = None if self.device is None else Modes.current(self.device)
        self.entries.append(Entry(operation, operands, numbers, modes))
        self._known += results
        return numbers

    def bounded(self, number: int, value: Tensor, sums: Sums, samples: Samples) -> None:
        """Notes how the result `number`, with this value, adds up; only the last operation rounds."""
        entry = self.entries[-1] if self.entries else None
        if entry is None or list(entry.results) != [number]:
            if sums.terms:
                raise RuntimeError("the result of another operation than the last")
            return

        def absolute(*operands: Tensor) -> Tensor:
            return entry.operation.absolute(*(Directions(t.unsqueeze(0)) for t in operands)).tangents[0]

        with entry.entered():
            local = Local(sums.error(absolute, value), max(sums.terms, sums.back), samples)
        self.entries[-1] = replace(entry, local=local)

    def up_to_last_activation(self) -> list[Entry]:
        """What no layer of neurons depends on comes behind it."""
        activations = (i + 1 for i, entry in enumerate(self.entries) if isinstance(entry.operation, Activated))
        return self.entries[: max(activations, default=0)]

    def replay(self, directions: Directions, activate: Activate[M]) -> Iterator[M]:
        """Does the same to directions of the input; yields what `activate(tangents, slope)` finds at each activation.

        Directions are let go after their last use.
        """
        found: list[M] = []

        def do(entry: Entry, operands: list[Directions]) -> Sequence[Directions]:
            if not isinstance(entry.operation, Activated):
                return entry.operation.apply(*operands)
            result, at_activation = activate(operands.pop(), entry.operation.slope)
            found.append(at_activation)
            return [result]

        steps = self._steps(directions, do)
        del directions
        for _ in steps:
            while found:
                yield found.pop()

    def walk(self, start: Directions, do: Step) -> None:
        """Has `do` compute the results of each operation, up to the last activation, from those of its operands."""
        for _ in self._steps(start, do):
            pass

    def _steps(self, start: Directions, do: Step) -> Iterator[None]:
        """As `walk`, operation by operation. What was computed is let go after its last use."""
        entries = self.up_to_last_activation()
        last_use = {number: i for i, entry in enumerate(entries) for number in entry.operands}
        known = {0: start}
        del start
        for i, entry in enumerate(entries):
            operands = [known[number] for number in entry.operands]
            known = {number: value for number, value in known.items() if last_use[number] > i}
            with entry.entered():
                results = do(entry, operands)
            del operands
            known |= {number: value for number, value in zip(entry.results, results) if number in last_use}
            del results
            yield

    def products(self) -> Iterator[tuple[int, list[Operation]]]:
        """Layers that are one product of the input with weights, up to factors: their number, and the operations."""
        made_by = {number: entry for entry in self.entries for number in entry.results}
        activations = [entry for entry in self.entries if isinstance(entry.operation, Activated)]
        for layer, activation in enumerate(activations):
            path: list[Operation] = []
            number = activation.operands[0]
            while number and len(made_by[number].operands) == 1:
                operation = made_by[number].operation
                if isinstance(operation, Activated):
                    break
                if not (isinstance(operation, operations.Pointwise) and operation.is_identity):
                    path.insert(0, operation)
                number = made_by[number].operands[0]
            is_product = path and isinstance(path[0], (operations.Convolved, operations.Linear))
            if not number and is_product and all(isinstance(operation, operations.Scaled) for operation in path[1:]):
                yield layer, path


@dataclass(frozen=True)
class Taped(Linearization):
    """Has the tape note what is done to it: the result `number` of the tape's operations."""

    tape: Tape
    number: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.tape.dtype

    @property
    def keeps(self) -> bool:
        return not self.tape.finished

    def pointwise(
        self, function: Callable[..., Tensor], shape: Sequence[int], *others: Taped, absolute: Absolute | None = None
    ) -> Taped:
        return self._noted(operations.Pointwise(function, tuple(shape), absolute), *others)

    def batched(self, function: Callable[[Tensor], Tensor], *, absolute: Absolute | None = None) -> Taped:
        return self._noted(operations.Batched(function, absolute))

    def mapped(self, function: Callable[..., Tensor], *others: Taped, absolute: Absolute | None = None) -> Taped:
        return self._noted(operations.Mapped(function, absolute), *others)

    def bounded(self, value: Tensor, sums: Sums, samples: Samples) -> None:
        if not self.tape.finished:
            self.tape.bounded(self.number, value, sums, samples)

    def parts(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> Sequence[Taped]:
        if self.tape.finished:
            return [self] * count
        numbers = self.tape.note(operations.Parts(function, count), (self.number,), count)
        return [Taped(self.tape, number) for number in numbers]

    def reshaped(self, shape: Sequence[int]) -> Taped:
        return self._noted(operations.Reshaped(tuple(shape)))

    def linear(self, weight: Tensor) -> Taped:
        return self._noted(operations.Linear(weight))

    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Taped:
        return self._noted(operations.Convolved(function, weight))

    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Taped:
        return self._noted(operations.Scaled(factor, tuple(shape)))

    def activated(self, slope: Tensor) -> Taped:
        return self._noted(Activated(slope))

    def _noted(self, operation: Operation | Activated, *others: Taped) -> Taped:
        if self.tape.finished:
            return self
        (number,) = self.tape.note(operation, (self.number, *(other.number for other in others)), 1)
        return Taped(self.tape, number)
