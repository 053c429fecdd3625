"""Where the Triton kernels run: on CPU tensors in Triton's interpreter, if it is chosen, else on a GPU.

The interpreter is chosen when the kernels are decorated, so it needs a process of its own:
    TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

import os
import sys

import pytest
import torch

from llr_fast.dispatch import backend, implementation
from llr_fast.losses import estimators

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    pytest.importorskip("triton")
    return request.param


@pytest.fixture
def by_triton(device):
    with backend("triton"):
        yield device


@pytest.fixture
def ran(monkeypatch):
    """The implementations that operators choose, in order: equal results cannot tell a fallback from a kernel."""
    chosen = []

    def choose(op, device, dtype=None):
        chosen.append(implementation(op, device, dtype))
        return chosen[-1]

    monkeypatch.setattr(sys.modules["llr_fast.dispatch"], "implementation", choose)
    return chosen


@pytest.fixture
def same_directions(monkeypatch):
    """Random signs are drawn on the CPU, for generators differ between devices."""
    draw = torch.randint

    def randint(*args, device, generator, **named):
        return draw(*args, **named).to(device)

    monkeypatch.setattr(estimators.torch, "randint", randint)


@pytest.fixture(autouse=True)
def gpu(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
