"""Adds the C++ kernels in csrc/ to the package that pyproject.toml describes.

LLR_FAST_BUILD_EXT: auto (default) builds them where a C++20 compiler and torch are, 1 fails elsewhere, 0 never builds.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
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


def import_torch():
    try:
        import torch
    except ImportError:
        # An isolated build runs on the target's interpreter but hides its packages. Requiring torch for the build
        # would download a second one of several GB, so the target's own is used.
        paths = sysconfig.get_paths()
        for path in dict.fromkeys((paths["purelib"], paths["platlib"])):
            if Path(path, "torch").is_dir():
                sys.path.append(path)
        import torch  # noqa: F401


def probe_compiler():
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <concepts>\nint f(std::integral auto x) { return x; }\ntemplate int f(int);\n")
        command = [*compiler, *FLAGS, "-shared", "-fPIC", str(source), "-o", str(Path(folder, "probe.so"))]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{shlex.join(compiler)} does not compile C++20") from error


def report_missing(reason):
    print(
        f"llr_fast: installing without the C++ kernels ({reason}). On a CPU the fused operations of margins and losses "
        "run as plain PyTorch: same results, slower.",
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
                report_missing(str(error).strip().splitlines()[0])
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
