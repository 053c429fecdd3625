"""Times each Triton kernel beside its floor and the plain PyTorch it replaces, and steps: python -m benches.gpu [JSON].

Needs torch, Triton and a GPU. Writes one JSON, .benchmarks/gpu.json if none is named, and prints a table of the
kernels, one of training steps and one of margins.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch
import triton
from tabulate import tabulate
from torch import Tensor
from triton.testing import do_bench

from benches import bench_training, gpu_steps
from benches.kernel_cases import CASES, CHIPS, Case
from llr_fast.precision import full_precision

DTYPES = (torch.float32, torch.bfloat16)
# Errors by norm; plain PyTorch rounds to bfloat16 on its way.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
COLUMNS = ("kernel", "dtype", "size", "us", "floor us", "of floor", "plain PyTorch us", "times as long")


def peaks(card: str) -> tuple[str, tuple[float, float, float]]:
    """Bytes/s, float32 and bfloat16 operations/s of a card: by its data sheet, else of a copy and of products here."""
    for chip, numbers in CHIPS.items():
        if chip in card:
            return f"data sheet of {chip}", numbers
    source = torch.empty(2**28, device="cuda")
    target, size = torch.empty_like(source), 8192
    bandwidth = 2 * source.numel() * source.element_size() / seconds(lambda: target.copy_(source))
    rates = []
    for dtype in DTYPES:
        matrix = torch.randn(size, size, device="cuda").to(dtype)
        rates.append(2 * size**3 / seconds(lambda matrix=matrix: matrix @ matrix))
    return "measured copy and products", (bandwidth, rates[0], rates[1])


def seconds(call) -> float:
    """The median of some runs, each with a cold cache, after others to compile and warm up."""
    return do_bench(call, warmup=50, rep=200, return_mode="median") / 1e3


def on_gpu(argument):
    if isinstance(argument, list):
        return [on_gpu(a) for a in argument]
    return argument.cuda() if isinstance(argument, Tensor) else argument


def check_agreement(case: Case, arguments: tuple, dtype: torch.dtype) -> None:
    """Raises AssertionError unless kernel and plain PyTorch agree."""
    for place, (got, want) in enumerate(zip(case.launcher(*arguments), case.reference(*arguments), strict=True)):
        error, scale = (got.double() - want.double()).norm().item(), want.double().norm().item()
        assert error <= TOLERANCE[dtype] * scale, f"{case.name}, result {place}: off by {error:.2e} of {scale:.2e}"


def measured(case: Case, dtype: torch.dtype, limits: tuple[float, float, float]) -> dict:
    torch.manual_seed(0)
    arguments = tuple(on_gpu(a) for a in case.arguments(dtype, *case.full))
    check_agreement(case, arguments, dtype)
    return {
        "kernel": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "size": case.full,
        "seconds": seconds(lambda: case.launcher(*arguments)),
        "floor": case.floor(dtype, limits),
        "reference": seconds(lambda: case.reference(*arguments)),
    }


def table(results: dict) -> str:
    """Rows of kernels, with microseconds and how many times the kernel's time plain PyTorch takes; steps; margins."""
    machine = results["machine"]
    rows = [
        [
            run["kernel"], run["dtype"], "x".join(map(str, run["size"])), f"{1e6 * run['seconds']:.1f}",
            f"{1e6 * run['floor']:.1f}", f"{run['floor'] / run['seconds']:.0%}", f"{1e6 * run['reference']:.1f}",
            f"{run['reference'] / run['seconds']:.1f}",
        ]
        for run in results["kernels"]
    ]  # fmt: skip
    title = "{gpu}; PyTorch {torch}, Triton {triton}; floors by: {peaks}".format(**machine)
    parts = [_table(rows, COLUMNS, 3)]
    for name, columns in (("steps", gpu_steps.COLUMNS), ("margins", gpu_steps.MARGIN_COLUMNS)):
        parts.append(_table(gpu_steps.rows(results[name]), columns, 1))
    return "\n\n".join([title, *parts])


def _table(rows: list[list[str]], columns: tuple[str, ...], names: int) -> str:
    alignment = ("left",) * names + ("right",) * (len(columns) - names)
    return tabulate(rows, columns, tablefmt="github", colalign=alignment, disable_numparse=True)


def main(path: str = ".benchmarks/gpu.json") -> None:
    card = torch.cuda.get_device_name()
    with full_precision:
        source, limits = peaks(card)
        kernels = [measured(case, dtype, limits) for dtype in DTYPES for case in CASES]
    bench_training.check()
    torch.backends.cudnn.allow_tf32 = False  # as for matrix products, whose default that is
    steps, margins = (gpu_steps.measured(pairs) for pairs in (gpu_steps.steps(), gpu_steps.margins()))
    results = {
        "machine": {
            "gpu": card, "torch": torch.__version__, "triton": triton.__version__,
            "python": platform.python_version(), "peaks": source,
        },
        "kernels": kernels, "steps": steps, "margins": margins,
    }  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results, indent=1) + "\n")
    print(table(results), f"Written to {path}", sep="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
