"""Prints what the Triton kernels cost, without a GPU: counted in emulated sm_80 code and calculated, not timed.

As compiled by the Triton that is installed and, where `make test-oldest-triton` has put it, by the oldest one allowed.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import torch
import triton

from benches import offline
from benches.kernel_cases import CASES, CHIPS, Case

REGISTERS, WARPS, SHARED = 65536, 64, 228 << 10  # of a multiprocessor of sm_90
HEADER = (
    "operator", "dtype", "kernels", "registers", "shared KiB", "occupancy", "matrix instr/1k", "instr/element",
    "sectors/element", "unique", "full size", *(f"{chip} us" for chip in CHIPS),
)  # fmt: skip


def occupancy(resources: offline.Resources, warps: int) -> float:
    """Share of a multiprocessor's warps that its registers and shared memory let run at once."""
    by_registers = REGISTERS // (math.ceil(resources.registers / 8) * 256 * warps)
    by_shared = SHARED // (resources.shared + 1024)
    return min(by_registers, by_shared, WARPS // warps, 32) * warps / WARPS


def row(case: Case, dtype: torch.dtype) -> list[str]:
    stats, resources, occupied = [], [], []
    arguments = case.arguments(dtype, *case.small)
    reachable = tuple(
        t for a in arguments if isinstance(a, list) for t in a if isinstance(t, torch.Tensor)
    )  # through addresses in memory

    def act(launch):
        stats.append(offline.emulate(launch, reachable))
        resources.append(offline.compile_launch(launch, "sm_90"))
        occupied.append(occupancy(resources[-1], launch.options["num_warps"]))

    with offline.intercepted(f"llr_fast.ops.{case.package}", act):
        case.launcher(*arguments)
    elements, *_ = case.work(*case.small)
    traffic = [t for s in stats for t in s.traffic.values()]
    instructions, matrix = sum(s.total_instructions for s in stats), sum(s.mma_count for s in stats)
    floors = [1e6 * case.floor(dtype, peaks) for peaks in CHIPS.values()]
    return [
        case.name, str(dtype).removeprefix("torch."), str(len(stats)),
        "/".join(str(r.registers) for r in resources), "/".join(f"{r.shared / 1024:.0f}" for r in resources),
        "/".join(f"{o:.0%}" for o in occupied),
        f"{1000 * matrix / elements:.2f}", f"{32 * instructions / elements:.1f}",
        f"{sum(t.sectors for t in traffic) / elements:.3f}", f"{sum(t.unique_sectors for t in traffic) / elements:.3f}",
        "x".join(map(str, case.full)), *(f"{f:.1f}" for f in floors),
    ]  # fmt: skip


def report() -> None:
    print(f"Triton {triton.__version__}\n")
    rows = [HEADER, *(row(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in CASES)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    for r in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip())


def explain() -> None:
    print(
        "\nCounted and calculated; nothing here was timed, and no GPU was used.\n"
        "Registers, shared memory and occupancy: compiled for sm_90, one figure for each kernel of the operator.\n"
        "Instructions of threads, matrix instructions of warps and 32-byte sectors: counted while emulating sm_80\n"
        "code at a small size, per element of [K, B, n], [K, n] or planes, of the output, or of W G of the diagonal;\n"
        "all sectors requested, and the distinct ones. The emulator has no cache: L1 or L2 may serve the others.\n"
        "Last columns: at the full size no kernel can take less, by the vendor's peaks of memory and arithmetic."
    )


def main() -> None:
    report()
    oldest = next(Path(__file__).parents[1].glob(".triton/[0-9]*.[0-9]*/triton"), None)
    if oldest is not None:
        print(flush=True)
        command = [sys.executable, "-c", "from benches.kernel_report import report; report()"]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": os.fspath(oldest.parent)}, check=True)
    explain()


if __name__ == "__main__":
    main()
