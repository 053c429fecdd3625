"""In which precision the kernels multiply float32 numbers."""

import networks
import pytest
import torch

import llr_fast
from llr_fast.ops.gram_linear import triton as gram
from llr_fast.ops.masked_linear import triton as linear
from llr_fast.precision import full_precision

pytestmark = pytest.mark.triton


@pytest.fixture
def asked(monkeypatch):
    """The answers to all who asked, which every launch of a product does."""
    found = []

    def spy(dtype):
        found.append(right(dtype))
        return found[-1]

    right = linear.dot_precision
    for launcher in (linear, gram):
        monkeypatch.setattr(launcher, "dot_precision", spy)
    return found


@pytest.fixture(params=["highest", "high", "medium"])
def setting(request):
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def test_losses_follow_torch(setting, asked, by_triton):
    model, x = networks.build("relu")
    roll = llr_fast.ROLLLoss(model.float().to(by_triton), estimator="exact")
    roll(x.float().to(by_triton))[1].backward()
    assert set(asked) == {"ieee" if setting == "highest" else "tf32"}


@pytest.mark.parametrize("method", ["exact", "search"])
def test_certificates_are_never_cut(method, setting, asked, by_triton):
    model, x = networks.build("relu")
    llr_fast.margin(model.float().to(by_triton), x.float().to(by_triton), method=method)
    assert set(asked) <= {"ieee"}
    with full_precision:
        assert linear.dot_precision(torch.float32) == "ieee"


def test_other_types_have_no_choice(setting):
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert linear.dot_precision(dtype) == "ieee"
