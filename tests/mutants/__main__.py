"""Plants small faults one at a time and says which ones the tests notice: `make mutants`, `make mutants ONLY=word`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import scipy.optimize
import scipy.stats  # noqa: F401  (for the forks that run tests)
import torch  # noqa: F401
from tqdm import tqdm

from . import Mutant
from .own import OWN
from .survivors import SURVIVORS

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="faults whose name holds the word")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # which may be older than the next edit by less than the clock tells
    built = os.environ.get("LLR_FAST_BUILD_EXT", "auto") != "0" and any(ROOT.glob("llr_fast/_C*.so"))
    chosen = [mutant for mutant in (*SURVIVORS, *OWN) if options.only in mutant.name]
    if not chosen:
        parser.error(f"--only: expected a part of the name of a fault, got {options.only!r}")
    compiled = [mutant for mutant in chosen if mutant.path.startswith("csrc/")]
    chosen.sort(key=lambda mutant: mutant in compiled)  # the slow ones last
    if compiled and not built:
        print(f"left out, because the C++ kernels are not built: {', '.join(m.name for m in compiled)}")
        chosen = [mutant for mutant in chosen if mutant not in compiled]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "llr_fast"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        every = dict.fromkeys(test for mutant in chosen for test in mutant.tests)
        print(f"{len(every)} tests of {len(chosen)} faults, without any ...", flush=True)
        failing = run(copy, every, stop=False)
        if failing:
            print(f"expected that all pass without a fault, got:\n{failing}")
            return 1
        missed = []
        for mutant in tqdm(chosen, desc="faults", unit="fault"):
            verdict = judged(copy, mutant)
            if verdict != "noticed":
                missed.append(mutant.name)
            tqdm.write(f"{mutant.name}: {verdict}")
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults are noticed" + (f", but {missed}" if missed else ""))
    return bool(missed)


def judged(copy: Path, mutant: Mutant) -> str:
    """Whether any of its tests fails where the fault is planted in the copy, which is restored."""
    path = copy / mutant.path
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return "the edit does not apply"
    compiled = mutant.path.startswith("csrc/")
    kernels = {binary: binary.read_bytes() for binary in copy.glob("llr_fast/_C*.so")} if compiled else {}
    try:
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        if compiled:
            build(copy)
        return "noticed" if run(copy, mutant.tests) else "NOT NOTICED"
    finally:
        path.write_text(source, encoding="utf-8")
        for binary, content in kernels.items():
            binary.write_bytes(content)


def run(copy: Path, tests: Iterable[str], stop: bool = True) -> str:
    """What pytest prints where the tests fail in the copy, else nothing.

    It runs in a fork of this process, which has imported what takes long and nothing of the library.
    """
    options = [*(["-x"] if stop else []), "-q", "-p", "no:cacheprovider", *tests]
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as printed:
        child = os.fork()
        if child == 0:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            os.chdir(copy)
            os.environ["PYTHONPATH"] = str(copy)
            sys.path.insert(0, str(copy))
            code = 3
            try:
                code = int(pytest.main(options))
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        found = printed.read()
    if code not in (0, 1):
        raise RuntimeError(f"pytest did not run these tests:\n{found}")
    return (found or f"exit status {code}") if code else ""  # what pytest captures itself is not printed here


def build(copy: Path) -> None:
    """Compiles the kernels of the copy."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # for ninja
    environment = {**os.environ, "LLR_FAST_BUILD_EXT": "1", "PATH": paths}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the kernels did not compile:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
