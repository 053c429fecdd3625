"""Products of float32 numbers in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import backends

from llr_fast.process import Held

# Modules whose attributes have no types.
_cudnn: Any = backends.cudnn
_mkldnn: Any = backends.mkldnn
_SETTINGS = (backends.cuda.matmul, _cudnn.conv, _mkldnn.matmul, _mkldnn.conv)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    before, legacy = [setting.fp32_precision for setting in _SETTINGS], _legacy()
    try:
        # The older names set the newer ones along; the other way round torch refuses to work with the mixture.
        torch.set_float32_matmul_precision("highest")
        _cudnn.allow_tf32 = False
        _mkldnn.conv.fp32_precision = "ieee"
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            _cudnn.allow_tf32 = legacy[1]
        for setting, precision in zip(_SETTINGS, before, strict=True):
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


def _legacy() -> tuple[str, bool] | None:
    """The settings by their older names; None where the newer ones are in use, which these cannot express."""
    try:
        return torch.get_float32_matmul_precision(), _cudnn.allow_tf32
    except RuntimeError:
        return None


# Turns off what multiplies float32 numbers in fewer bits: TF32, cuDNN's default for convolutions, and bfloat16.
full_precision = Held(_full_precision)
