"""Launches of the Triton kernels at sizes of interest, with what each has to move and to compute at least."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable

import torch

from llr_fast.ops.roll_max_pool.reference import roll_max_pool

# Dense peaks of the SXM parts from the vendor's data sheets: bytes/s, float32 and bfloat16 operations/s.
CHIPS = {
    "A100": (2.04e12, 19.5e12, 312e12),
    "H100": (3.35e12, 67e12, 989e12),
    "H200": (4.8e12, 67e12, 989e12),
    "B200": (7.7e12, 75e12, 2250e12),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator at a size small enough to emulate, and at one of practical interest.

    sizes are [K, B, n], [K, B, I, O], [B, n, O], [B, n], [K, n] or [planes, side]; `arguments` makes what launch_<op>
    and the reference <op> take, `work` gives the elements that counts are divided by, the numbers that must move, and
    the floating-point operations; `codes` gives the bytes of other numbers.
    """

    package: str
    op: str
    small: tuple[int, ...]
    full: tuple[int, ...]
    arguments: Callable
    work: Callable
    note: str = ""
    codes: Callable = lambda *sizes: 0

    @property
    def name(self) -> str:
        return self.op.replace("_backward", " backward") + self.note

    @property
    def launcher(self) -> Callable:
        return getattr(importlib.import_module(f"llr_fast.ops.{self.package}.triton"), f"launch_{self.op}")

    @property
    def reference(self) -> Callable:
        return getattr(importlib.import_module(f"llr_fast.ops.{self.package}.reference"), self.op)

    def floor(self, dtype: torch.dtype, peaks: tuple[float, float, float]) -> float:
        """Seconds that the full size takes at least, by peaks as those of CHIPS."""
        bandwidth, fp32, bf16 = peaks
        _, numbers, operations = self.work(*self.full)
        must_move = numbers * dtype.itemsize + self.codes(*self.full)
        return max(must_move / bandwidth, operations / (bf16 if dtype == torch.bfloat16 else fp32))


def randn(dtype, *shape):
    return torch.randn(shape).to(dtype)


def symmetric(dtype, *shape):
    matrix = torch.randn(shape)
    return (matrix + matrix.mT).to(dtype)


def tangent_forward(dtype, K, B, n):
    return randn(dtype, K, B, n), randn(dtype, B, n), "sum_squares"


def tangent_backward(dtype, K, B, n):
    t, slope, stat = randn(dtype, K, B, n), randn(dtype, B, n), torch.randn(B, n)
    return t, stat, t, slope, stat, "sum_squares", False


def linear_forward(store):
    return lambda dtype, K, B, I, O: (
        randn(dtype, K, B, I), randn(dtype, B, I), randn(dtype, O, I), "sum_squares", store
    )  # fmt: skip


def linear_backward(dtype, K, B, I, O):
    t, slope, weight, out = randn(dtype, K, B, I), randn(dtype, B, I), randn(dtype, O, I), randn(dtype, K, B, O)
    return out, torch.randn(B, O), out, t, slope, weight, "sum_squares", False, True


def gram_forward(store):
    return lambda dtype, B, n, O: (symmetric(dtype, B, n, n), randn(dtype, B, n), randn(dtype, O, n), store)


def gram_backward(dtype, B, n, O):
    d_out, gram, slope, weight = (
        randn(dtype, B, O, O),
        symmetric(dtype, B, n, n),
        randn(dtype, B, n),
        randn(dtype, O, n),
    )
    return d_out, torch.randn(B, O), gram, slope, weight, True, False, True


def roll_forward(dtype, K, n):
    return randn(dtype, n), randn(dtype, K, n), None, None, 0.0, 0.0, math.inf, 1, True


def roll_backward(dtype, K, n):
    code = torch.randint(0, 3, (n,), dtype=torch.int8)
    return randn(dtype, n), randn(dtype, K, n), torch.ones(2), randn(dtype, K, n), code, None, None, 0.0, 1


WINDOWS = (3, 3, 2, 2, 1, 1, 1, 1)  # as before a ResNet


def pool_forward(dtype, planes, side):
    shape = (planes, side, side, 1)
    return randn(dtype, *shape), randn(dtype, 1, *shape), [*WINDOWS, side // 2, side // 2]


def pool_backward(dtype, planes, side):
    z, tangents, windows = pool_forward(dtype, planes, side)
    out, winning, sums, index = roll_max_pool(z, tangents, windows)
    return out, winning, sums, z, tangents, index, windows


def margins(dtype, B, n):
    return [randn(dtype, B, n).abs() for _ in range(2)], [randn(dtype, B, n).abs() for _ in range(2)]


CASES = [
    Case("tangent_activation", "tangent_activation", (16, 4, 256), (784, 64, 300), tangent_forward,
         lambda K, B, n: (K * B * n, 2 * K * B * n + 2 * B * n, 3 * K * B * n)),
    Case("tangent_activation", "tangent_activation_backward", (16, 4, 256), (784, 64, 300), tangent_backward,
         lambda K, B, n: (K * B * n, 3 * K * B * n + 3 * B * n, 4 * K * B * n)),
    Case("masked_linear", "masked_linear", (16, 8, 128, 128), (784, 64, 300, 300), linear_forward(True),
         lambda K, B, I, O: (K * B * O, K * B * (I + O) + I * O, 2 * K * B * I * O)),
    Case("masked_linear", "masked_linear", (16, 8, 128, 128), (784, 64, 300, 300), linear_forward(False),
         lambda K, B, I, O: (K * B * O, K * B * I + I * O, 2 * K * B * I * O), ", not stored"),
    Case("masked_linear", "masked_linear_backward", (16, 8, 128, 128), (784, 64, 300, 300), linear_backward,
         lambda K, B, I, O: (K * B * O, 2 * K * B * (I + O) + 2 * I * O, 4 * K * B * I * O)),
    Case("gram_linear", "gram_linear", (1, 128, 128), (64, 300, 300), gram_forward(True),
         lambda B, n, O: (B * O * O, B * (n * n + O * O + 2 * O * n), B * O * n * (2 * n + O))),
    Case("gram_linear", "gram_linear", (1, 128, 128), (64, 300, 300), gram_forward(False),
         lambda B, n, O: (B * O * n, B * n * n / 2, B * O * n * n), ", diagonal"),
    Case("gram_linear", "gram_linear_backward", (1, 128, 128), (64, 300, 300), gram_backward,
         lambda B, n, O: (B * O * O, B * (2 * n * n + O * O + 3 * O * n), B * O * n * (2 * O + 3 * n))),
    Case("margin_reduce", "margin_reduce", (2, 2048), (1, 1_150_000), margins,
         lambda B, n: (2 * B * n, 4 * B * n, 2 * B * n)),
    Case("roll_activation", "roll_activation", (1, 16384), (1, 12_845_056), roll_forward,
         lambda K, n: (K * n, 2 * (K + 1) * n, 3 * K * n + 8 * n), "", lambda K, n: n),
    Case("roll_activation", "roll_activation_backward", (1, 16384), (1, 12_845_056), roll_backward,
         lambda K, n: (K * n, (3 * K + 2) * n, 4 * K * n + 3 * n), "", lambda K, n: n),
    Case("roll_max_pool", "roll_max_pool", (16, 16), (4096, 112), pool_forward,
         lambda N, side: (N * side**2, 2.5 * N * side**2, 16 * N * side**2), "", lambda N, side: N * side**2),
    Case("roll_max_pool", "roll_max_pool_backward", (16, 16), (4096, 112), pool_backward,
         lambda N, side: (N * side**2, 4.5 * N * side**2, 54 * N * side**2), "", lambda N, side: N * side**2),
]  # fmt: skip
