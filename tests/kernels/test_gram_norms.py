"""The chain of Gram matrices by the Triton kernels, against plain torch."""

from itertools import pairwise

import pytest
import torch

from llr_fast.dispatch import backend
from llr_fast.ops.gram_norms import gram_norms

pytestmark = pytest.mark.triton


def values_and_gradients(name, device, widths, total, needs_slopes):
    torch.manual_seed(0)
    weights = [torch.randn(o, i).to(device).requires_grad_() for i, o in pairwise(widths)]
    slopes = [(torch.rand(3, o) - 0.3).clamp_min(0).to(device).requires_grad_(needs_slopes) for o in widths[1:-1]]
    with backend(name):
        norms = gram_norms(weights, slopes, total)
        uneven = [n * torch.arange(1, 1 + n.numel(), device=device).view_as(n) for n in norms]
        sum(n.sum() for n in (norms if total else uneven)).backward()
    return [*norms, *(t.grad for t in weights), *(t.grad for t in slopes if needs_slopes)]


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("needs_slopes", [False, True])
@pytest.mark.parametrize("widths", [(7, 5, 6, 4), (4, 3), (1, 1, 1, 2, 3)])
def test_equals_reference(widths, total, needs_slopes, device):
    found = values_and_gradients("triton", device, widths, total, needs_slopes)
    expected = values_and_gradients("reference", device, widths, total, needs_slopes)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
