"""The emulator's own tests need Triton, which compiles their kernels."""

import importlib.util

collect_ignore_glob = ["sample_*.py"] if importlib.util.find_spec("triton") else ["*.py"]
