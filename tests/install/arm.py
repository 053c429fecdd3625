"""The kernels, compiled for 64-bit Arm and run by an emulator, compute what they compute here."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from install.environments import ROOT, Failed, Skipped, run

COMPILERS = ("aarch64-linux-gnu-g++",)
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-static"]  # as in setup.py
TOLERANCE = {4: 2e-6, 8: 1e-14}  # bytes of a number -> of the largest of an array; Arm fuses products and sums

Values = dict[tuple[str, int], list[list[float]]]


def tool(names: tuple[str, ...], package: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise Skipped(f"{names[0]} is not installed; in Debian it is in {package}")
    return found


def compare() -> None:
    """Raises Failed where an array differs, and Skipped without the compiler or the emulator."""
    compiler, emulator = tool(COMPILERS, "g++-aarch64-linux-gnu"), tool(EMULATORS, "qemu-user")
    with tempfile.TemporaryDirectory() as folder:
        here = values("c++", [], Path(folder, "here"))
        there = values(compiler, [emulator], Path(folder, "there"))
    if here.keys() != there.keys():
        raise Failed(f"other arrays: {here.keys() ^ there.keys()}")
    worst: dict[int, float] = defaultdict(float)
    for (name, size), arrays in here.items():
        for array, other in zip(arrays, there[name, size], strict=True):
            error = deviation(array, other)
            # Codes, places and counts are integers; they are equal.
            exact = size == 1 or name.endswith((".index", ".sizes", "crossing_lines"))
            if not error <= (0 if exact else TOLERANCE[size]):
                raise Failed(f"{name}, {size} bytes: {error:.1e} of the largest number")
            worst[size] = max(worst[size], error)
    count = sum(len(arrays) for arrays in here.values())
    print(f"{count} arrays, to {worst[4]:.0e} in float32 and {worst[8]:.0e} in float64;", end=" ")


def values(compiler: str, emulator: list[str], program: Path) -> Values:
    """What the kernels print: name and bytes of a number -> arrays, in order."""
    kernels = sorted((ROOT / "csrc" / "kernels").glob("*.cpp"))
    source = ROOT / "tests" / "install" / "kernels.cpp"
    run(compiler, *FLAGS, "-I", ROOT / "csrc" / "kernels", source, *kernels, "-o", program, cwd=program.parent)
    found = defaultdict(list)
    for line in run(*emulator, program, cwd=program.parent, LLR_FAST_ISA="generic").splitlines():
        if " " in line:  # the name of the instruction set stands alone
            name, size, *numbers = line.split(" ")
            found[name, int(size)].append([float(number) for number in numbers])
    return dict(found)


def deviation(a: list[float], b: list[float]) -> float:
    """The largest difference, by the largest finite number; infinite where they are not finite in the same places."""
    if len(a) != len(b) or [x for x in a if not math.isfinite(x)] != [x for x in b if not math.isfinite(x)]:
        return math.inf
    pairs = [(x, y) for x, y in zip(a, b) if math.isfinite(x)]
    largest = max((abs(x) for x, _ in pairs), default=0.0)
    return max((abs(x - y) for x, y in pairs), default=0.0) / (largest or 1.0)
