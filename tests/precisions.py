"""How the process multiplies float32 numbers: by torch's newer and older names for the same settings."""

import contextlib

import torch
from torch import backends

SETTINGS = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)


def current():
    """By the newer names, and by the older ones, or None where these cannot say it."""
    return [setting.fp32_precision for setting in SETTINGS], _older()


def _older():
    try:
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        return None


@contextlib.contextmanager
def restored():
    """Afterwards they are what they were, by default, before."""
    before, _ = current()
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
