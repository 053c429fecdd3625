"""make check-install: one line for each way to install, on each Python and PyTorch that can be had."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from install import arm
from install.cases import CASES
from install.environments import ROOT, Environment, Failed, Skipped, pythons

# The versions that the workflow tests, from the oldest allowed by way of the Makefile's to the newest.
OLDEST, USUAL, NEWEST = re.findall(r'torch: "([\d.]+)"', (ROOT / ".github" / "workflows" / "ci.yml").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m install", description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name matches")
    parser.add_argument("--cuda", action="store_true", help="also PyTorch for CUDA where there is no other, 6 GB each")
    options = parser.parse_args()
    found = pythons()
    usual = "{}.{}".format(*sys.version_info)
    failures = 0

    def report(name: str, case: Callable[[], None]) -> None:
        nonlocal failures
        print(f"{name:48}", end="", flush=True)
        start = time.perf_counter()
        try:
            case()
            print(f"ok, {time.perf_counter() - start:.0f} s", flush=True)
        except Skipped as reason:
            print(f"skipped: {reason}", flush=True)
        except Failed as error:
            failures += 1
            print(f"FAILED\n{error}", flush=True)

    ways = {name: case for name, case in CASES.items() if re.search(options.only, name)}
    if ways:
        with tempfile.TemporaryDirectory() as folder:
            all_ways(Path(folder), found[usual], ways, options.cuda, report)
    for python in found:
        for torch in (OLDEST, USUAL, NEWEST):
            if (python, torch) != (usual, USUAL) and re.search(options.only, name := f"python {python}, torch {torch}"):
                report(name, lambda python=python, torch=torch: one_way(found[python], torch, options.cuda))
    if re.search(options.only, name := "arm: kernels of 64-bit Arm under qemu-user"):
        report(name, arm.compare)
    sys.exit(1 if failures else 0)


def all_ways(folder: Path, python: str, ways: dict, cuda: bool, report: Callable) -> None:
    """One environment, which each way leaves without llr_fast."""
    target = Environment(folder / "target", python)
    report(f"an environment with torch {USUAL}", lambda: target.install_torch(USUAL, cuda))
    for name, case in ways.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            report(name, lambda case=case, place=place: case(target, Path(place)))
        target.remove()


def one_way(python: str, torch: str, cuda: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Environment(Path(folder, "target"), python)
        target.install_torch(torch, cuda)
        place = Path(folder, "case")
        place.mkdir()
        CASES["pip"](target, place)


if __name__ == "__main__":
    main()
