"""Adds the C++ kernels in csrc/ to the package that pyproject.toml describes.

LLR_FAST_BUILD_EXT: auto (default) builds them where a C++20 compiler and torch are, 1 fails elsewhere, 0 never builds.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from setuptools import setup

MODE = os.environ.get("LLR_FAST_BUILD_EXT", "auto")
SOURCES = sorted(glob("csrc/*/*.cpp"))
HEADERS = sorted(glob("csrc/*/*.h") + glob("csrc/*/*.inc"))
# A frontend asks for metadata first, in runs of their own, which need neither torch nor a compiler.
METADATA_ONLY = not {"egg_info", "dist_info"}.isdisjoint(sys.argv)
# No -ffast-math: the kernels rely on infinities and NaN. No -march: each kernel file sets its own instruction set.
FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# Stable ABI of torch 2.10: one binary serves every later release.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


# Prints where an interpreter of this version finds torch and what torch imports.
ASK = f"""import importlib.util, sys
if sys.version_info[:2] == {sys.version_info[:2]} and importlib.util.find_spec("torch"):
    print(*sys.path, sep=chr(10))"""


def import_torch():
    """An isolated build hides the target's packages, and requiring torch for it would download another one of several
    GB. So that of the target is used, or of another environment in sight: its stable ABI is the same."""
    try:
        import torch
    except ImportError:
        for python in interpreters():
            sys.path += [path for path in paths_to_torch(python) if path not in sys.path]
            if importlib.util.find_spec("torch"):
                break
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"{error}; its headers are needed. Activate the environment that has it, or switch off build isolation"
            ) from error


def interpreters():
    """This one, whose packages pip hides; those on PATH and in .venv, which is where other frontends install into."""
    name = "python.exe" if os.name == "nt" else "python"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    folders += [Path(".venv", "Scripts" if os.name == "nt" else "bin").absolute()]
    return dict.fromkeys([sys.executable, *(str(folder / name) for folder in folders if (folder / name).exists())])


def paths_to_torch(python):
    """What is on the path of an interpreter that has torch; nothing of another version of Python."""
    # Files *.pth may name further folders: only the interpreter itself knows. Isolation is a matter of variables.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        found = subprocess.run([python, "-c", ASK], capture_output=True, text=True, env=environment, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [path for path in found.stdout.splitlines() if path]


def probe_compiler():
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <concepts>\nint f(std::integral auto x) { return x; }\ntemplate int f(int);\n")
        command = [*compiler, *FLAGS, "-shared", "-fPIC", str(source), "-o", str(Path(folder, "probe.so"))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise RuntimeError(f"{shlex.join(compiler)} does not compile C++20: {said.strip()}") from error


def report_missing(reason):
    print(
        f"llr_fast: installing without the C++ kernels: {reason}\n"
        "llr_fast: margins and losses on CPUs then run as plain PyTorch: same results, slower.",
        file=sys.stderr,
        flush=True,
    )


def kernels():
    if MODE not in ("auto", "0", "1"):
        raise SystemExit(f"LLR_FAST_BUILD_EXT must be auto, 0 or 1, got {MODE!r}")
    if MODE == "0" or not SOURCES or METADATA_ONLY:
        return {}
    try:
        import_torch()
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        probe_compiler()
    except (ImportError, OSError, RuntimeError) as error:
        if MODE == "1":
            raise
        report_missing(error)
        return {}

    class OptionalBuild(BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                if MODE == "1":
                    raise
                report_missing(str(error).strip())
                self.extensions = []

        def get_outputs(self):
            return [path for path in super().get_outputs() if os.path.exists(path)]

    extension = CppExtension(
        "llr_fast._C",
        SOURCES,
        depends=HEADERS,
        py_limited_api=True,
        extra_compile_args={"cxx": [*FLAGS, STABLE_ABI]},
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": OptionalBuild},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**kernels())
