"""Certificates multiply float32 numbers in float32, whatever the process allows elsewhere."""

import pytest
import torch
from torch import backends, nn

import llr_fast
from llr_fast.precision import full_precision

SETTINGS = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)


def current():
    return [setting.fp32_precision for setting in SETTINGS]


def older():
    """The same by the older names; torch raises where the newer ones say what these cannot."""
    try:
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError as error:
        return str(error)


@pytest.fixture
def defaults():
    before = current()
    yield
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for setting, precision in zip(SETTINGS, before):
        setting.fp32_precision = precision


def by_older_names():
    torch.set_float32_matmul_precision("medium")


def by_newer_names():
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "tf32"
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "bf16"


@pytest.mark.parametrize("allow", [lambda: None, by_older_names, by_newer_names], ids=["default", "older", "newer"])
def test_settings_are_full_inside_and_as_before_behind(defaults, allow):
    allow()
    before = current(), older()
    with pytest.raises(KeyError), full_precision:
        assert not {"tf32", "bf16"} & set(current())
        assert torch.get_float32_matmul_precision() == "highest" and not backends.cudnn.allow_tf32
        raise KeyError
    assert (current(), older()) == before


class Spy(nn.Linear):
    def forward(self, x):
        self.seen = current()
        return super().forward(x)


@pytest.mark.parametrize("method", ["exact", "search"])
def test_certificates_run_in_full_precision(defaults, method):
    by_older_names()
    spy = Spy(3, 4)
    llr_fast.margin(nn.Sequential(spy, nn.ReLU()), torch.randn(2, 3), method=method)
    assert not {"tf32", "bf16"} & set(spy.seen)
