"""Peak memory of one training step, in a process of its own: python -m benches.memory NETWORK SIZE PROVIDER DEVICE."""

from __future__ import annotations

import gc
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benches import networks
from benches.providers import CROSS_ENTROPY, Provider, cross_entropy, roll_penalties, step

PROCESS = Path("/proc/self")  # of Linux; ru_maxrss would count the parent's memory as well


def build(network: str, size: int) -> tuple[nn.Sequential, Tensor]:
    """A dense network on `size` inputs, or a convolutional one on colour images of that height and width."""
    if network == "dense":
        return networks.mlp(size, 100, 100, 100, 10), torch.randn(16, size)
    return networks.convnet(3, size), torch.randn(1, 3, size, size)


def training_step(model: nn.Sequential, x: Tensor, provider: str) -> Provider:
    alternatives = ("paper_passes", "layer_by_layer")
    losses = roll_penalties(model, x, 100, alternatives) | {CROSS_ENTROPY: cross_entropy(model, x)}
    return step(model, losses[provider])


def megabytes(network: str, size: int, provider: str, device: str) -> float:
    """The most that the step holds at a time beyond the model and its input; measured in another process."""
    command = [sys.executable, "-m", "benches.memory", network, str(size), provider, device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(call: Provider, device: str) -> int:
    """Bytes by which memory rises during the call."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    (PROCESS / "clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _high_water()
    call()
    return _high_water() - before


def peak_of_tensors(call: Provider, device: str) -> int:
    """Bytes of tensors at a time in a repeated call, beyond those that are there before."""
    call()  # gradients, and what is allocated once
    if device == "cuda":
        return peak(call, device)
    gc.collect()  # garbage of before would count as freed by the call
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [(e.start_ns(), e.nbytes()) for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(events, key=lambda event: event[0])))


def _high_water() -> int:
    fields = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def main(network: str, size: str, provider: str, device: str) -> None:
    torch.manual_seed(1)
    for current in (4, int(size)):  # a small step first, for what is allocated once in a process
        model, x = (part.to(device) for part in build(network, current))
        rise = peak(training_step(model, x, provider), device)
    print(rise / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
