import os
import sys
from pathlib import Path

import pytest

sys.path.append(os.fspath(Path(__file__).parents[2]))  # for the package benches

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Kernels are compiled anew in every run, and once in it."""
    monkeypatch.setenv("TRITON_CACHE_DIR", os.fspath(tmp_path_factory.getbasetemp() / "triton"))
