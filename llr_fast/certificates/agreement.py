"""Whether a model, as it is, computes what its linearized evaluation found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llr_fast.linearized import layers
from llr_fast.linearized.evaluation import Evaluation, Settings
from llr_fast.linearized.linearization import NoLinearization
from llr_fast.linearized.linearize import linearize
from llr_fast.outputs import reals_of
from llr_fast.process import uncompiled

_UNITS = 32  # of rounding, of the largest output: outputs mostly differ by less
_SPREAD = 16  # times what evaluations in two precisions differ by: rounding of the coarser one, however much cancels


def model_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of inputs that the model takes: that of its parameters, or of x where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


@torch.no_grad()
def plain_output(model: nn.Module, x: Tensor) -> Any:
    """What the model as it is computes at x [B, ...], a copy of which it gets in its own dtype and may write to."""
    with uncompiled:
        return model(x.detach().to(model_dtype(model, x), copy=True))


@torch.no_grad()
def check(model: nn.Module, x: Tensor, dtype: torch.dtype, output: Any, plain_output: Any) -> None:
    """Raises ValueError where the `output` of an evaluation at x [B, ...] in `dtype` is not the plain model's.

    It is not where the model asks for the type of its input or keeps a state from call to call, or where a rule is
    wrong. How large rounding gets, where it is not small, is measured by an evaluation in float32; because a state
    would look like rounding, it and the one in `dtype` are repeated and have to find the same again.
    """
    found, plain = reals_of(output), reals_of(plain_output)
    shapes, expected = ([tuple(t.shape) for t in outputs] for outputs in (found, plain))
    if shapes != expected:
        raise _refusal(f"outputs of shapes {shapes} instead of {expected}")
    plain_dtype = model_dtype(model, x)
    unit = max(torch.finfo(plain_dtype).eps, torch.finfo(dtype).eps)
    if all(_difference(a, b) <= _UNITS * unit * _largest(a) for a, b in zip(found, plain, strict=True)):
        return
    coarse = torch.finfo(torch.float32).eps
    rounded = x.detach().to(plain_dtype).float()
    others = [_outputs(model, point) for point in (rounded, rounded, x.detach().to(dtype))]
    for a, b, c, c_again, a_again in zip(found, plain, *others, strict=True):
        usable = c.isfinite() | (a == b)  # else c is beyond float32
        a, b, c, c_again, a_again = (t.double().where(usable, 0) for t in (a, b, c, c_again, a_again))
        rounding = _SPREAD * unit / coarse * _difference(a, c) + _UNITS * unit * _largest(a)
        of_fine = _UNITS * (coarse * _difference(a, c) + torch.finfo(dtype).eps * _largest(a))
        same = _difference(c, c_again) <= _UNITS * coarse * _largest(c) and _difference(a, a_again) <= of_fine
        if not (_difference(a, b) <= rounding and same):
            raise _refusal(f"a difference of {_difference(a, b):.3g} where the largest output is {_largest(a):.3g}")


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of an evaluation in the dtype of x."""
    settings = Settings(certificate=True, declared=model_dtype(model, x))
    return reals_of(linearize(x, NoLinearization(), Evaluation(model, layers.values, settings))[0])


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).where(a != b, 0).abs().max()) if a.numel() else 0.0


def _largest(a: Tensor) -> float:
    return float(a.where(a.isfinite(), 0).abs().max()) if a.numel() else 0.0


def _refusal(got: str) -> ValueError:
    return ValueError(
        f"model: expected the plain model's output from an evaluation on a tensor with derivatives, got {got}; a model "
        "that keeps a state from call to call, or asks for the type of its input, is no function to certify"
    )
