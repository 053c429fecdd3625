"""What runs here, and whether it computes what it should: python -m llr_fast doctor."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata

import torch
from tabulate import tabulate
from torch import Tensor, nn

import llr_fast
from llr_fast.certificates.strategy import Method

PACKAGES = ("torch", "triton", "numpy", "scipy", "matplotlib", "scikit-learn")
NORMS = (1, 2, math.inf)
_DUAL = {1: math.inf, 2: 2, math.inf: 1}
_MARGINS, _LOSSES = 1e-9, 1e-4  # relative tolerances; rounding, of losses in float32, is a hundredth of these or less


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the commands of `python -m llr_fast`."""
    parser = commands.add_parser(
        "doctor", help="show versions and backends, and check the results", description=__doc__
    )
    parser.set_defaults(run=lambda options: run(), resumable=False)


def run() -> None:
    """Prints versions, backends and the self-check; exits with status 1 if a check fails."""
    print(tabulate(versions(), tablefmt="plain"), end="\n\n")
    available = llr_fast.backends()
    print(tabulate([(name, reason or "available") for name, reason in available.items()], ("backend", "")), end="\n\n")
    start = time.perf_counter()
    failures, rows = 0, []
    for name, reason in available.items():
        if reason is None:
            for check, error in self_check(name):
                right = error <= (_MARGINS if "margin" in check else _LOSSES)
                failures += not right
                rows.append((name, check, f"{error:.1e}", "ok" if right else "WRONG"))
    headers = ("backend", "check against per-neuron autograd in float64", "relative error", "")
    print(tabulate(rows, headers, disable_numparse=True))
    print(f"\n{len(rows) - failures} of {len(rows)} checks passed in {time.perf_counter() - start:.1f} s")
    if failures:
        sys.exit(1)


def versions() -> list[tuple[str, str]]:
    """Name and version of everything that a result can depend on."""
    found = [("llr_fast", llr_fast.__version__), ("python", platform.python_version())]
    for package in PACKAGES:
        try:
            # Of torch its own number, which says whether it is a build for CUDA; that of the package need not.
            found.append((package, torch.__version__ if package == "torch" else metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    found.append(("platform", platform.platform()))
    threads = torch.get_num_threads()
    found.append(("cpu", f"{torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found.append(("cuda", f"{torch.version.cuda or 'not in this torch'}, device: {gpu}"))
    found.append(("LLR_FAST_BACKEND", os.environ.get("LLR_FAST_BACKEND") or "not set"))
    return found


def self_check(backend: str) -> Iterator[tuple[str, float]]:
    """For each check its name and the largest relative error under that backend; infinite where it raises."""
    device = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    methods: tuple[Method, ...] = ("exact", "search")
    for name, (model, x) in examples().items():
        layers = [oracle(model, sample) for sample in x.split(1)]
        network, inputs = model.float().to(device), x.float().to(device)
        with llr_fast.backend(backend):
            for p in NORMS:
                expected = torch.stack([smallest_ratio(sample, _DUAL[p]) for sample in layers])
                for method in methods:
                    yield f"{name}: l{p} margin, {method}", _margin_error(network, inputs, p, method, expected)
            yield f"{name}: ROLL", _loss_error(network, inputs, layers)


def examples() -> dict[str, tuple[nn.Sequential, Tensor]]:
    """Small networks and inputs, float64, whose values float32 holds exactly."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.LeakyReLU(0.1), nn.Linear(32, 4))
        image = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(36, 16), nn.ReLU6(), nn.Linear(16, 4)),
        )
        found = {"dense": (dense, torch.randn(4, 20)), "convolution": (image, torch.randn(4, 1, 8, 8))}
    return {name: (model.double().eval(), x.double()) for name, (model, x) in found.items()}


def oracle(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Distances to the nearest kink [n] and gradients [n, D] of each layer for one sample, by back-propagation."""
    x = x.clone().requires_grad_()
    layers, tensor = [], x
    with torch.enable_grad():
        for module in model:
            neurons = _neurons(module, tensor)
            if neurons is not None:
                z, distance = neurons
                rows = [torch.autograd.grad(entry, x, retain_graph=True)[0].flatten() for entry in z.flatten()]
                layers.append((distance.detach().flatten(), torch.stack(rows)))
            tensor = module(tensor)
    return layers


def _neurons(module: nn.Module, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """The neurons of an activation or a 2 x 2 max-pooling of `tensor`, and their distances to the nearest kink."""
    if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
        return tensor, tensor.abs()
    if isinstance(module, nn.ReLU6):
        return tensor, torch.minimum(tensor.abs(), (tensor - 6).abs())
    if isinstance(module, nn.MaxPool2d):
        entries = tensor.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2).flatten(0, -2)
        ranked = entries.sort(1, descending=True).values
        lead = ranked[:, :1] - ranked[:, 1:]
        return lead, lead
    return None


def smallest_ratio(layers: list[tuple[Tensor, Tensor]], q: float) -> Tensor:
    """Eq. 3 in closed form: the least distance over gradient norm, of neurons whose gradient is not zero."""
    distance = torch.cat([layer[0] for layer in layers])
    norm = torch.cat([torch.linalg.vector_norm(layer[1], q, dim=1) for layer in layers])
    return (distance[norm > 0] / norm[norm > 0]).min()


def roll(layers: list[tuple[Tensor, Tensor]]) -> float:
    """Eq. 9 for one sample with lambda = C = 1 and gamma = 100."""
    terms = [gradient.square().sum(1) + (1 - distance).clamp_min(0) for distance, gradient in layers]
    return torch.cat(terms).mean().item()


def _margin_error(model: nn.Module, x: Tensor, p: float, method: Method, expected: Tensor) -> float:
    generator = torch.Generator(x.device).manual_seed(0)
    try:
        found = llr_fast.margin(model, x, p, method=method, generator=generator).value.cpu()
    except Exception as error:
        print(f"l{p} margin, {method}: {type(error).__name__}: {error}", file=sys.stderr)
        return math.inf
    return ((found - expected).abs() / expected).max().item()


def _loss_error(model: nn.Module, x: Tensor, layers: list[list[tuple[Tensor, Tensor]]]) -> float:
    expected = sum(roll(sample) for sample in layers) / len(layers)
    try:
        penalty = llr_fast.ROLLLoss(model, estimator="exact")(x)[1].item()
    except Exception as error:
        print(f"ROLL: {type(error).__name__}: {error}", file=sys.stderr)
        return math.inf
    return float(abs(penalty - expected) / expected)
