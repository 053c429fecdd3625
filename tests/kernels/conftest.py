"""Where the Triton kernels run: on CPU tensors in Triton's interpreter, if it is chosen, else on a GPU.

The interpreter is chosen when the kernels are decorated, so it needs a process of its own:
    TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

import os
import sys

import pytest
import torch

from llr_fast.dispatch import backend, implementation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    pytest.importorskip("triton")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
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


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
