"""Affine functions of whole samples: convolution, normalisation by fixed statistics, averages, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.blocks import in_blocks, roundings
from llr_fast.linearized.local import NoBoundError, Sums, ratio, size
from llr_fast.linearized.rules.affine import constants, require_constant
from llr_fast.linearized.table import function_name, rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse
from llr_fast.linearized.torch_modes import like


def spatial_rank(function: Any) -> int:
    return int(next(c for c in reversed(function_name(function)) if c.isdigit()))


def each(value: Any, rank: int) -> list[Any]:
    """One value for each axis of space."""
    return list(value) * (rank if len(value) == 1 else 1) if isinstance(value, (list, tuple)) else [value] * rank


def require_batch(function: Any, x: LinearizedTensor) -> None:
    rank = spatial_rank(function)
    if x.value.dim() != rank + 2:
        raise refuse(x, function, f"expected a tensor of {rank + 2} axes, got shape {tuple(x.value.shape)}")
    x.samples.kept(range(1, rank + 2), function_name(function))


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolve(
    function: Any, x: LinearizedTensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> LinearizedTensor:
    require_constant(function, weight, bias)
    require_batch(function, x)
    (w, b), (for_tangents, _) = constants(x, weight, bias)
    transposed = "transpose" in function_name(function)  # its weight has the output channels elsewhere
    by_channel = None if b is None else b.view(-1, *[1] * (w.dim() - 2))
    grouped = x.value.size(1) != w.size(1)
    blocked = x.evaluation.settings.bounds and not transposed and not grouped
    if blocked:
        value = in_blocks(lambda t, weight: function(t, weight, None, *args, **kwargs), x.value, w, 1, by_channel)
    else:
        value = function(x.value, w, b, *args, **kwargs)

    def convolve(t: Tensor, weight: Tensor) -> Tensor:
        convolved: Tensor = function(t, like(weight, t), None, *args, **kwargs)
        return convolved

    def sums() -> Sums:
        by_channels = (w[0].numel(), w.numel() // max(1, w.size(1)))
        terms, back = reversed(by_channels) if transposed else by_channels
        constant = 0.0 if by_channel is None else by_channel
        ahead = roundings(w, 1) if blocked else terms
        return Sums((x.value,), terms=ahead + 1, back=max(back, terms + 1), constant=constant)

    if transposed:
        linearization = x.linearization.batched(
            lambda t: convolve(t, for_tangents), absolute=lambda t: convolve(t, size(for_tangents))
        )
    else:
        linearization = x.linearization.convolved(convolve, for_tangents)
    return x.replaced(value, linearization, sums=sums)


@rule(
    *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
)
def _average(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    require_batch(function, x)
    value = function(x.value, *args, **kwargs)

    def sums() -> Sums:
        space, windows = x.value.shape[2:], value.shape[2:]
        if "adaptive" in function_name(function):
            kernel = math.prod(math.ceil(length / count) + 1 for length, count in zip(space, windows, strict=True))
        else:
            kernel = math.prod(each(args[0] if args else kwargs["kernel_size"], len(space)))
        return Sums((x.value,), terms=kernel + 1, back=kernel + 1)

    return x.replaced(value, x.linearization.batched(lambda t: function(t, *args, **kwargs)), sums=sums)


@rule("lp_pool1d", "lp_pool2d", "lp_pool3d")
def _sum_pool(
    function: Any, x: LinearizedTensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> LinearizedTensor:
    """Torch sums entries, not their sizes, so that with p = 1 it is an average times their number."""
    if norm_type != 1:
        raise refuse(x, function, "of all norm_type= 1 is supported")
    rank = spatial_rank(function)
    average = getattr(F, f"avg_pool{rank}d")
    return average(x, kernel_size, stride, 0, ceil_mode) * math.prod(each(kernel_size, rank))  # type: ignore[no-any-return]


@rule("grid_sample")
def _grid_sample(function: Any, x: LinearizedTensor, grid: Tensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    require_constant(function, grid)
    if not isinstance(x, LinearizedTensor):
        raise refuse(grid, function, "a grid that depends on the network's input is not linear")
    x.samples.kept(range(1, x.value.dim()), "grid_sample")
    (for_value,), (for_tangents,) = constants(x, grid)
    value = function(x.value, for_value, *args, **kwargs)

    def sample(t: Tensor) -> Tensor:
        found: Tensor = function(t, for_tangents.to(t.dtype), *args, **kwargs)
        return found

    return x.replaced(value, x.linearization.mapped(sample))


@rule(torch.instance_norm, updates=True)
def _instance_norm_of_torch(
    function: Any, x: LinearizedTensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, *args: Any
) -> LinearizedTensor:
    """In the order in which torch calls what torch.nn.functional sorts."""
    use_input_stats, momentum, eps, *_ = args
    return _instance_norm(function, x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@rule(F.instance_norm, updates=True)
def _instance_norm(
    function: Any,
    x: LinearizedTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LinearizedTensor:
    if use_input_stats:
        raise refuse(x, function, "a division by statistics of the input is not linear; use running statistics")
    return _batch_norm(function, x, running_mean, running_var, weight, bias, False, momentum, eps)


@rule("interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", F.unfold, "fold")
def _resample(function: Any, x: LinearizedTensor, *args: Any, **kwargs: Any) -> LinearizedTensor:
    x.samples.kept(range(1, x.value.dim()), function_name(function))
    value = function(x.value, *args, **kwargs)
    sums = _resampled(x, value, function_name(function), kwargs.get("mode", args[2] if len(args) > 2 else "nearest"))
    return x.replaced(value, x.linearization.batched(lambda t: function(t, *args, **kwargs)), sums=sums)


def _resampled(x: LinearizedTensor, value: Tensor, name: str, mode: Any) -> Callable[[], Sums]:
    """Of functions that move entries, repeat them, or add them up; others have weights of their own, for no bound."""

    def sums() -> Sums:
        most = max(ratio(value, x.value), ratio(x.value, value))
        if name in ("interpolate", "upsample"):
            if mode != "nearest":
                raise NoBoundError
            most = x.value[0].numel() + value[0].numel()
        elif name == "fold":
            return Sums((x.value,), terms=x.value[0].numel() // max(1, value.size(1)))
        elif name == "unfold":
            most = value[0].numel() // max(1, x.value.size(1))
        return Sums(back=most if most > 1 else 0)

    return sums


@rule("batch_norm", updates=True)
def _batch_norm(
    function: Any,
    x: LinearizedTensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LinearizedTensor:
    """With fixed statistics; in training, those of the batch count as constants of the step."""
    require_constant(function, running_mean, running_var, weight, bias)
    if training and x.evaluation.settings.certificate:
        raise ValueError(
            f"batch_norm in module {x.evaluation.module.path()!r} is in training mode, where samples influence each "
            "other; certificates need model.eval()"
        )
    x.samples.kept((1,), "batch_norm")
    weight, bias = x.evaluation.owned((weight, bias))
    if training:
        if x.evaluation.finished and running_mean is not None and running_var is not None:
            running_mean, running_var = running_mean.clone(), running_var.clone()
        if x.value.numel() == x.value.size(1):
            raise ValueError(
                f"batch_norm in module {x.evaluation.module.path()!r}: expected more than one value for each channel "
                f"in training mode, got shape {tuple(x.value.shape)}"
            )
        value, _, factor = torch.native_batch_norm(
            x.value, weight, bias, running_mean, running_var, True, momentum, eps
        )
    else:
        running_mean, running_var = x.evaluation.owned((running_mean, running_var))
        (mean, running, scale, shift), _ = constants(x, running_mean, running_var, weight, bias)
        value = F.batch_norm(x.value, mean, running, scale, shift, False, momentum, eps)
        variance = running_var if running_var is not None else torch.ones_like(x.value[0, :, 0])
        factor = torch.rsqrt(variance.to(torch.promote_types(variance.dtype, x.linearization.dtype)) + eps)
    factor = factor if weight is None else factor * weight
    _, (factor,) = constants(x, factor)

    def sums() -> Sums:
        moved = 0.0 if running_mean is None else running_mean.double().abs() * factor.double().abs()
        moved = moved + (0.0 if bias is None else bias.double().abs())
        constant = moved.view(-1, *[1] * (value.dim() - 2)) if isinstance(moved, Tensor) else moved
        return Sums((x.value,), terms=10, back=10, constant=constant)

    return x.replaced(value, x.linearization.scaled(factor, value.shape), sums=sums)


@rule(torch.batch_norm, updates=True)
def _batch_norm_of_torch(
    function: Any,
    x: LinearizedTensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> LinearizedTensor:
    return _batch_norm(function, x, running_mean, running_var, weight, bias, training, momentum, eps)
