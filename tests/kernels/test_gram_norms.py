"""The chain of Gram matrices by the Triton kernels, against plain torch."""

from itertools import pairwise

import pytest
import torch
from reading import NoReading
from torch import nn

import llr_fast
from llr_fast.dispatch import backend
from llr_fast.ops.gram_norms import gram_norms, gram_norms_total
from llr_fast.ops.gram_norms import triton as launchers

pytestmark = pytest.mark.triton


def values_and_gradients(name, device, widths, total, needs_slopes):
    torch.manual_seed(0)
    weights = [torch.randn(o, i).to(device).requires_grad_() for i, o in pairwise(widths)]
    slopes = [(torch.rand(3, o) - 0.3).clamp_min(0).to(device).requires_grad_(needs_slopes) for o in widths[1:-1]]
    with backend(name):
        norms = [gram_norms_total(weights, slopes)] if total else gram_norms(weights, slopes)
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


def exact_step(device):
    """One step of the exact loss, by Gram matrices, and the parameters."""
    model = nn.Sequential(nn.Linear(40, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(device)
    roll = llr_fast.ROLLLoss(model, lam=1.0, estimator="exact")
    x = torch.randn(4, 40, device=device)

    def step():
        output, penalty = roll(x)
        (output.square().sum() + penalty).backward()
        return penalty

    return step, x, list(model.parameters())


def test_no_number_is_read_back(by_triton):
    with NoReading() as mode:
        exact_step(by_triton)[0]()
    assert {"gram_norms_total", "gram_norms_total_backward"} <= mode.seen


def test_the_chain_of_a_step_is_computed_once(by_triton, monkeypatch):
    ran = []
    for name in ("launch_gram_linear", "launch_gram_linear_backward"):
        kernel = getattr(launchers, name)
        monkeypatch.setattr(launchers, name, lambda *a, run=kernel, name=name: (ran.append(name), run(*a))[1])
    exact_step(by_triton)[0]()
    assert ran == ["launch_gram_linear", "launch_gram_linear_backward"]  # of two hidden layers


@pytest.mark.gpu
def test_a_step_is_captured_in_a_graph():
    step, x, parameters = exact_step("cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled, and gradients have their memory
            step()
    torch.cuda.current_stream().wait_stream(side)
    for parameter in parameters:
        parameter.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        penalty = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    found = [penalty.clone(), *(p.grad.clone() for p in parameters)]
    for parameter in parameters:
        parameter.grad = None
    wanted = [step().detach(), *(p.grad for p in parameters)]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
