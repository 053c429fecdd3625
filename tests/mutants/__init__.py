"""Small faults that tests have to notice, one at a time: make mutants, or python -m mutants."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One edit: in the file at `path` the text `old`, which occurs there once, becomes `new`.

    `effect` is what a user would get; of `tests`, node ids of pytest, at least one has to fail.
    """

    name: str
    path: str
    old: str
    new: str
    effect: str
    tests: tuple[str, ...] = ()
