"""What the processes of a group found, brought together."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


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
