"""The examples run for a few steps; those whose package is absent are skipped."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_loop():
    assert "median l2 margin" in run(str(ROOT / "examples" / "plain_loop.py"), "4")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_distributed(kind):
    printed = run(*TORCHRUN, str(ROOT / "examples" / "data_parallel.py"), "3", kind)
    assert "rank 0: loss" in printed and "rank 1: loss" in printed


@pytest.mark.parametrize("name, package", [("lightning_module", "lightning"), ("huggingface_trainer", "transformers")])
def test_framework(name, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert run(str(ROOT / "examples" / f"{name}.py"), "3")
