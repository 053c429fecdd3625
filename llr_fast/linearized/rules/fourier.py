"""Fourier transforms, and what complex tensors between them need. A complex tensor has no kinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llr_fast.linearized.rules.affine import linearized_of, pointwise
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor

_OF_ONE_AXIS = (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft)
_OF_TWO_AXES = (torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2)
_OF_AXES = (torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn)


@rule(*_OF_ONE_AXIS)
def _fft(
    function: Any, x: LinearizedTensor, n: int | None = None, dim: int = -1, norm: str | None = None
) -> LinearizedTensor:
    return _transformed(function, x, n, [dim], dim, norm)


@rule(*_OF_TWO_AXES)
def _fft2(
    function: Any, x: LinearizedTensor, s: Any = None, dim: Sequence[int] = (-2, -1), norm: str | None = None
) -> LinearizedTensor:
    return _transformed(function, x, s, dim, dim, norm)


@rule(*_OF_AXES)
def _fftn(
    function: Any, x: LinearizedTensor, s: Any = None, dim: Sequence[int] | None = None, norm: str | None = None
) -> LinearizedTensor:
    rank = x.value.dim()
    dims = range(rank if s is None else len(s)) if dim is None else dim
    return _transformed(function, x, s, dims if dim is not None or s is None else [-1 - d for d in dims], dim, norm)


def _transformed(
    function: Any, x: LinearizedTensor, size: Any, dims: Sequence[int], dim: Any, norm: str | None
) -> LinearizedTensor:
    """`dims` are the axes that `dim` means."""
    samples = x.samples.kept([d % x.value.dim() for d in dims], function_name(function))

    def run(t: Tensor) -> Tensor:
        found: Tensor = function(t, size, dim, norm)
        return found

    return x.replaced(run(x.value), x.linearization.mapped(run), samples)


@rule("real", "imag")
def _part(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    name = function_name(function)
    return pointwise(x, getattr(x.value, name), lambda t: getattr(t, name))


@rule("conj", "resolve_conj", "conj_physical")
def _conjugate(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    return pointwise(x, function(x.value), function)


@rule("view_as_real", "view_as_complex")
def _viewed(function: Any, x: LinearizedTensor) -> LinearizedTensor:
    samples = x.samples.kept([x.value.dim() - 1] if function is torch.view_as_complex else [], function_name(function))
    return x.replaced(function(x.value), x.linearization.mapped(function), samples)


@rule("complex")
def _complex(function: Any, real: Any, imag: Any) -> LinearizedTensor:
    x, *_ = linearized_of(real, imag)
    unit = torch.ones((), dtype=torch.complex128, device=x.value.device)
    return real * unit + imag * (1j * unit)  # type: ignore[no-any-return]
