"""The chain of Gram matrices by Triton's interpreter, against plain torch."""

import os
from itertools import pairwise

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run apart: TRITON_INTERPRET=1 python -m pytest tests/interpreter", allow_module_level=True)
pytest.importorskip("triton")

from llr_fast.backend import backend
from llr_fast.ops.gram_norms import gram_norms

pytestmark = pytest.mark.triton


def values_and_gradients(name, widths, total, needs_slopes):
    torch.manual_seed(0)
    weights = [torch.randn(o, i, requires_grad=True) for i, o in pairwise(widths)]
    slopes = [(torch.rand(3, o) - 0.3).clamp_min(0).requires_grad_(needs_slopes) for o in widths[1:-1]]
    with backend(name):
        norms = gram_norms(weights, slopes, total)
        uneven = [n * torch.arange(1, 1 + n.numel()).view_as(n) for n in norms]
        sum(n.sum() for n in (norms if total else uneven)).backward()
    return [*norms, *(t.grad for t in weights), *(t.grad for t in slopes if needs_slopes)]


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("needs_slopes", [False, True])
@pytest.mark.parametrize("widths", [(7, 5, 6, 4), (4, 3), (1, 1, 1, 2, 3)])
def test_equals_reference(widths, total, needs_slopes):
    found = values_and_gradients("triton", widths, total, needs_slopes)
    expected = values_and_gradients("reference", widths, total, needs_slopes)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
