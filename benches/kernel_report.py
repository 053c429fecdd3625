"""Prints what the Triton kernels cost, without a GPU: counted in emulated sm_80 code and calculated, not timed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from benches import offline
from llr_fast.ops.gram_linear.triton import launch_gram_linear, launch_gram_linear_backward
from llr_fast.ops.margin_reduce.triton import launch_margin_reduce
from llr_fast.ops.masked_linear.triton import launch_masked_linear, launch_masked_linear_backward
from llr_fast.ops.roll_activation.triton import launch_roll_activation, launch_roll_activation_backward
from llr_fast.ops.roll_max_pool.reference import roll_max_pool
from llr_fast.ops.roll_max_pool.triton import launch_roll_max_pool, launch_roll_max_pool_backward
from llr_fast.ops.tangent_activation.triton import launch_tangent_activation, launch_tangent_activation_backward

# Dense peaks of the SXM parts from the vendor's data sheets: bytes/s, float32 and bfloat16 operations/s.
CHIPS = {"A100": (2.04e12, 19.5e12, 312e12), "H100": (3.35e12, 67e12, 989e12), "B200": (7.7e12, 75e12, 2250e12)}
REGISTERS, WARPS, SHARED = 65536, 64, 228 << 10  # of a multiprocessor of sm_90


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator at a size small enough to emulate, and at one of practical interest for the floors.

    sizes are [K, B, n], [K, B, I, O], [B, n, O], [B, n], [K, n] or [planes, side]; `call` launches it, `work` gives the
    elements that counts are divided by, the bytes that must move, in units of the dtype, and the floating-point
    operations; `codes` gives the bytes of other numbers.
    """

    name: str
    small: tuple[int, ...]
    full: tuple[int, ...]
    call: Callable
    work: Callable
    codes: Callable = lambda *sizes: 0


def randn(dtype, *shape):
    return torch.randn(shape).to(dtype)


def tangent_forward(dtype, K, B, n):
    return launch_tangent_activation(randn(dtype, K, B, n), randn(dtype, B, n), "sum_squares")


def tangent_backward(dtype, K, B, n):
    t, slope, stat = randn(dtype, K, B, n), randn(dtype, B, n), torch.randn(B, n)
    return launch_tangent_activation_backward(t, stat, t, slope, stat, "sum_squares", False)


def linear_forward(store):
    def call(dtype, K, B, I, O):
        arguments = (randn(dtype, K, B, I), randn(dtype, B, I), randn(dtype, O, I))
        return launch_masked_linear(*arguments, "sum_squares", store)

    return call


def linear_backward(dtype, K, B, I, O):
    t, slope, weight, out = randn(dtype, K, B, I), randn(dtype, B, I), randn(dtype, O, I), randn(dtype, K, B, O)
    return launch_masked_linear_backward(out, torch.randn(B, O), out, t, slope, weight, "sum_squares", False, True)


def gram_forward(store):
    return lambda dtype, B, n, O: launch_gram_linear(
        randn(dtype, B, n, n), randn(dtype, B, n), randn(dtype, O, n), store
    )


def gram_backward(dtype, B, n, O):
    d_out, gram, slope, weight = randn(dtype, B, O, O), randn(dtype, B, n, n), randn(dtype, B, n), randn(dtype, O, n)
    return launch_gram_linear_backward(d_out, torch.randn(B, O), gram, slope, weight, True, False, True)


def roll_forward(dtype, K, n):
    return launch_roll_activation(randn(dtype, n), randn(dtype, K, n), None, None, 0.0, 0.0, math.inf, 1, True)


def roll_backward(dtype, K, n):
    code = torch.randint(0, 3, (n,), dtype=torch.int8)
    gradients = randn(dtype, n), randn(dtype, K, n), torch.ones(2)
    return launch_roll_activation_backward(*gradients, randn(dtype, K, n), code, None, None, 0.0, 1)


WINDOWS = (3, 3, 2, 2, 1, 1, 1, 1)  # as before a ResNet


def pool_forward(dtype, planes, side):
    shape = (planes, side, side, 1)
    return launch_roll_max_pool(randn(dtype, *shape), randn(dtype, 1, *shape), [*WINDOWS, side // 2, side // 2])


def pool_backward(dtype, planes, side):
    shape = (planes, side, side, 1)
    z, tangents, windows = randn(dtype, *shape), randn(dtype, 1, *shape), [*WINDOWS, side // 2, side // 2]
    out, winning, sums, index = roll_max_pool(z, tangents, windows)
    return launch_roll_max_pool_backward(out, winning, sums, z, tangents, index, windows)


LAYERS: list[torch.Tensor] = []  # the kernel finds them through addresses in memory, and the emulator through this


def margins(dtype, B, n):
    LAYERS[:] = [randn(dtype, B, n).abs() for _ in range(4)]
    return launch_margin_reduce(LAYERS[:2], LAYERS[2:])


CASES = [
    Case("tangent_activation", (16, 4, 256), (784, 64, 300), tangent_forward,
         lambda K, B, n: (K * B * n, 2 * K * B * n + 2 * B * n, 3 * K * B * n)),
    Case("tangent_activation backward", (16, 4, 256), (784, 64, 300), tangent_backward,
         lambda K, B, n: (K * B * n, 3 * K * B * n + 3 * B * n, 4 * K * B * n)),
    Case("masked_linear", (16, 8, 128, 128), (784, 64, 300, 300), linear_forward(True),
         lambda K, B, I, O: (K * B * O, K * B * (I + O) + I * O, 2 * K * B * I * O)),
    Case("masked_linear, not stored", (16, 8, 128, 128), (784, 64, 300, 300), linear_forward(False),
         lambda K, B, I, O: (K * B * O, K * B * I + I * O, 2 * K * B * I * O)),
    Case("masked_linear backward", (16, 8, 128, 128), (784, 64, 300, 300), linear_backward,
         lambda K, B, I, O: (K * B * O, 2 * K * B * (I + O) + 2 * I * O, 4 * K * B * I * O)),
    Case("gram_linear", (1, 128, 128), (64, 300, 300), gram_forward(True),
         lambda B, n, O: (B * O * O, B * (n * n + O * O + 2 * O * n), B * O * n * (2 * n + O))),
    Case("gram_linear, diagonal", (1, 128, 128), (64, 300, 300), gram_forward(False),
         lambda B, n, O: (B * O * n, B * n * n / 2, B * O * n * n)),
    Case("gram_linear backward", (1, 128, 128), (64, 300, 300), gram_backward,
         lambda B, n, O: (B * O * O, B * (2 * n * n + O * O + 3 * O * n), B * O * n * (2 * O + 3 * n))),
    Case("margin_reduce", (2, 2048), (1, 1_150_000), margins,
         lambda B, n: (2 * B * n, 4 * B * n, 2 * B * n)),
    Case("roll_activation", (1, 16384), (1, 12_845_056), roll_forward,
         lambda K, n: (K * n, 2 * (K + 1) * n, 3 * K * n + 8 * n), lambda K, n: n),
    Case("roll_activation backward", (1, 16384), (1, 12_845_056), roll_backward,
         lambda K, n: (K * n, (3 * K + 2) * n, 4 * K * n + 3 * n), lambda K, n: n),
    Case("roll_max_pool", (16, 16), (4096, 112), pool_forward,
         lambda N, side: (N * side**2, 2.5 * N * side**2, 16 * N * side**2), lambda N, side: N * side**2),
    Case("roll_max_pool backward", (16, 16), (4096, 112), pool_backward,
         lambda N, side: (N * side**2, 4.5 * N * side**2, 54 * N * side**2), lambda N, side: N * side**2),
]  # fmt: skip
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

    def act(launch):
        stats.append(offline.emulate(launch, tuple(LAYERS)))
        resources.append(offline.compile_launch(launch, "sm_90"))
        occupied.append(occupancy(resources[-1], launch.options["num_warps"]))

    LAYERS.clear()
    with offline.intercepted(f"llr_fast.ops.{case.name.replace(',', ' ').split()[0]}", act):
        case.call(dtype, *case.small)
    elements, *_ = case.work(*case.small)
    traffic = [t for s in stats for t in s.traffic.values()]
    instructions, matrix = sum(s.total_instructions for s in stats), sum(s.mma_count for s in stats)
    _, units, operations = case.work(*case.full)
    must_move = units * dtype.itemsize + case.codes(*case.full)
    floors = [
        1e6 * max(must_move / bandwidth, operations / (bf16 if dtype == torch.bfloat16 else fp32))
        for bandwidth, fp32, bf16 in CHIPS.values()
    ]
    return [
        case.name, str(dtype).removeprefix("torch."), str(len(stats)),
        "/".join(str(r.registers) for r in resources), "/".join(f"{r.shared / 1024:.0f}" for r in resources),
        "/".join(f"{o:.0%}" for o in occupied),
        f"{1000 * matrix / elements:.2f}", f"{32 * instructions / elements:.1f}",
        f"{sum(t.sectors for t in traffic) / elements:.3f}", f"{sum(t.unique_sectors for t in traffic) / elements:.3f}",
        "x".join(map(str, case.full)), *(f"{f:.1f}" for f in floors),
    ]  # fmt: skip


def main() -> None:
    if offline.emulator() is None:
        raise SystemExit("ptxrun, the emulator of compiled kernels, does not lie beside this checkout")
    rows = [HEADER, *(row(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in CASES)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    for r in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip())
    print(
        "\nCounted and calculated; nothing here was timed, and no GPU was used.\n"
        "Registers, shared memory and occupancy: compiled for sm_90, one figure for each kernel of the operator.\n"
        "Instructions of threads, matrix instructions of warps and 32-byte sectors: counted while emulating sm_80\n"
        "code at a small size, per element of [K, B, n], [K, n] or planes, of the output, or of W G of the diagonal;\n"
        "all sectors requested, and the distinct ones. The emulator has no cache: L1 or L2 may serve the others.\n"
        "Last columns: at the full size no kernel can take less, by the vendor's peaks of memory and arithmetic."
    )


if __name__ == "__main__":
    main()
