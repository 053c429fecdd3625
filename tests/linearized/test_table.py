"""Every function that has a rule: what is found of a batch is what is found of its samples one by one.

A batch is refused where a function mixes samples, and its example says so. A new rule needs an example here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import compare
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr_fast
import llr_fast.linearized.rules  # fills the table, which is empty until a model is evaluated
from llr_fast.linearized.table import TABLE, function_name

DTYPE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
B = 3


def const(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR).to(DTYPE)  # float32 numbers


@dataclass
class Example:
    """`call(function, y, each)` for y [B, *shape]; `each` takes the rows of y from constants of all samples."""

    call: Callable[[Any, Tensor, Callable[[Tensor], Tensor]], Any]
    shape: tuple = (2, 3)
    refused: type[Exception] | None = None  # by this error, which mentions the function's name
    named: str | None = None  # ... or, where it is computed by another function, that one's
    in_training: bool = True  # where it is refused: whether losses refuse it too
    only: tuple = ()  # these functions of the name
    bounded: bool = True  # whether rounding is bounded, where most of the function's examples say so
    autograd: bool = True  # whether it differentiates what the function computes


V, M, SIGNAL, IMAGE, VOLUME = (4,), (2, 3), (2, 6), (2, 4, 4), (2, 2, 3, 2)
C44, C42, C33 = const(4, 4), const(4, 3), const(3, 3)
LAYER = (True, 1, 0.0, False, False)  # with biases, one, no dropout, not training, not bidirectional
FILTER = torch.complex(const(2), const(2))
W_RNN = [C42, C44, C44[0], C44[1]]
GRID, GRIDS = const(1, 3, 2, 2) / 2, const(B, 3, 2, 2) / 2
C, C3, CV, C32, C43, CB = const(2, 3), const(3), const(4), const(3, 2), const(4, 3), const(B, 2, 3)
CONDITION, BYTES, MASKS = C > 0, (C > 0).to(torch.uint8), CB > 0
INDEX, INDICES = torch.tensor([[1, 0, 1, 2]]), torch.tensor([[0, 2, 1], [2, 2, 0], [1, 0, 2]])
ROWS3, MANY = INDICES[:, None].expand(-1, 2, 3), torch.tensor([0, 2, 0])
SPARSE = (C32 * (C32 > 0)).T.to_sparse()
PICK, TWICE = torch.tensor([2, 0]), torch.tensor([1, 2, 2])
W1, W2, W3 = const(3, 2, 3), const(3, 2, 2, 2), const(2, 2, 1, 2, 1)


def example(call: Callable, shape: tuple = M, **options: Any) -> Example:
    return Example(lambda f, y, each: call(f, y), shape, **options)


def each_sample(call: Callable, shape: tuple = M, **options: Any) -> Example:
    return Example(call, shape, **options)


def written(set_item: Callable, target: Tensor, index: Any, value: Any) -> Tensor:
    set_item(target, index, value)
    return target


def same(*names: str, examples: list[Example], bounded: bool = True) -> dict[str, list[Example]]:
    return dict.fromkeys(names, examples if bounded else unbounded(*examples))


def unbounded(*examples: Example) -> list[Example]:
    return [replace(e, bounded=False) for e in examples]


def pooled(rank: int, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return getattr(F, f"max_pool{rank}d")(y, size, return_indices=True)


ALONE = [example(lambda f, y: f(y))]
WITH_CONSTANTS = [
    example(lambda f, y: f(y, C)),
    example(lambda f, y: f(y, 0.75)),
    each_sample(lambda f, y, each: f(y, each(CB))),
]
TWO = [
    *WITH_CONSTANTS,
    example(lambda f, y: f(y, y.flip(2) * 0.5)),
    example(lambda f, y: f(y, y[:, :1] * 0.5)),
    example(lambda f, y: f(y.transpose(0, 1), y.transpose(0, 1).flip(0) * 2)),
]
MIXES = {"refused": llr_fast.MixedSamplesError}
NO_RULE = {"refused": llr_fast.NotPiecewiseLinearError}
ROUNDS = NO_RULE | {"in_training": False}
PRODUCTS = [
    example(lambda f, y: f(y, C32)),
    example(lambda f, y: f(y, C3)),
    each_sample(lambda f, y, each: f(y, each(CB).mT)),
    example(lambda f, y: f(y.permute(1, 0, 2), C32)),
]
WINDOWS = {
    1: [example(lambda f, y: f(y, 2), SIGNAL), example(lambda f, y: f(y, 3, 2, 1), SIGNAL)],
    2: [example(lambda f, y: f(y, 2), IMAGE), example(lambda f, y: f(y, (3, 2), 2, 1), IMAGE)],
    3: [example(lambda f, y: f(y, (1, 2, 2)), VOLUME), example(lambda f, y: f(y, 2, 1, 1), VOLUME)],
}
SHAPES = {1: SIGNAL, 2: IMAGE, 3: VOLUME}
SIZES = {1: 4, 2: (3, 2), 3: (1, 2, 2)}
WEIGHTS = {1: W1, 2: W2, 3: W3}
SCALES, ZEROS = torch.tensor([0.5, 0.25]), torch.tensor([0, 2], dtype=torch.int32)
REMAINDERS = (torch.remainder, Tensor.remainder)
NOT_REMAINDERS = (torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__)
WITH_PLACES = (torch.adaptive_max_pool1d, torch._C._nn.adaptive_max_pool2d, torch._C._nn.adaptive_max_pool3d)
TRANSPOSED = {1: const(2, 3, 3), 2: const(2, 2, 2, 2), 3: const(2, 2, 1, 2, 1)}

EXAMPLES: dict[str, list[Example]] = {
    # sums and products
    **same("add", "__add__", "__radd__", "sub", "subtract", "__sub__", "__rsub__", "rsub", examples=TWO),
    **same("add_", "__iadd__", "sub_", "subtract_", "__isub__", examples=[*WITH_CONSTANTS, TWO[3], TWO[4]]),
    **same("mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", examples=WITH_CONSTANTS),
    **same("__truediv__", "__div__", "mul_", "multiply_", "__imul__", "div_", "divide_", examples=WITH_CONSTANTS),
    **same("true_divide_", "__idiv__", examples=WITH_CONSTANTS),
    **same("addcmul", "addcmul_", "addcdiv", "addcdiv_", examples=[
        example(lambda f, y: f(y.clone(), C, C + 3)),
        each_sample(lambda f, y, each: f(y.clone(), y.flip(2), each(CB), value=0.5)),
    ]),
    **same("lerp", "lerp_", examples=[
        example(lambda f, y: f(y.clone(), C, 0.25)),
        each_sample(lambda f, y, each: f(y.clone(), y.flip(2), each(CB))),
    ]),
    **same("nan_to_num", "nan_to_num_", examples=[
        example(lambda f, y: f(y.clone())),
        example(lambda f, y: f(y.masked_fill(CONDITION, -math.inf), 0.0, None, 0.5)),
    ]),
    **same("neg", "negative", "neg_", "negative_", "positive", "clone", examples=ALONE),
    "contiguous": ALONE,
    "detach": [example(lambda f, y: f(y), autograd=False)],
    "where": [
        *[example(lambda f, y: f(CONDITION, y, 2 * y), only=(torch.where,))],
        *[example(lambda f, y: f(BYTES, C, y), only=(torch.where,))],
        *[each_sample(lambda f, y, each: f(each(MASKS), y, each(CB)), only=(torch.where,))],
        *[each_sample(lambda f, y, each: f(each(MASKS), 0.5, y), only=(torch.where,))],
        *[example(lambda f, y: f(y, CONDITION, 2 * y), only=(Tensor.where,))],
        *[each_sample(lambda f, y, each: f(y, each(MASKS), each(CB)), only=(Tensor.where,))],
    ],
    **same(
        *("masked_fill", "masked_fill_"),
        examples=[
            example(lambda f, y: f(y, CONDITION, -2.0)),
            each_sample(lambda f, y, each: f(y, each(MASKS), 0.5)),
        ],
    ),
    **same(
        *("dropout", "dropout_", "alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
        examples=[example(lambda f, y: f(y, 0.5, False))],
    ),
    **{f"dropout{n}d": [example(lambda f, y: f(y, 0.5, False), SHAPES[n])] for n in SHAPES},
    "linear": [
        example(lambda f, y: f(y, C43, CV)),
        example(lambda f, y: f(y.transpose(0, 1), C43)),
        example(lambda f, y: f(y.T, const(2, len(y))), V, **MIXES),
    ],
    **same(*("matmul", "__matmul__"), examples=PRODUCTS),
    "__rmatmul__": [
        example(lambda f, y: f(y, C32)),
        each_sample(lambda f, y, each: f(y, each(CB).mT)),
    ],
    "mm": [
        example(lambda f, y: f(y, C43), V),
        example(lambda f, y: f(const(2, len(y)), y), V, **MIXES, named="matmul"),
    ],
    "bmm": [
        each_sample(lambda f, y, each: f(y, each(CB).mT)),
        each_sample(lambda f, y, each: f(each(CB).mT, y)),
    ],
    "mv": [
        example(lambda f, y: f(y, CV), V),
        example(lambda f, y: f(y.t(), const(len(y))), V, **MIXES, named="matmul"),
    ],
    "_sparse_mm": [
        example(lambda f, y: f(SPARSE, y.flatten(1).T), (3,)),
        example(lambda f, y: f(torch.ones(B, B, dtype=DTYPE).to_sparse(), y), (3,), **MIXES, named="index_add"),
    ],
    "tensordot": [
        example(lambda f, y: f(y, C32, 1)),
        example(lambda f, y: f(C43, y, ([1], [2]))),
        example(lambda f, y: f(y, const(len(y), 2), ([0], [0])), **MIXES, named="einsum"),
    ],
    "addmm": [
        example(lambda f, y: f(C3, y, C43), V),
        example(lambda f, y: f(y, torch.ones(len(y), 2, dtype=DTYPE), C43.T[:2], beta=2, alpha=0.5), V, bounded=False),
    ],
    "addmv": [each_sample(lambda f, y, each: f(each(C3), y, CV), V)],
    "baddbmm": [
        each_sample(lambda f, y, each: f(C[:, :2], y, each(CB).mT)),
        each_sample(lambda f, y, each: f(y, each(CB)[:, :, :2], C[:, :].expand(len(y), 2, 3), beta=0.5), bounded=False),
    ],
    "einsum": [
        example(lambda f, y: f("bij,jk->bik", y, C32)),
        example(lambda f, y: f("bij->jbi", y)),
        each_sample(lambda f, y, each: f("bij,bij->bi", y, each(CB))),
        each_sample(lambda f, y, each: f("...ij,...kj->...ik", y, each(CB))),
        each_sample(lambda f, y, each: f("bij,bij->bi", (y > 0.1).double(), each(CB)) * y[:, :, 0], bounded=False),
        example(lambda f, y: f("bij,bij->bi", (y > 0.1).double(), y)),
        example(lambda f, y: f("bij,cij->bi", y, (y > 0.1).double()), **MIXES),
        example(lambda f, y: f("bij->ij", y), **MIXES),
        example(lambda f, y: f("bij,cb->cij", y, const(2, len(y))), **MIXES),
    ],
    # convolutions, averages, resampling
    **{f"conv{n}d": [example(lambda f, y, n=n: f(y, WEIGHTS[n], padding=1), SHAPES[n])] for n in SHAPES},
    **{f"conv_transpose{n}d": [example(lambda f, y, n=n: f(y, TRANSPOSED[n]), SHAPES[n])] for n in SHAPES},
    **{f"avg_pool{n}d": WINDOWS[n] for n in SHAPES},
    **{f"adaptive_avg_pool{n}d": [example(lambda f, y, n=n: f(y, SIZES[n]), SHAPES[n])] for n in SHAPES},
    "interpolate": [
        example(lambda f, y: f(y, size=(3, 6), mode="bilinear"), IMAGE),
        example(lambda f, y: f(y, scale_factor=2), SIGNAL),
    ],
    "upsample": [example(lambda f, y: f(y, scale_factor=2), (2, 2, 2))],
    "pixel_shuffle": [example(lambda f, y: f(y, 2), (4, 2, 2)), example(lambda f, y: f(y, 2), (2, 4, 1, 2))],
    "pixel_unshuffle": [example(lambda f, y: f(y, 2), (1, 4, 2))],
    "channel_shuffle": [example(lambda f, y: f(y, 2), (4, 2, 1))],
    "unfold": [
        example(lambda f, y: f(y, 2), (2, 3, 2), only=(F.unfold,)),
        example(lambda f, y: f(y, 2, 2, 1), only=(Tensor.unfold,)),
        example(lambda f, y: f(y, 0, 2, 1), only=(Tensor.unfold,), **MIXES),
    ],
    **{f"lp_pool{n}d": [
        example(lambda f, y: f(y, 1, 2), SHAPES[n]),
        example(lambda f, y: f(y, 1.0, 2, 1, True), SHAPES[n]),
        example(lambda f, y: f(y, 2, 2), SHAPES[n], **NO_RULE),
    ] for n in SHAPES},
    "grid_sample": [
        example(lambda f, y: f(y, GRID.expand(len(y), -1, -1, -1), align_corners=False), IMAGE),
        each_sample(lambda f, y, each: f(y, each(GRIDS), "nearest", "border", True), IMAGE),
        example(lambda f, y: f(y, y[..., :2]), IMAGE, **NO_RULE),
    ],
    "instance_norm": [
        example(
            lambda f, y: f(y, C3[:2], C3[1:].square(), C3[:2], CV[:2], False),
            SIGNAL,
            only=(F.instance_norm,),
        ),
        example(
            lambda f, y: f(y, C3[:2], CV[:2], C3[1:], CV[2:].square(), False, 0.1, 1e-5, False),
            SIGNAL,
            only=(torch.instance_norm,),
        ),
        example(lambda f, y: f(y), SIGNAL, only=(F.instance_norm,), **NO_RULE),
    ],
    "rnn_relu_cell": [
        example(lambda f, y: f(y[:, 0], y[:, 1], C44, C44.T, CV, C44[0]), (2, 4), autograd=False),
        example(lambda f, y: f(y[:, 0], y.new_zeros(len(y), 4), C43, C44), autograd=False),
        example(lambda f, y: f(y[:, 0], y[:, 1], y[:, :3].mean(0), C33), **MIXES, named="mean"),
    ],
    "rnn_relu": [
        example(lambda f, y: f(y, y.new_zeros(1, len(y), 4), [C43, C44], False, *LAYER[1:], True), autograd=False),
        example(
            lambda f, y: f(y.mT.permute(2, 0, 1), y[None, :, 0, :1].expand(1, -1, 4), W_RNN, *LAYER, False),
            autograd=False,
        ),
    ],
    "fold": [example(lambda f, y: f(y, (3, 3), (2, 2)), (4, 4))],
    "batch_norm": [
        example(lambda f, y: f(y, C3[:2], C3[1:].square(), C3[:2], CV[:2]), SIGNAL, only=(F.batch_norm,)),
        example(
            lambda f, y: f(y, C3[:2], CV[:2], C3[1:], CV[2:].square(), False, 0.1, 1e-5, False),
            SIGNAL,
            only=(torch.batch_norm,),
        ),
        example(lambda f, y: f(y, C3[:1], C3[1:2].square()), (1,), only=(F.batch_norm,)),
    ],
    # piecewise-linear functions
    **same("relu", "relu_", "relu6", "relu6_", "abs", "abs_", "absolute", "absolute_", examples=ALONE),
    **same("hardsigmoid", "hardshrink", "softshrink", "leaky_relu", "leaky_relu_", examples=ALONE),
    **same("rrelu", "rrelu_", examples=[example(lambda f, y: f(y, 0.25, 0.5, False))]),
    "prelu": [example(lambda f, y: f(y, C3[:2])), example(lambda f, y: f(y, C3[:1]))],
    **same("hardtanh", "hardtanh_", examples=[example(lambda f, y: f(y, -0.25, 0.5))]),
    **same(
        *("clamp", "clamp_", "clip", "clip_"),
        examples=[
            example(lambda f, y: f(y, -0.25, 0.5)),
            example(lambda f, y: f(y, max=0.5)),
            example(lambda f, y: f(y, C), autograd=False),
            each_sample(lambda f, y, each: f(y, each(CB), each(CB) + 1), autograd=False),
        ],
    ),
    **same(
        *("clamp_min", "clamp_min_", "clamp_max", "clamp_max_"),
        examples=[
            example(lambda f, y: f(y, 0.25)),
            each_sample(lambda f, y, each: f(y, each(CB)), autograd=False),
        ],
    ),
    **same("threshold", "threshold_", "_threshold", examples=[example(lambda f, y: f(y, 0.25, -0.5))]),
    **same("maximum", "minimum", "fmax", "fmin", examples=[TWO[0], *TWO[2:]]),
    # comparisons and steps
    **same(
        *("gt", "greater", "ge", "greater_equal", "lt", "less", "le", "less_equal", "eq", "__eq__", "ne", "not_equal"),
        examples=[
            example(lambda f, y: y * f(y, 0.25)),
            example(lambda f, y: y * f(y, C)),
            each_sample(lambda f, y, each: y * f(y, each(CB))),
            example(lambda f, y: y * f(y, y[:, :1] * 0.5)),
            example(lambda f, y: y * f(y.transpose(0, 1), C[:, None]).transpose(0, 1)),
            example(lambda f, y: y * f(y.argmax(2, True), 1)),
            example(lambda f, y: y * f(y, 0.25).t(), (3,), named="broadcasting", **MIXES),
        ],
    ),
    **same(
        *("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"),
        *("__and__", "__or__", "__xor__"),
        *("logical_and_", "logical_or_", "logical_xor_", "bitwise_and_", "bitwise_or_", "bitwise_xor_"),
        *("__iand__", "__ior__", "__ixor__"),
        examples=[
            example(lambda f, y: y * f(y > 0, y > y[:, :1] * 0.5)),
            each_sample(lambda f, y, each: y * f(y > 0, each(MASKS))),
            example(lambda f, y: y * f(y > 0, (y > 0).transpose(0, 1)), (3, 1), **MIXES),
            example(lambda f, y: f(y, y), **NO_RULE),
        ],
    ),
    **same(
        *("logical_not", "bitwise_not", "__invert__", "logical_not_", "bitwise_not_"),
        examples=[example(lambda f, y: y * f(y < 0.25)), example(lambda f, y: f(y), **NO_RULE)],
    ),
    **same(
        *("any", "all"),
        examples=[
            example(lambda f, y: y * f(y > 0, 2, True)),
            example(lambda f, y: y[:, 0] * f(y > 0, 1)),
            example(lambda f, y: y * f(y > 0, 0), **MIXES, named="sum"),
            example(lambda f, y: f(y, 1), **NO_RULE),
        ],
    ),
    **same("sign", "sign_", "sgn", "sgn_", examples=[example(lambda f, y: y * f(y.clone()))]),
    "signbit": [example(lambda f, y: y * f(y))],
    **same("heaviside", "heaviside_", examples=[
        example(lambda f, y: y * f(y.clone(), C), autograd=False),
        each_sample(lambda f, y, each: y * f(y.clone(), each(CB)), autograd=False),
    ]),
    **same("round", "round_", "floor", "floor_", "ceil", "ceil_", examples=[
        example(lambda f, y: y * f(2 * y)),
        example(lambda f, y: y * f(y.argmax(2, True) * 0.4), bounded=False),
    ]),
    **same("floor_divide", "__floordiv__", "remainder", examples=[
        example(lambda f, y: y * f(y, 0.75), autograd=False, only=NOT_REMAINDERS),
        example(lambda f, y: f(y, C), autograd=False, only=REMAINDERS),
        example(lambda f, y: y * f(y.argmax(2, True), 2)),
        example(lambda f, y: y * f(y.argmax(2, True) * 0.75, 0.5), bounded=False),
    ]),
    "fake_quantize_per_tensor_affine": [example(lambda f, y: y * f(y, 0.25, 3, 0, 7), autograd=False)],
    "fake_quantize_per_channel_affine": [
        example(lambda f, y: y * f(y, SCALES, ZEROS, 1, -3, 4), autograd=False),
        example(lambda f, y: y * f(y.transpose(0, 1), SCALES, ZEROS, 0, -3, 4).transpose(0, 1), autograd=False),
    ],
    **same("isfinite", "isinf", "isnan", "isposinf", "isneginf", examples=[
        example(lambda f, y: y * f(y)),
        example(lambda f, y: torch.where(f(y.masked_fill(CONDITION, -math.inf)), 0.5, y)),
    ]),
    "one_hot": [example(lambda f, y: y * f(y.argmax(2), 3)), example(lambda f, y: y * f(y, 3), **NO_RULE)],
    # functions of the order of entries
    **same(
        *("max", "min"),
        examples=[
            *[TWO[0], *TWO[2:]],
            example(lambda f, y: f(y, 2)[0]),
            example(lambda f, y: f(y.transpose(0, 1), dim=0, keepdim=True)[0]),
            example(lambda f, y: f(y, 0)[0], **MIXES),
            example(lambda f, y: f(y), **MIXES),
        ],
    ),
    **same(
        *("amax", "amin"),
        examples=[
            example(lambda f, y: f(y, (1, 2))),
            example(lambda f, y: f(y.flatten(0, 1), 1)),
            example(lambda f, y: f(y, 0), **MIXES),
            example(lambda f, y: f(y), **MIXES),
        ],
    ),
    "aminmax": [example(lambda f, y: f(y, dim=2), autograd=False), example(lambda f, y: f(y), **MIXES, named="amin")],
    **same("argmax", "argmin", examples=[example(lambda f, y: y * f(y, 2, True)), example(lambda f, y: f(y), **MIXES)]),
    **same(
        *("sort", "cummax", "cummin"),
        examples=[
            example(lambda f, y: f(y, dim=2)[0]),
            example(lambda f, y: f(y.transpose(0, 1), dim=0)[0]),
            example(lambda f, y: f(y, dim=0)[0], **MIXES),
        ],
    ),
    "argsort": [example(lambda f, y: y * f(y, 2)), example(lambda f, y: y * f(y, 0), **MIXES, named="sort")],
    "msort": [example(lambda f, y: f(y.transpose(0, 1))), example(lambda f, y: f(y), **MIXES, named="sort")],
    **same(
        *("topk", "kthvalue"),
        examples=[
            example(lambda f, y: f(y, 2)[0]),
            example(lambda f, y: f(y.transpose(0, 2), 2, 0)[0]),
            example(lambda f, y: f(y, 1, 0)[0], **MIXES),
        ],
    ),
    "median": [
        example(lambda f, y: f(y, 2)[0]),
        example(lambda f, y: f(y, 1)[0]),
        example(lambda f, y: f(y, 0)[0], **MIXES),
        example(lambda f, y: f(y), **MIXES),
    ],
    **same(
        *("norm", "linalg_vector_norm", "linalg_norm"),
        examples=[
            example(lambda f, y: f(y, 1, dim=2)),
            example(lambda f, y: f(y, math.inf, dim=1)),
            example(lambda f, y: f(y, 2, dim=2), **NO_RULE),
            example(lambda f, y: f(y, 1, dim=0), **MIXES, named="sum"),
            example(lambda f, y: f(y, math.inf, dim=0), **MIXES, named="amax"),
        ],
    ),
    **{f"max_pool{n}d": WINDOWS[n] for n in SHAPES},
    **{
        f"adaptive_max_pool{n}d": [
            example(lambda f, y, n=n: f(y, SIZES[n]), SHAPES[n], only=(getattr(F, f"adaptive_max_pool{n}d"),)),
            example(lambda f, y, n=n: f(y, SIZES[n])[0], SHAPES[n], only=WITH_PLACES),
        ]
        for n in SHAPES
    },
    **{
        f"adaptive_max_pool{n}d_with_indices": [example(lambda f, y, n=n: f(y, SIZES[n])[0], SHAPES[n])]
        for n in SHAPES
    },
    **{f"max_pool{n}d_with_indices": [example(lambda f, y: f(y, 2, 1)[0], SHAPES[n])] for n in SHAPES},
    **{f"max_unpool{n}d": [
        example(lambda f, y, n=n: f(*pooled(n, y, 2), 2, output_size=y.shape), SHAPES[n]),
        example(lambda f, y, n=n: f(*pooled(n, y, 2), 2), (2, 2, 2, 2)[: n + 1]),
    ] for n in SHAPES},
    # Fourier transforms
    **same("fft_rfft", "fft_fft", "fft_ifft", examples=[
        example(lambda f, y: f(y).imag[..., 1:]),
        example(lambda f, y: torch.view_as_real(f(y, 4, 1, "ortho").resolve_conj())),
        example(lambda f, y: f(y, None, 0).real, **MIXES),
    ], bounded=False),
    **same("fft_irfft", examples=[
        example(lambda f, y: f(torch.fft.rfft(y) * FILTER, 3)),
        example(lambda f, y: f(torch.complex(y, 2 * y), dim=1)),
        example(lambda f, y: f(y, None, 0), **MIXES),
    ], bounded=False),
    **same("fft_rfft2", "fft_fft2", "fft_ifft2", "fft_rfftn", "fft_fftn", "fft_ifftn", examples=[
        example(lambda f, y: f(y, dim=(1, 2)).real),
        example(lambda f, y: f(y, (2, 4)).real),
        example(lambda f, y: f(y, dim=(0, 1)).real, **MIXES),
    ], bounded=False),
    **same("fft_irfft2", "fft_irfftn", examples=[example(lambda f, y: f(y, dim=(1, 2)))], bounded=False),
    **same("real", "imag", examples=[example(lambda f, y: f(torch.fft.rfft(y))[..., 1:2])], bounded=False),
    **same("conj", "conj_physical", "resolve_conj", examples=[
        example(lambda f, y: f(torch.fft.fft(y).conj()).imag[..., 1:]),
    ], bounded=False),
    "view_as_real": unbounded(example(lambda f, y: f(torch.fft.rfft(y)))),
    "view_as_complex": unbounded(example(lambda f, y: f(y).real, (3, 2))),
    "complex": unbounded(example(lambda f, y: f(y, y.flip(2)).imag + f(C, y).real)),
    # operators of exported programs
    "slice.Tensor": [
        example(lambda f, y: f(y, 2, 1)),
        example(lambda f, y: f(y, -1, None, -1)),
        example(lambda f, y: f(y, 0, 1), **MIXES, named="__getitem__"),
    ],
    "index.Tensor": [
        example(lambda f, y: f(y, [None, None, PICK])),
        example(lambda f, y: f(y, [PICK]), **MIXES, named="__getitem__"),
    ],
    **same("_unsafe_view.default", "view_copy.default", examples=[example(lambda f, y: f(y, [len(y), 6]))]),
    **same("lift_fresh_copy.default", "alias.default", examples=ALONE),
    **{
        f"upsample_nearest{n}d.vec": [example(lambda f, y, n=n: f(y, None, [2.0] * n), (2, 2, 2, 2)[: n + 1])]
        for n in SHAPES
    },
    # shapes
    **same(
        *("reshape", "view"),
        examples=[
            example(lambda f, y: f(y, (len(y), 6))),
            example(lambda f, y: f(y, (-1, 3))),
            example(lambda f, y: f(y, (-1,))),
            example(lambda f, y: f(y.reshape(-1, 3), (len(y), 3, 2))),
            example(lambda f, y: f(y, (2, -1)), (2, 2), **MIXES),
        ],
    ),
    "flatten": [
        example(lambda f, y: f(y)),
        example(lambda f, y: f(y, 1)),
        example(lambda f, y: f(y.permute(1, 0, 2), 0, 1)),
        example(lambda f, y: f(y.permute(1, 2, 0))),
    ],
    "ravel": ALONE,
    "unflatten": [
        example(lambda f, y: f(y, 2, (3, 1))),
        example(lambda f, y: f(y.flatten(0, 1), 0, (-1, 2))),
        example(lambda f, y: f(y.transpose(0, 1).flatten(0, 1), 0, (2, -1))),
    ],
    "squeeze": [
        example(lambda f, y: f(y, 1), (1, 3)),
        example(lambda f, y: f(y), (1, 3)),
        example(lambda f, y: f(y.transpose(0, 2)), (1, 3)),
    ],
    "unsqueeze": [example(lambda f, y: f(y, 0)), example(lambda f, y: f(y, -1))],
    **same("view_as", "reshape_as", examples=[example(lambda f, y: f(y, torch.empty(len(y), 6)))]),
    "expand_as": [example(lambda f, y: f(y, torch.empty(len(y), 2, 3)), (1, 3))],
    "expand": [
        example(lambda f, y: f(y, (len(y), 2, 3)), (1, 3)),
        example(lambda f, y: f(y, (2, len(y), 2, 3))),
    ],
    "broadcast_to": [example(lambda f, y: f(y, (2, len(y), 2, 3)))],
    "permute": [example(lambda f, y: f(y, (2, 0, 1))), example(lambda f, y: f(y, (0, 2, 1)))],
    **same("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", examples=[
        example(lambda f, y: f(y, 0, 1)),
        example(lambda f, y: f(y, 1, 2)),
        example(lambda f, y: f(y, -1, 0)),
    ]),
    **same("t", "T", examples=[example(lambda f, y: f(y), V)]),
    **same("mT", "adjoint", examples=ALONE),
    "select": [example(lambda f, y: f(y, 1, 1)), example(lambda f, y: f(y, 0, 0), **MIXES)],
    "narrow": [example(lambda f, y: f(y, 2, 1, 2)), example(lambda f, y: f(y, 0, 0, 2), **MIXES)],
    **same("chunk", "tensor_split", examples=[
        example(lambda f, y: f(y, 2, 2)),
        example(lambda f, y: f(y.transpose(0, 1), 2, 0)),
        example(lambda f, y: f(y, 3), **MIXES),
    ]),
    "split": [
        example(lambda f, y: f(y, 2, 2)),
        example(lambda f, y: f(y, [1, 2], 2)),
        example(lambda f, y: f(y, 1), **MIXES),
    ],
    "split_with_sizes": [example(lambda f, y: f(y, [1, 2], 2)), example(lambda f, y: f(y, [1, 2], 0), **MIXES)],
    "unbind": [
        example(lambda f, y: f(y, 1)),
        example(lambda f, y: f(y.permute(2, 0, 1))),
        example(lambda f, y: f(y), **MIXES),
    ],
    "diagonal": [example(lambda f, y: f(y, 0, 1, 2)), example(lambda f, y: f(y, 0, 0, 2), **MIXES)],
    "index_select": [example(lambda f, y: f(y, 2, PICK)), example(lambda f, y: f(y, 0, PICK), **MIXES)],
    "__getitem__": [
        example(lambda f, y: f(y, (slice(None), 1))),
        example(lambda f, y: f(y, (..., slice(1, None)))),
        example(lambda f, y: f(y, (slice(None), None, 1, PICK))),
        example(lambda f, y: f(y, (slice(None), C[:, 0] > -9, PICK))),
        example(lambda f, y: f(y, (slice(None), CONDITION))),
        example(lambda f, y: f(y.transpose(0, 1), 1)),
        each_sample(lambda f, y, each: f(y, (torch.arange(len(y)), each(INDICES[:, 0]) // 2))),
        each_sample(lambda f, y, each: f(y, (torch.arange(len(y))[:, None], 1, each(INDICES)))),
        example(lambda f, y: f(y, 0), **MIXES),
        example(lambda f, y: f(y, slice(1, None)), **MIXES),
        example(lambda f, y: f(y, TWICE), **MIXES),
        each_sample(lambda f, y, each: f(y, each(MASKS)), **MIXES),
    ],
    "gather": [
        each_sample(lambda f, y, each: f(y, 2, each(ROWS3))),
        each_sample(lambda f, y, each: f(y.transpose(0, 2), 0, each(ROWS3).transpose(0, 2))),
        example(lambda f, y: f(y, 2, y.argsort(2))),
        example(lambda f, y: y * f(C.expand(len(y), 2, 3), 2, y.argsort(2))),
        example(lambda f, y: f(y, 0, torch.zeros(len(y), 2, 3, dtype=torch.long)), **MIXES),
    ],
    "embedding": [
        example(lambda f, y: y[..., None] * f(y.argsort(2), C32), only=(F.embedding,)),
        example(lambda f, y: y[..., None] * f(C32, y.argsort(2)), only=(torch.embedding,)),
    ],
    **same("scatter", "scatter_", examples=[
        each_sample(lambda f, y, each: f(y.new_zeros(len(y), 2, 4), 2, each(ROWS3), y), autograd=False),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), each(CB)), autograd=False),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3)[:, :, :1], y * 0.5), autograd=False),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3)[:, :, :1], 0.5)),
        example(lambda f, y: y * f(y.new_zeros(y.shape), 2, y.topk(2, 2)[1], 1.0)),
        example(lambda f, y: f(y.clone(), 0, torch.zeros(len(y), 2, 3, dtype=torch.long), y), **MIXES),
    ]),
    **same("scatter_add", "scatter_add_", examples=[
        each_sample(lambda f, y, each: f(y.new_zeros(len(y), 2, 4), 2, each(ROWS3), y)),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), each(CB))),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), y * 0.5)),
        example(lambda f, y: f(y.clone(), 0, torch.zeros(len(y), 2, 3, dtype=torch.long), y), **MIXES),
    ]),
    **same("scatter_reduce", "scatter_reduce_", examples=[
        each_sample(lambda f, y, each: f(y.new_zeros(len(y), 2, 4), 2, each(ROWS3), y, "sum"), autograd=False),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), y * 0.5, "mean", include_self=False)),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), each(CB), "mean")),
        each_sample(lambda f, y, each: f(y.clone(), 2, each(ROWS3), y, "amax"), **NO_RULE),
    ]),
    **same("index_add", "index_add_", examples=[
        example(lambda f, y: f(y.new_zeros(len(y), 2, 3), 2, MANY, y)),
        example(lambda f, y: f(y.clone(), 2, MANY, C.expand(len(y), 2, 3), alpha=-0.5)),
        each_sample(lambda f, y, each: f(y.clone(), 2, MANY, y * each(CB), alpha=0.5)),
        example(lambda f, y: f(y.clone(), 0, torch.arange(len(y)).flip(0), y), **MIXES),
    ]),
    **same("index_copy", "index_copy_", examples=[
        example(lambda f, y: f(y.new_zeros(len(y), 2, 4), 2, torch.tensor([3, 0, 2]), y)),
        example(lambda f, y: f(y.clone(), 2, PICK, y[:, :, 1:] * 2)),
        example(lambda f, y: f(y.clone(), 0, torch.arange(len(y)).flip(0), y), **MIXES),
    ]),
    **same("index_fill", "index_fill_", examples=[example(lambda f, y: f(y.clone(), 2, PICK, 0.5))]),
    "__setitem__": [
        example(lambda f, y: written(f, y.clone(), (slice(None), 1), y[:, 0] * 2)),
        example(lambda f, y: written(f, y.new_zeros(len(y), 4, 3), (slice(None), slice(1, 3)), y)),
        each_sample(lambda f, y, each: written(f, y.clone(), (slice(None), slice(None), PICK), each(CB)[..., :2])),
        example(lambda f, y: written(f, y.clone(), (slice(None), CONDITION), 0.5)),
        example(lambda f, y: written(f, y.clone(), y < 0, 0.5)),
        example(lambda f, y: written(f, y.clone(), y < 0, y), **NO_RULE),
        example(lambda f, y: written(f, y.clone(), 0, 0.5 * y[:1, 0].sum()), **MIXES, named="__getitem__"),
    ],
    "take_along_dim": [
        example(lambda f, y: f(y, INDEX[None], 2)),
        each_sample(lambda f, y, each: f(y, each(INDICES)[:, None], 2)),
        each_sample(lambda f, y, each: f(y, each(INDICES)[:, :, None] // 2, 1)),
        example(lambda f, y: f(y, torch.tensor([0, 3])), refused=ValueError),
        example(lambda f, y: f(y, torch.zeros(1, 2, 3, dtype=torch.long), 0), **MIXES),
    ],
    **same("repeat", "tile", examples=[
        example(lambda f, y: f(y, (1, 2, 1))),
        example(lambda f, y: f(y, (2, 1, 1))),
        example(lambda f, y: f(y, (2, 1, 1, 2))),
    ]),
    "repeat_interleave": [
        example(lambda f, y: f(y, 2, 1)),
        example(lambda f, y: f(y, 2, 0)),
        example(lambda f, y: f(y, torch.tensor([1, 0, 2]), 2)),
        example(lambda f, y: f(y, 2)),
        example(lambda f, y: f(y.transpose(0, 1), 2, 1)),
        example(lambda f, y: f(y, torch.tensor([1, 2, 1]), 0), **MIXES),
    ],
    **same("sum", "mean", examples=[
        example(lambda f, y: f(y, 1)),
        example(lambda f, y: f(y, (1, 2), keepdim=True)),
        example(lambda f, y: f(y.transpose(0, 1), 0)),
        example(lambda f, y: f(y, 0), **MIXES),
        example(lambda f, y: f(y), **MIXES),
    ]),
    "diff": [
        example(lambda f, y: f(y)),
        each_sample(lambda f, y, each: f(y, 2, 1, each(CB))),
        example(lambda f, y: f(y, 1, 0), **MIXES, named="narrow"),
    ],
    **same("tril", "triu", examples=[example(lambda f, y: f(y, 1)), example(lambda f, y: f(y), V, **MIXES)]),
    "rot90": [
        example(lambda f, y: f(y, 1, (1, 2))),
        example(lambda f, y: f(y, 2, (0, 1)), **MIXES),
    ],
    "broadcast_tensors": [
        example(lambda f, y: f(y, y[:, :1])),
        example(lambda f, y: f(y, C)[0]),
    ],
    "cumsum": [example(lambda f, y: f(y, 2)), example(lambda f, y: f(y, 0), **MIXES)],
    "flip": [example(lambda f, y: f(y, (1, 2))), example(lambda f, y: f(y, (0,)), **MIXES)],
    "fliplr": ALONE,
    "flipud": [example(lambda f, y: f(y), **MIXES), example(lambda f, y: f(y.transpose(0, 1)))],
    "roll": [
        example(lambda f, y: f(y, 1, 2)),
        example(lambda f, y: f(y, 1, 0), **MIXES),
        example(lambda f, y: f(y, 1), **MIXES),
    ],
    "pad": [
        example(lambda f, y: f(y, (1, 2))),
        example(lambda f, y: f(y, (0, 1, 1, 0), "constant", 0.5)),
        example(lambda f, y: f(y, (1, 2), "reflect")),
        example(lambda f, y: f(y, (0, 0, 1, 0, 0, 0))),
        example(lambda f, y: f(y, (0, 0, 0, 0, 1, 0)), **MIXES),
    ],
    **same("cat", "concat", "concatenate", examples=[
        example(lambda f, y: f([y, 2 * y], 1)),
        each_sample(lambda f, y, each: f([y, each(CB)], 2)),
        example(lambda f, y: f([y, 2 * y], 0)),
        example(lambda f, y: f([y, C[None]], 0), **MIXES, named="cat"),
    ]),
    "stack": [example(lambda f, y: f([y, 2 * y], 1)), example(lambda f, y: f([y, 2 * y]))],
    "hstack": [example(lambda f, y: f([y, 2 * y])), each_sample(lambda f, y, each: f([each(CB), y]))],
    "vstack": [example(lambda f, y: f([y, 2 * y])), example(lambda f, y: f([y, C[None]]), **MIXES, named="cat")],
    # dtypes and devices
    "to": [example(lambda f, y: f(y, DTYPE)), example(lambda f, y: f(y, torch.float16), **ROUNDS)],
    "type": [example(lambda f, y: f(y, DTYPE))],
    "type_as": [example(lambda f, y: f(y, C))],
    **same("double", "cpu", examples=ALONE),
    **same("bool", "int", "long", examples=[
        example(lambda f, y: y * f(y.argmax(2, True))),
        example(lambda f, y: y * f(y), **NO_RULE),
    ]),
    **same("float", "half", "bfloat16", examples=[example(lambda f, y: f(y), **ROUNDS)]),
}  # fmt: skip
NEEDS_GPU = {"cuda"}


class Around(nn.Module):
    """A dense layer and a kink, the function, and a kink for each of its entries."""

    def __init__(self, function: Any, example: Example):
        super().__init__()
        self.function, self.example, self.rows = function, example, slice(None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mix = nn.Linear(4, torch.Size(example.shape).numel()).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        y = F.leaky_relu(self.mix(x) - 0.2, -0.6).view(x.shape[0], *self.example.shape)
        found = self.example.call(self.function, y, lambda constant: constant[self.rows])
        return [(part - 0.1).abs() for part in (found if isinstance(found, (tuple, list)) else [found])]


def functions() -> dict[str, list]:
    """Those with rules, by name; the table also holds what is no function, such as dtypes of a function's name."""
    found: dict[str, list] = {}
    for function, rule in TABLE.items():
        if not rule.query and callable(function) and hasattr(function, "__name__"):
            found.setdefault(function_name(function), []).append(function)
    return found


def cases(refused: bool) -> list:
    """All examples for the first function of a name, and for others, such as the method, those for them alone."""
    found = []
    for name, variants in functions().items():
        for i, function in enumerate(variants):
            fitting = [e for e in EXAMPLES.get(name, []) if function in e.only or (not e.only and i == 0)]
            for k, e in enumerate(fitting):
                if (e.refused is not None) == refused:
                    found.append(pytest.param(function, e, id=f"{name}-{i}-{k}"))
    return found


def other_names() -> list:
    """The other functions of a name, such as the method, with the first one and its first example."""
    found = []
    for name, (first, *others) in functions().items():
        shared = [e for e in EXAMPLES.get(name, []) if not e.only][:1]
        for i, function in enumerate(others):
            found += [pytest.param(function, first, e, id=f"{name}-{i + 1}") for e in shared]
    return found


def test_every_function_has_an_example():
    missing = {
        name
        for name, variants in functions().items()
        for function in variants
        if not any(not e.only or function in e.only for e in EXAMPLES.get(name, []))
    }
    assert missing == NEEDS_GPU, "write examples of these functions here"


def close(got: Tensor, want: Tensor):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def inputs() -> Tensor:
    return torch.randn(B, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


@pytest.mark.parametrize("function, example", cases(refused=True))
def test_examples_that_are_refused(function, example):
    model, x = Around(function, example), inputs()
    certificates = (llr_fast.margin, llr_fast.activation_pattern, llr_fast.gradient_norms)
    for call in (*certificates, *([exact_penalty] if example.in_training else [])):
        with compare.refused(example.refused, example.named or function_name(function), "Around"):
            call(model, x)


@pytest.mark.parametrize("function, example", cases(refused=False))
def test_batch_equals_its_samples(function, example):
    model, x = Around(function, example), inputs()
    margins, patterns = llr_fast.margin(model, x).value, llr_fast.activation_pattern(model, x)
    norms, penalty = llr_fast.gradient_norms(model, x), exact_penalty(model, x)
    penalties = []
    for b, sample in enumerate(x.split(1)):
        model.rows = slice(b, b + 1)
        close(margins[b : b + 1], llr_fast.margin(model, sample).value)
        assert torch.equal(patterns[b], llr_fast.activation_pattern(model, sample)[0])
        alone = llr_fast.gradient_norms(model, sample)
        assert [layer.name for layer in alone] == [layer.name for layer in norms]
        for layer, single in zip(norms, alone):
            close(layer.distance[b], single.distance[0])
            close(layer.norm[b], single.norm[0])
        penalties.append(exact_penalty(model, sample))
        if example.autograd:
            check_by_oracle(model, sample, alone, penalties[-1])
    close(penalty, torch.stack(penalties).mean())


@pytest.mark.parametrize("function, first, example", other_names())
def test_other_names_of_a_function_do_the_same(function, first, example):
    if example.refused is not None:
        with compare.refused(example.refused, example.named or function_name(function), "Around"):
            llr_fast.margin(Around(function, example), inputs())
        return
    found, expected = (
        [
            llr_fast.margin(model, inputs()).value,
            llr_fast.activation_pattern(model, inputs()),
            exact_penalty(model, inputs()),
        ]
        for model in (Around(function, example), Around(first, example))
    )
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def exact_penalty(model: nn.Module, x: Tensor) -> Tensor:
    return llr_fast.ROLLLoss(model, estimator="exact")(x)[1].detach()


def check_by_oracle(model: nn.Module, sample: Tensor, found: list[llr_fast.Neurons], penalty: Tensor):
    layers = oracle.neurons(model, sample, create_graph=True)
    for layer, expected in zip(found, layers, strict=True):
        close(layer.distance[0].sort().values, expected.distance.detach().sort().values)
        close(layer.norm[0].sort().values, expected.norm(2).detach().sort().values)
    close(penalty, oracle.roll_penalty_of([layers]).detach())
