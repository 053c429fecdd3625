"""What the processes of a group found, brought together."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed

from llr_fast.checks import described

T = TypeVar("T")


def check_group(group: Any) -> None:
    if group is not None and not isinstance(group, distributed.ProcessGroup):
        raise TypeError(f"group: expected a ProcessGroup that this process belongs to, or None, got {described(group)}")


def gathered(part: T, group: distributed.ProcessGroup | None) -> list[T]:
    """The parts of all processes, in the order of their ranks; without a group the one part of this process.

    Every process of the group has to call this; where one raises before, the others wait for the group's timeout at
    most, and raise.
    """
    if group is None:
        return [part]
    parts: list[T] = [part] * distributed.get_world_size(group)
    distributed.all_gather_object(parts, part, group)
    return parts
