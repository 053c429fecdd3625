"""Virtual environments with PyTorch, and commands in them."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ["numpy", "scipy", "tabulate", "tqdm", "setuptools>=77", "ninja"]
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", ".triton", ".benchmarks", ".gallery", "build", "dist", "*.egg-info", "*.so"),
    *("__pycache__", ".*_cache", ".hypothesis", "site"),
)


class Failed(Exception):
    """A case did not do what it should."""


class Skipped(Exception):
    """A case cannot run on this machine."""


def run(*command: str | Path, cwd: Path, fails: bool = False, **variables: str) -> str:
    """What a command prints; raises Failed unless it fails or succeeds as it should."""
    # Variables of this process's own environment must not lead into another one.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | variables, capture_output=True, text=True
    )
    printed = done.stdout + done.stderr
    if (done.returncode != 0) != fails:
        last = "\n".join(printed.splitlines()[-40:])
        raise Failed(f"{' '.join(map(str, command))}: status {done.returncode}\n{last}")
    return printed


def expect(text: str, printed: str) -> None:
    if text not in printed:
        raise Failed(f"expected {text!r} in:\n{printed[-3000:]}")


def pythons() -> dict[str, str]:
    """Version -> interpreter, of those on PATH and of pyenv."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = {}
    for version in (f"3.{minor}" for minor in range(10, 15)):
        candidates = [sys.executable] * (version == "{}.{}".format(*sys.version_info))
        candidates += filter(None, [shutil.which(f"python{version}")])
        candidates += sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))
        for python in candidates:
            if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
                found[version] = python
                break
    return found


def copy_of_checkout(folder: Path) -> Path:
    """A source folder without what was built."""
    return Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT))


class Environment:
    """A new virtual environment in `folder`."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        run(python, "-m", "venv", folder, cwd=folder.parent)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def activated(self) -> dict[str, str]:
        """The variables that `source bin/activate` sets."""
        return {
            "VIRTUAL_ENV": str(self.folder),
            "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", "")]),
        }

    def pip(self, *arguments: str | Path, cwd: Path | None = None, fails: bool = False, **variables: str) -> str:
        command = [self.python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return run(*command, cwd=cwd or self.folder, fails=fails, **variables)

    def install_torch(self, version: str, cuda: bool) -> None:
        """PyTorch and what llr_fast needs beside it; a build for CUDA only if asked for."""
        self.pip("install", "--quiet", "--upgrade", "pip")
        wanted = f"torch=={version}"
        try:
            self.pip("install", "--quiet", "--dry-run", "--no-deps", "--report", "plan", wanted)
        except Failed as error:
            raise Skipped(f"torch {version} is not to be had for this Python") from error
        (torch,) = json.loads((self.folder / "plan").read_text())["install"]
        needs = torch["metadata"].get("requires_dist", [])
        for_cuda = any(need.startswith(("nvidia", "cuda")) for need in needs) and sys.platform == "linux"
        if for_cuda and not cuda:
            raise Skipped(f"torch {version} has no CPU build where pip looks; CUDA=1 takes that for CUDA, 6 GB")
        self.pip("install", "--quiet", wanted, *NEEDED)

    def check(self, native: bool, torch: str = "") -> None:
        """What is installed computes what it should, with or without the C++ kernels, and says which."""
        printed = run(self.python, "-m", "llr_fast", "doctor", cwd=self.folder)
        expect("checks passed", printed)
        expect("native     available" if native else "native     the C++ kernels were not built", printed)
        if torch:
            expect(f"torch             {torch}", printed)
        code = "import torch, llr_fast; llr_fast.margin(torch.nn.Sequential(torch.nn.ReLU()), torch.ones(1, 2))"
        warned = run(self.python, "-c", code, cwd=self.folder)
        if ("not built" in warned) == native:
            raise Failed(f"the first use on a CPU printed {warned!r}")

    def remove(self) -> None:
        """Takes llr_fast out again."""
        self.pip("uninstall", "--yes", "--quiet", "llr-fast")
