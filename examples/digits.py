"""What the examples share: a small ReLU network and batches of noisy digits, without a download."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def dataset(samples: int = 256) -> TensorDataset:
    """Images [samples, 1, 8, 8]: ten fixed random patterns with noise; and which pattern each shows."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 1, 8, 8, generator=generator)
    labels: Tensor = torch.randint(10, (samples,), generator=generator)
    return TensorDataset(patterns[labels] + 0.1 * torch.randn(samples, 1, 8, 8, generator=generator), labels)
