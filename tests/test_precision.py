"""Certificates multiply float32 numbers in float32, whatever the process allows elsewhere."""

import precisions
import pytest
import torch
from torch import backends, nn

import llr_fast
from llr_fast.precision import full_precision


@pytest.fixture(autouse=True)
def restored():
    with precisions.restored():
        yield


ALLOW = {"default": lambda: None, "older": precisions.by_older_names, "newer": precisions.by_newer_names}


@pytest.mark.parametrize("name", ALLOW)
def test_settings_are_full_inside_and_as_before_behind(name):
    ALLOW[name]()
    before = precisions.current()
    with pytest.raises(KeyError), full_precision:
        assert not {"tf32", "bf16"} & set(precisions.current()[0])
        assert torch.get_float32_matmul_precision() == "highest" and not backends.cudnn.allow_tf32
        raise KeyError
    assert precisions.current() == before


class Spy(nn.Linear):
    def forward(self, x):
        self.seen, _ = precisions.current()
        return super().forward(x)


@pytest.mark.parametrize("method", ["exact", "search"])
def test_certificates_run_in_full_precision(method):
    precisions.by_older_names()
    spy = Spy(3, 4)
    llr_fast.margin(nn.Sequential(spy, nn.ReLU()), torch.randn(2, 3), method=method)
    assert not {"tf32", "bf16"} & set(spy.seen)
