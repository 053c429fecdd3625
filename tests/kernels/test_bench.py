"""make bench-gpu: kernels that agree with plain PyTorch, one JSON, and one table with the card's name and floors."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.append(os.fspath(Path(__file__).parents[2]))  # for the package benches

from benches import gpu, gpu_steps, kernel_cases

pytestmark = pytest.mark.triton
CARD = "NVIDIA H100 80GB HBM3"


def test_bench_of_a_gpu(device, monkeypatch, capsys, tmp_path):
    """Small, and without timing, which a test cannot judge."""
    sizes = {"roll_max_pool": (2, 6)}  # whose kernels the interpreter is slowest at
    small = [dataclasses.replace(case, full=sizes.get(case.package, case.small)) for case in kernel_cases.CASES]
    monkeypatch.setattr(gpu, "CASES", small)
    monkeypatch.setattr(gpu, "seconds", lambda call: (call(), 1e-3)[1])
    monkeypatch.setattr(gpu_steps, "wall_clock", lambda call: (call(), 1e-3)[1])
    monkeypatch.setattr(gpu_steps, "DEVICE", device)
    monkeypatch.setattr(gpu_steps, "SIZE", 32)
    monkeypatch.setattr(gpu_steps, "BATCHES", (2,))
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: CARD)
    if device == "cpu":
        monkeypatch.setattr(gpu, "on_gpu", lambda argument: argument)
    gpu.main(tmp_path / "gpu.json")
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["machine"]["gpu"] == CARD and results["machine"]["peaks"] == "data sheet of H100"
    assert [run["kernel"] for run in results["kernels"]] == 2 * [case.name for case in small]
    assert all(0 < run["floor"] < run["seconds"] for run in results["kernels"])
    assert len(results["steps"]) == 8 and len(results["margins"]) == 2
    out = capsys.readouterr().out
    assert out.startswith(CARD) and out.count("| 1000.0 |") == len(results["kernels"])
    assert out.count("|           1.00 |") == len(results["steps"]) and "ResNet-18, 32x32, batch 1 " in out


def test_a_wrong_kernel_is_not_timed(device, monkeypatch):
    case = dataclasses.replace(kernel_cases.CASES[0], full=kernel_cases.CASES[0].small)
    wrong = property(lambda case: lambda *args: [1.01 * t for t in case.reference(*args)])
    monkeypatch.setattr(kernel_cases.Case, "launcher", wrong)
    if device == "cpu":
        monkeypatch.setattr(gpu, "on_gpu", lambda argument: argument)
    with pytest.raises(AssertionError, match="tangent_activation, result 0: off by"):
        gpu.measured(case, torch.float32, kernel_cases.CHIPS["H100"])


def test_the_page_shows_the_results():
    root = Path(__file__).parents[2]
    results = json.loads((root / "benches" / "results" / "gpu" / "h200.json").read_text())
    assert gpu.table(results) in (root / "docs" / "gpu.md").read_text()
