"""Fixtures and JSON of the benches: make bench, and on a GPU `pytest benches -m gpu`."""

from __future__ import annotations

import os
import platform
import statistics
import time

import pytest
import torch

import llr_fast
from benches.providers import OURS

collect_ignore = [
    "gpu.py",
    "gpu_steps.py",
    "kernel_cases.py",
    "kernel_report.py",
    "offline.py",
]  # they need Triton and a compiler's tools, and hold no benches

ROUNDS = 5
BUDGET = 4.0  # seconds after which a provider is not timed again
SHORT = 0.2  # seconds; such calls are timed when caches and allocator are warm


def pytest_benchmark_update_machine_info(config, machine_info):
    """Keeps what matters for speed, and leaves out the name of the host."""
    processor = machine_info["cpu"].get("brand_raw", platform.processor())
    machine_info.clear()
    machine_info |= {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": [name for name, obstacle in llr_fast.backends().items() if obstacle is None],
    }


def pytest_benchmark_update_commit_info(config, commit_info):
    """Leaves out the names of the folder and of the branch."""
    del commit_info["project"], commit_info["branch"]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Leaves out pytest-benchmark's own settings, which the providers in turn do not follow."""
    for benchmark in output_json["benchmarks"]:
        del benchmark["options"], benchmark["group"], benchmark["param"]


@pytest.fixture(scope="session", autouse=True)
def settings():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.backends.cudnn.allow_tf32 = False  # so that convolutions agree; for matrix products that is the default


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def interleaved(benchmark, device):
    """Times providers in turn, so that whatever slows the machine down slows all of them.

    `interleaved(providers, rounds, **about)`: pytest-benchmark's own measurement is that of llr_fast; the JSON holds
    the median seconds of every provider next to `about`, which says what ran.
    """

    def run(providers, rounds=ROUNDS, **about):
        calls = {name: _synchronized(provider, device) for name, provider in providers.items()}
        ours = calls.pop(OURS)
        seconds = {name: [] for name in calls}

        def time_others():
            for name, call in calls.items():
                if sum(seconds[name]) < BUDGET:
                    seconds[name].append(_time(call))
            ours()

        benchmark.pedantic(ours, setup=time_others, rounds=rounds)
        if benchmark.enabled:
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            medians[OURS] = benchmark.stats.stats.median
            benchmark.extra_info.update(device=device, seconds=medians, **about)

    return run


def _time(call):
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    if seconds > SHORT:
        return seconds
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _synchronized(provider, device):
    def call():
        provider()
        if device == "cuda":
            torch.cuda.synchronize()

    return call
