"""What enclosures assume of the machine, checked where it can be.

Every result in float64 is a plain sum of products in any order, each product and sum rounded to nearest once, or fused.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_SIZE = 512  # of products that fast algorithms, which subtract, would compute


def check(x: Tensor, dtype: torch.dtype) -> None:
    """Raises where an enclosure cannot be made."""
    if dtype != torch.float64:
        raise ValueError(f"dtype: expected torch.float64 with rigorous=True, got {dtype}")
    if x.device.type != "cpu":
        raise ValueError(
            f"x: expected a tensor on a CPU, whose convolutions are plain sums, with rigorous=True, got {x.device}"
        )
    if not _rounds_to_nearest() or not _sums_plainly():
        raise RuntimeError(
            "rigorous=True needs float64 arithmetic that rounds plain sums to nearest, which this is not"
        )


def _rounds_to_nearest() -> bool:
    """In the mode of this moment; and numbers too small to be normal are kept."""
    one = torch.ones((), dtype=torch.float64)
    half = 2.0**-53
    nearest = bool((one + half == 1) & (-one - half == -1) & (one + 3 * half == 1 + 4 * half) & (one - half / 2 == 1))
    return nearest and bool(torch.full((), 2.0**-1060, dtype=torch.float64) * 0.5 > 0)


@functools.lru_cache(1)
def _sums_plainly() -> bool:
    """Entry by entry a product of matrices whose rows differ much in size is as exact as plain sums are."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((_SIZE, 1), 1.0, dtype=torch.float64)
    sizes[1::2] = 2.0**-40
    a, b = (torch.rand(_SIZE, _SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a * sizes, b * sizes.T
    expected = (a * 2.0 ** (40 * (sizes < 1).double())) @ (b * 2.0 ** (40 * (sizes < 1).double()).T)
    expected = expected * sizes * sizes.T  # powers of 2
    return bool(((a @ b - expected).abs() <= 2 * _SIZE * 2.0**-53 * expected).all())
