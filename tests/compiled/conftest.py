import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(os.fspath(ROOT))  # for the package benches

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def cache():
    """Compiled kernels are kept for later runs; Triton tells them apart by source, target, options and its version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", os.fspath(ROOT / ".triton"))
        yield
