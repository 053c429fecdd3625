"""Every supported function: its entries as neurons, and a random linear map of them, against the oracle.

The entries show values, order and norms; the norms of random combinations show the whole Jacobian, signs included.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr_fast

DTYPE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)


def const(*shape) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=DTYPE)


class Row(NamedTuple):
    shape: tuple  # of one sample
    function: Callable[[Tensor], Tensor]


V, M, T3 = (6,), (3, 4), (2, 3, 4)
SIGNAL, IMAGE, VOLUME = (2, 6), (2, 4, 4), (2, 3, 2, 3)
A6, A46, A34, A4, A3 = const(6), const(4, 6), const(3, 4), const(4), const(3)
LEADING = const(3, 1, 6)


def batch_norm(shape):
    n = shape[0]
    mean, var, weight, bias = const(n), const(n).square() + 0.1, const(n), const(n)
    return Row(shape, lambda x: F.batch_norm(x, mean, var, weight, bias, eps=1e-3))


def module(shape, make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Row(shape, make().double().eval().requires_grad_(False))


def assign_in_place(x):
    y = x * 2
    y += 1
    y *= A6
    y -= x
    y /= 4
    return y


def methods_in_place(x):
    return x.clone().add_(1).mul_(A6).sub_(x, alpha=2).div_(3).neg_()


def relu_then_add_in_place(x):
    y = F.relu(x * A6, inplace=True) * 2
    y += x
    return y.relu_()


ARITHMETIC = {
    "add": Row(M, lambda x: x + A34),
    "add_scalar": Row(M, lambda x: 2.5 + x),
    "add_alpha": Row(M, lambda x: torch.add(x, A34, alpha=3)),
    "add_itself": Row(M, lambda x: x + x.flip(1)),
    "add_broadcast": Row(M, lambda x: x + x[:, :, :1]),
    "add_constant_of_more_axes": Row(V, lambda x: x.unsqueeze(1) + A46),
    "add_constant_of_more_axes_than_x": Row(V, lambda x: (x + LEADING).transpose(0, 1)),
    "sub": Row(M, lambda x: x - A4),
    "sub_alpha": Row(M, lambda x: torch.sub(A34, x, alpha=2)),
    "rsub": Row(M, lambda x: 1 - x),
    "rsub_tensor": Row(M, lambda x: A34 - x),
    "rsub_function": Row(M, lambda x: torch.rsub(x, 2.0)),
    "rsub_alpha": Row(M, lambda x: torch.rsub(x, A34, alpha=3)),
    "sub_itself": Row(M, lambda x: x - x.transpose(1, 2).reshape(x.shape)),
    "neg": Row(M, lambda x: -x),
    "negative": Row(M, torch.negative),
    "positive": Row(M, lambda x: +x),
    "mul": Row(M, lambda x: x * A34),
    "rmul": Row(M, lambda x: A34 * x),
    "mul_scalar": Row(M, lambda x: torch.mul(x, -3)),
    "mul_broadcast": Row((3, 1), lambda x: x * A34),
    "mul_zero_dim": Row(M, lambda x: x * A4[0]),
    "div": Row(M, lambda x: x / A34),
    "div_scalar": Row(M, lambda x: x.div(3)),
    "true_divide": Row(M, lambda x: torch.true_divide(x, A4)),
    "lerp_by_hand": Row(M, lambda x: 0.3 * x + 0.7 * x.mean(1, keepdim=True)),
    "assign_in_place": Row(V, assign_in_place),
    "methods_in_place": Row(V, methods_in_place),
    "relu_then_add_in_place": Row(V, relu_then_add_in_place),
    "constant_plus_in_place": Row(V, lambda x: x.new_ones(x.shape) + x),
    "zeros_like": Row(V, lambda x: torch.zeros_like(x) + 2 * x + torch.ones_like(x)),
    "where": Row(M, lambda x: torch.where(A34 > 0, x, 2 * x)),
    "where_constant": Row(M, lambda x: torch.where(A34 > 0, x, A34)),
    "where_scalar": Row(M, lambda x: torch.where(A34 > 0, 1.5, x)),
    "masked_fill": Row(M, lambda x: x.masked_fill(A34 > 0, -2.0)),
    "tril": Row(M, lambda x: x * torch.ones(3, 4).tril()),
}

PRODUCTS = {
    "linear": Row(V, lambda x: F.linear(x, A46, A4)),
    "linear_without_bias": Row((2, 3, 6), lambda x: F.linear(x, A46)),
    "matmul": Row(M, lambda x: x @ A46),
    "matmul_left": Row(M, lambda x: A34.T @ x),
    "matmul_vector": Row(M, lambda x: x @ A4),
    "matmul_vector_left": Row(M, lambda x: torch.matmul(A3, x)),
    "matmul_method": Row(V, lambda x: x.matmul(A46.T)),
    "mm": Row(V, lambda x: torch.mm(x, A46.T)),
    "mm_left": Row(V, lambda x: torch.mm(A46, x.T).T),
    "bmm": Row(M, lambda x: torch.bmm(x, A46.expand(len(x), 4, 6))),
    "bmm_left": Row(M, lambda x: torch.bmm(A34.T.expand(x.shape[0], 4, 3), x)),
    "addmm": Row(V, lambda x: torch.addmm(A4, x, A46.T, beta=2, alpha=0.5)),
    "addmm_of_bias": Row((4,), lambda x: torch.addmm(x, torch.ones(len(x), 3, dtype=DTYPE), A34)),
    "baddbmm": Row(M, lambda x: torch.baddbmm(A6, x, A46.expand(len(x), 4, 6))),
    "einsum": Row(M, lambda x: torch.einsum("bij,jk->bik", x, A46)),
    "einsum_left": Row(M, lambda x: torch.einsum("ki,bij->bkj", A34.T, x)),
    "einsum_reduces": Row(M, lambda x: torch.einsum("bij,ij->bi", x, A34)),
    "einsum_transposes": Row(M, lambda x: torch.einsum("bij->bji", x)),
    "linear_module": module(V, lambda: nn.Linear(6, 3)),
}

w1, w2, w3 = const(3, 2, 3), const(3, 2, 2, 3), const(2, 2, 2, 1, 2)
t1, t2, t3 = const(2, 3, 3), const(2, 2, 2, 3), const(2, 2, 2, 1, 2)
CONVOLUTIONS = {
    "conv1d": Row(SIGNAL, lambda x: F.conv1d(x, w1, A3, stride=2, padding=1)),
    "conv1d_dilated": Row(SIGNAL, lambda x: F.conv1d(x, w1, dilation=2)),
    "conv2d": Row(IMAGE, lambda x: F.conv2d(x, w2, A3, stride=(1, 2), padding=(1, 0))),
    "conv2d_same": Row(IMAGE, lambda x: F.conv2d(x, w2[:, :, :1], A3, padding="same")),
    "conv2d_depthwise": Row(IMAGE, lambda x: F.conv2d(x, w2[:2, :1], A3[:2], groups=2)),
    "conv3d": Row(VOLUME, lambda x: F.conv3d(x, w3, A3[:2])),
    "conv_transpose1d": Row(SIGNAL, lambda x: F.conv_transpose1d(x, t1, A3, stride=2, padding=1, output_padding=1)),
    "conv_transpose2d": Row((2, 2, 3), lambda x: F.conv_transpose2d(x, t2, A3[:2], stride=2, dilation=(1, 2))),
    "conv_transpose2d_grouped": Row((2, 2, 3), lambda x: F.conv_transpose2d(x, t2, groups=2)),
    "conv_transpose3d": Row((2, 1, 2, 2), lambda x: F.conv_transpose3d(x, t3, A3[:2])),
    "conv_module_padding_mode": module(IMAGE, lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
    "conv_module_replicate": module(SIGNAL, lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate")),
    "conv_transpose_module": module((2, 2, 3), lambda: nn.ConvTranspose2d(2, 2, 2, stride=2)),
    "batch_norm1d": batch_norm((5,)),
    "batch_norm1d_of_signal": batch_norm(SIGNAL),
    "batch_norm2d": batch_norm(IMAGE),
    "batch_norm3d": batch_norm(VOLUME),
    "batch_norm_module": module(IMAGE, lambda: nn.BatchNorm2d(2, affine=False)),
}

POOLING = {
    "avg_pool1d": Row(SIGNAL, lambda x: F.avg_pool1d(x, 3, stride=2, padding=1, ceil_mode=True)),
    "avg_pool1d_without_padding": Row(SIGNAL, lambda x: F.avg_pool1d(x, 3, padding=1, count_include_pad=False)),
    "avg_pool2d": Row(IMAGE, lambda x: F.avg_pool2d(x, (2, 3), stride=1, padding=1, count_include_pad=False)),
    "avg_pool2d_divisor": Row(IMAGE, lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    "avg_pool3d": Row(VOLUME, lambda x: F.avg_pool3d(x, (2, 1, 2), stride=1)),
    "adaptive_avg_pool1d": Row(SIGNAL, lambda x: F.adaptive_avg_pool1d(x, 4)),
    "adaptive_avg_pool2d": Row(IMAGE, lambda x: F.adaptive_avg_pool2d(x, (3, None))),
    "adaptive_avg_pool3d": Row(VOLUME, lambda x: F.adaptive_avg_pool3d(x, 2)),
    "avg_pool_module": module(IMAGE, lambda: nn.AvgPool2d(2)),
    "adaptive_module": module(IMAGE, lambda: nn.AdaptiveAvgPool2d(1)),
    "interpolate_nearest": Row(IMAGE, lambda x: F.interpolate(x, scale_factor=1.5)),
    "interpolate_nearest_exact": Row(SIGNAL, lambda x: F.interpolate(x, size=4, mode="nearest-exact")),
    "interpolate_linear": Row(SIGNAL, lambda x: F.interpolate(x, size=5, mode="linear", align_corners=True)),
    "interpolate_bilinear": Row(IMAGE, lambda x: F.interpolate(x, size=(3, 6), mode="bilinear")),
    "interpolate_trilinear": Row(VOLUME, lambda x: F.interpolate(x, size=(2, 3, 2), mode="trilinear")),
    "upsample_module": module((1, 2, 2), lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "pixel_shuffle": Row((4, 2, 2), lambda x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": Row((1, 4, 2), lambda x: F.pixel_unshuffle(x, 2)),
    "pixel_shuffle_module": module((4, 1, 2), lambda: nn.PixelShuffle(2)),
}

index = torch.tensor([2, 0, 2])
mask = torch.tensor([True, False, True])
JOINING = {
    "cat": Row(M, lambda x: torch.cat([x, 2 * x], 1)),
    "cat_constant": Row(M, lambda x: torch.cat([x, A34.expand(len(x), 3, 4), -x], dim=-1)),
    "concat": Row(M, lambda x: torch.concat((x, x), dim=2)),
    "stack": Row(M, lambda x: torch.stack([x, A34.expand_as(x), 3 * x], 1)),
    "stack_in_front": Row(V, lambda x: torch.stack([x, -x]).transpose(0, 1)),
    "chunk": Row(V, lambda x: torch.cat([x.chunk(4, 1)[2], torch.chunk(x, 4, dim=-1)[0]], 1)),
    "split": Row(V, lambda x: x.split([1, 3, 2], 1)[1]),
    "split_equal": Row(V, lambda x: torch.split(x, 4, dim=1)[1]),
    "tensor_split": Row(V, lambda x: torch.tensor_split(x, 3, dim=1)[1]),
    "unbind": Row(M, lambda x: x.unbind(1)[2] + torch.unbind(x, -2)[0]),
    "iteration": Row(M, lambda x: sum(step for step in x.transpose(0, 1))),
    "unpacking": Row((2, 3), lambda x: (lambda a, b: a - 2 * b)(*x.unbind(1))),
    "index_integer": Row(M, lambda x: x[:, 1]),
    "index_slice": Row(M, lambda x: x[:, 1:, ::2]),
    "index_negative": Row(M, lambda x: x[:, -1, -2:]),
    "index_ellipsis": Row(T3, lambda x: x[..., 1]),
    "index_none": Row(M, lambda x: x[:, None, :, None]),
    "index_tensor": Row(M, lambda x: x[:, index]),
    "index_list": Row(M, lambda x: x[:, [2, 0]]),
    "index_two_tensors": Row(M, lambda x: x[:, index, index]),
    "index_mask": Row(M, lambda x: x[:, mask]),
    "index_select": Row(M, lambda x: x.index_select(1, index)),
    "select": Row(M, lambda x: x.select(2, 1)),
    "narrow": Row(M, lambda x: torch.narrow(x, 2, 1, 2)),
    "index_behind_merged_batch": Row(M, lambda x: x.flatten(0, 1)[:, index].unflatten(0, (-1, 3))),
    "flip_behind_merged_batch": Row(M, lambda x: (x.reshape(-1, 4).flip(1) * A4).reshape(-1, 3, 4)),
    "flip": Row(M, lambda x: x.flip(1, 2)),
    "flip_function": Row(M, lambda x: torch.flip(x, [2])),
    "roll": Row(M, lambda x: x.roll(1, 2)),
    "pad_zero": Row(M, lambda x: F.pad(x, (1, 2))),
    "pad_constant": Row(M, lambda x: F.pad(x, (0, 1, 2, 0), value=1.5)),
    "pad_crops": Row(M, lambda x: F.pad(x, (-1, 1))),
    "pad_reflect": Row(IMAGE, lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    "pad_replicate": Row(SIGNAL, lambda x: F.pad(x, (1, 2), mode="replicate")),
    "pad_circular": Row(SIGNAL, lambda x: F.pad(x, (1, 2), mode="circular")),
    "pad_module": module(IMAGE, lambda: nn.ZeroPad2d(1)),
}

SHAPES = {
    "reshape": Row(M, lambda x: x.reshape(len(x), 2, 6)),
    "reshape_function": Row(M, lambda x: torch.reshape(x, (x.shape[0], -1))),
    "reshape_merges_batch": Row(M, lambda x: (x.reshape(-1, 4) * A4).reshape(-1, 3, 4)),
    "view": Row(M, lambda x: x.view(x.size(0), 4, 3)),
    "view_as": Row(M, lambda x: x.view_as(torch.empty(len(x), 12))),
    "flatten": Row(T3, lambda x: x.flatten(1, 2)),
    "flatten_function": Row(T3, lambda x: torch.flatten(x, start_dim=2)),
    "flatten_merges_batch": Row(M, lambda x: F.linear(x.flatten(0, 1), A46.T).unflatten(0, (-1, 3))),
    "flatten_module": module(T3, lambda: nn.Flatten()),
    "unflatten": Row(V, lambda x: x.unflatten(1, (2, 3))),
    "unflatten_module": module(V, lambda: nn.Unflatten(1, (3, 2))),
    "permute": Row(T3, lambda x: x.permute(0, 3, 1, 2)),
    "permute_function": Row(T3, lambda x: torch.permute(x, (0, 2, 1, 3))),
    "transpose": Row(T3, lambda x: x.transpose(1, -1)),
    "transpose_batch_and_back": Row(M, lambda x: (x.transpose(0, 1) * A4).transpose(0, 1)),
    "movedim": Row(T3, lambda x: x.movedim(1, 3)),
    "moveaxis": Row(T3, lambda x: torch.moveaxis(x, (1, 2), (2, 1))),
    "swapaxes": Row(T3, lambda x: x.swapaxes(2, 3)),
    "t": Row(V, lambda x: (A46 @ x.t()).t()),
    "T": Row(V, lambda x: (A46 @ x.T).T),
    "mT": Row(M, lambda x: x.mT),
    "squeeze": Row((1, 3, 1), lambda x: x.squeeze(1).squeeze(-1)),
    "unsqueeze": Row(M, lambda x: x.unsqueeze(-1).unsqueeze(1)),
    "expand": Row((1, 3), lambda x: x.expand(-1, 4, 3)),
    "expand_as": Row((1, 4), lambda x: x.expand_as(torch.empty(len(x), 3, 4))),
    "repeat": Row(V, lambda x: x.repeat(1, 2)),
    "sum": Row(M, lambda x: x.sum(1)),
    "sum_all": Row(M, lambda x: x.sum((1, 2)).unsqueeze(1)),
    "sum_keepdim": Row(M, lambda x: torch.sum(x, dim=-1, keepdim=True)),
    "mean": Row(M, lambda x: x.mean([1])),
    "mean_centred": Row(M, lambda x: x - x.mean(dim=(1, 2), keepdim=True)),
    "dropout": Row(V, lambda x: F.dropout(x, 0.5, training=False) * 2),
    "dropout_module": module(IMAGE, lambda: nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.3))),
    "identity": module(V, lambda: nn.Identity()),
    "clone": Row(V, lambda x: x.clone()),
    "contiguous": Row(M, lambda x: x.transpose(1, 2).contiguous()),
    "to": Row(V, lambda x: x.to(torch.float64).to("cpu")),
    "to_other": Row(V, lambda x: x.to(A6)),
    "double": Row(V, lambda x: x.double()),
    "type_as": Row(V, lambda x: x.type_as(A6)),
}

KEYWORDS = {
    "relu": Row(V, lambda x: F.relu(input=x)),
    "hardtanh": Row(V, lambda x: F.hardtanh(x, min_val=-0.1, max_val=0.4)),
    "clamp": Row(V, lambda x: torch.clamp(input=x, max=0.4)),
    "linear": Row(V, lambda x: F.linear(input=x, weight=A46, bias=A4)),
    "conv2d": Row(IMAGE, lambda x: F.conv2d(input=x, weight=w2, bias=A3, stride=(1, 2))),
    "add": Row(V, lambda x: torch.add(input=x, other=A6)),
    "sub": Row(V, lambda x: torch.sub(x, other=x.flip(1), alpha=2)),
    "mul": Row(V, lambda x: x.mul(other=A6)),
    "div": Row(V, lambda x: torch.div(x, other=A6)),
    "matmul": Row(V, lambda x: torch.matmul(input=x, other=A46.T)),
    "addmm": Row(V, lambda x: torch.addmm(A4, mat1=x, mat2=A46.T)),
    "maximum": Row(V, lambda x: torch.maximum(input=x, other=A6)),
    "where": Row(M, lambda x: torch.where(A34 > 0, input=x, other=2 * x)),
    "masked_fill": Row(M, lambda x: x.masked_fill(mask=A34 > 0, value=-2.0)),
    "cat": Row(V, lambda x: torch.cat(tensors=[x, 2 * x], dim=1)),
    "flatten": Row(M, lambda x: torch.flatten(input=x, start_dim=1)),
    "reshape": Row(M, lambda x: torch.reshape(input=x, shape=(-1, 12))),
    "permute": Row(M, lambda x: x.permute(dims=(0, 2, 1))),
    "transpose": Row(M, lambda x: x.transpose(dim0=1, dim1=2)),
    "expand": Row((1, 3), lambda x: x.expand(size=(len(x), 4, 3))),
    "split": Row(V, lambda x: torch.split(tensor=x, split_size_or_sections=4, dim=1)[0]),
    "pad": Row(M, lambda x: F.pad(input=x, pad=(1, 2), value=0.3)),
    "sum": Row(M, lambda x: torch.sum(input=x, dim=1)),
    "to": Row(V, lambda x: x.to(dtype=torch.float64, device="cpu")),
    "batch_norm": Row(SIGNAL, lambda x: F.batch_norm(input=x, running_mean=A3[:2], running_var=A3[:2].square())),
    "avg_pool2d": Row(IMAGE, lambda x: F.avg_pool2d(input=x, kernel_size=2)),
    "interpolate": Row(IMAGE, lambda x: F.interpolate(input=x, size=3)),
    "dropout": Row(V, lambda x: F.dropout(input=x, p=0.5, training=False)),
}


def group_sort(x):
    return x.view(len(x), 3, 2).sort(dim=1, descending=True).values.flatten(1)


def max_min(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


ORDER = {
    "max": Row(M, lambda x: x.max(1)[0]),
    "max_keepdim": Row(M, lambda x: torch.max(x, dim=-1, keepdim=True).values * A4),
    "max_all": Row(M, lambda x: x.amax((1, 2)).unsqueeze(1)),
    "max_of_one": Row((3, 1), lambda x: x.max(2)[0]),
    "min": Row(M, lambda x: x.min(dim=2).values),
    "amax": Row(T3, lambda x: x.amax(dim=(3, 1))),
    "amin": Row(T3, lambda x: torch.amin(x, -1, keepdim=True)),
    "aminmax": Row(M, lambda x: torch.cat(torch.aminmax(x, dim=1), 1)),
    "sort": Row(M, lambda x: x.sort()[0]),
    "sort_descending": Row(M, lambda x: torch.sort(x, 1, descending=True).values),
    "sort_stable": Row(M, lambda x: x.sort(stable=True, dim=1)[0]),
    "msort": Row(M, lambda x: torch.msort(x.transpose(0, 1)).transpose(0, 1)),
    "topk": Row(M, lambda x: x.topk(2)[0]),
    "topk_smallest": Row(M, lambda x: torch.topk(x, k=2, dim=1, largest=False).values),
    "topk_all": Row(M, lambda x: x.topk(4)[0]),
    "kthvalue": Row(M, lambda x: x.kthvalue(3)[0]),
    "kthvalue_keepdim": Row(M, lambda x: torch.kthvalue(x, 1, 1, True).values),
    "median": Row(M, lambda x: x.median(2).values),
    "median_even": Row(M, lambda x: torch.median(x, dim=2, keepdim=True)[0]),
    "cummax": Row(M, lambda x: x.cummax(2).values),
    "cummin": Row(M, lambda x: torch.cummin(x, dim=1)[0]),
    "l1_norm": Row(M, lambda x: x.norm(p=1, dim=2)),
    "l1_norm_function": Row(M, lambda x: torch.norm(x, 1, dim=(1, 2)).unsqueeze(1)),
    "l1_vector_norm": Row(M, lambda x: torch.linalg.vector_norm(x, ord=1, dim=1, keepdim=True)),
    "inf_norm": Row(M, lambda x: torch.linalg.norm(x, math.inf, 1)),
    "inf_vector_norm": Row(M, lambda x: torch.linalg.vector_norm(x, ord=math.inf, dim=(1, 2)).unsqueeze(1)),
    "minus_inf_norm": Row(M, lambda x: torch.norm(x, -math.inf, dim=2)),
    "group_sort": Row(V, group_sort),
    "max_min": Row(V, max_min),
}

STEPS = {
    "gt": lambda x: x * (x > 0.1),
    "gt_by_feature": lambda x: x * (x > A6).to(x.dtype),
    "gt_reflected": lambda x: x * (x < 0.1),
    "ge_of_both": lambda x: x * x.ge(x.flip(1) / 2),
    "lt_of_constant": lambda x: x * torch.lt(A6, x),
    "le": lambda x: x.masked_fill(x <= 0.2, 0.2),
    "ne": lambda x: x * (x != 0.3),
    "where_by_sign": lambda x: torch.where(x > 0, x, 0.2 * x),
    "where_not": lambda x: torch.where(~(x > 0), x, A6),
    "where_of_numbers": lambda x: x + torch.where(x < 0.1, 0.5, A6),
    "method_where": lambda x: x.where(x > -0.1, -x),
    "masks": lambda x: x * ((x > -0.3) & (x < 0.3) | (x > 1)),
    "masked_in_place": lambda x: x.clone().masked_fill_(x < 0, 0.5),
    "inverse_mask": lambda x: x * (1 - (x > 0).double()),
    "share": lambda x: x / (x > 0).sum(1, keepdim=True).add(1),
    "any": lambda x: x * (x.view(-1, 3, 2) > 0).any(2).repeat(1, 2),
    "all": lambda x: x * (x.view(-1, 3, 2) > 0).all(2).repeat(1, 2),
    "sign": lambda x: x * x.sign(),
    "signbit": lambda x: x * x.signbit(),
    "round": lambda x: x + torch.round(2 * x),
    "floor": lambda x: x - x.floor(),
    "ceil": lambda x: x * x.ceil(),
    "floor_in_place": lambda x: x + (2 * x).floor_(),
    "guarded": lambda x: x.abs() if x.isfinite().all() and not torch.isnan(x).any() else -x,
}

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": lambda x: F.relu6(8 * x),
    "leaky_relu": lambda x: F.leaky_relu(x, -0.3),
    "prelu": lambda x: F.prelu(x, A6),
    "rrelu": lambda x: F.rrelu(x, 0.2, 0.5),
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.3),
    "threshold": lambda x: F.threshold(x, 0.2, -0.5),
    "hardsigmoid": lambda x: F.hardsigmoid(6 * x),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "abs": torch.abs,
    "clamp": lambda x: torch.clamp(x, -0.2, 0.3),
    "clamp_min": lambda x: torch.clamp_min(x, 0.2),
    "clamp_max": lambda x: torch.clamp_max(x, 0.2),
    **{
        f.__name__: lambda x, f=f: f(x, 0.5 * x.flip(1)) for f in (torch.maximum, torch.minimum, torch.fmax, torch.fmin)
    },
    **{f"{f.__name__}_constant": lambda x, f=f: f(A6, x) for f in (torch.maximum, torch.fmax, torch.fmin)},
}


def normalised(rank: int, transposed: bool) -> Row:
    """A convolution with as many channels behind it as before it, and a batch norm of its result."""
    shape, n = {1: (3, 5), 2: (3, 3, 4), 3: (3, 2, 3, 2)}[rank], 3
    convolve = getattr(F, f"conv{'_transpose' * transposed}{rank}d")
    weight, mean, var, scale = const(n, n, *[2] * rank), const(n), const(n).square() + 0.1, const(n)
    return Row(shape, lambda x: F.batch_norm(convolve(x, weight), mean, var, scale, mean, eps=0.03))


NORMALISED = {
    f"conv{'_transpose' * transposed}{rank}d_then_batch_norm": normalised(rank, transposed)
    for rank in (1, 2, 3)
    for transposed in (False, True)
}

edges = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 2, 0]])
places = torch.tensor([[3, 0, 2, 1], [1, 1, 3, 0], [0, 0, 2, 2]])
sparse = torch.randn(5, 4, generator=GENERATOR, dtype=DTYPE).relu().to_sparse()
grid = torch.rand(1, 3, 2, 2, generator=GENERATOR, dtype=DTYPE)
spectrum = torch.complex(const(3), const(3))


def written(x, index, value):
    y = x.clone()
    y[index] = value
    return y


PLACES = {
    "gather": Row(M, lambda x: x.gather(2, places.expand(len(x), 3, 4))),
    "gather_method_keyword": Row(M, lambda x: torch.gather(x, dim=2, index=places.expand(len(x), 3, 4))),
    "take_along_dim": Row(M, lambda x: torch.take_along_dim(x, places[None], dim=2)),
    "scatter": Row(M, lambda x: x.new_zeros(len(x), 3, 4).scatter(2, places[:1].expand(len(x), 3, 4), x * A34)),
    "scatter_into": Row(M, lambda x: x.scatter(1, places[2:].expand(len(x), 1, 4), x[:, :1] * 2)),
    "scatter_value": Row(M, lambda x: x.scatter(2, places[:, :2].expand(len(x), 3, 2), 0.5)),
    "scatter_add": Row(M, lambda x: x.new_zeros(len(x), 3, 5).scatter_add_(2, places.expand(len(x), 3, 4), x)),
    "scatter_mean": Row(M, lambda x: x.scatter_reduce(2, places.expand(len(x), 3, 4), 2 * x, "mean")),
    "index_add": Row(M, lambda x: torch.zeros_like(x).index_add(2, edges[1], x[:, :, edges[0]], alpha=-2)),
    "index_add_in_place": Row(M, lambda x: (x * 2).index_add_(2, edges[1], x[..., edges[0]] * A34[0, :1])),
    "index_copy": Row(M, lambda x: x.index_copy(1, torch.tensor([2, 0]), x[:, :2] * A4)),
    "index_fill": Row(M, lambda x: x.index_fill(2, torch.tensor([2, 0]), 0.7)),
    "set_item": Row(M, lambda x: written(x, (slice(None), 1), x[:, 0] - 1)),
    "set_item_broadcast": Row(M, lambda x: written(x, (..., slice(1, 3)), x[..., :1])),
    "set_item_mask": Row(M, lambda x: written(x, (slice(None), A34 > 0), 0.3)),
    "sparse": Row((4,), lambda x: torch.sparse.mm(sparse, x.T).T),
    "sparse_matmul": Row((4,), lambda x: (sparse @ x.t()).t()),
    "sparse_on_the_right": Row(V, lambda x: x[:, :5] @ sparse),
    "sparse_csr": Row((4,), lambda x: torch.matmul(sparse.to_sparse_csr(), x.T).T),
    "windows": Row(M, lambda x: x.unfold(2, 3, 1)),
    "diff": Row(M, lambda x: x.diff(n=2)),
    "diff_prepended": Row(M, lambda x: torch.diff(x, dim=1, prepend=A34[:1].expand(len(x), 1, 4))),
    "rot90": Row(M, lambda x: x.rot90(3, (1, 2))),
    "triu": Row(M, lambda x: x.triu(1)),
    "broadcast_tensors": Row(M, lambda x: torch.broadcast_tensors(x, x[:, :1])[1]),
    "tensordot": Row(M, lambda x: torch.tensordot(x, A34, dims=([1, 2], [0, 1])).unsqueeze(1)),
    "tensordot_of_one": Row(M, lambda x: torch.tensordot(x, A46, 1)),
    "lerp": Row(M, lambda x: torch.lerp(x, A34, 0.3)),
    "lerp_of_two": Row(M, lambda x: torch.lerp(x, x.flip(1), A4)),
    "addcmul": Row(M, lambda x: torch.addcmul(A34, x, A4, value=0.5)),
    "addcdiv": Row(M, lambda x: x.addcdiv(x.flip(2), A4, value=2)),
    "nan_to_num": Row(M, lambda x: torch.nan_to_num(x, nan=0.5)),
    "grid_sample": Row(IMAGE, lambda x: F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=False)),
    "lp_pool": Row(SIGNAL, lambda x: F.lp_pool1d(x, 1, 2)),
    "instance_norm": module(SIGNAL, lambda: nn.InstanceNorm1d(2, track_running_stats=True, affine=True)),
    "rfft": Row(M, lambda x: torch.view_as_real(torch.fft.rfft(x, norm="ortho")).flatten(2)[..., [0, 2, 3, 4]]),
    "filter": Row(M, lambda x: torch.fft.irfft(torch.fft.rfft(x) * spectrum, n=4)),
    "rfft2": Row(M, lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=(3, 4))),
    "max_unpool": Row(SIGNAL, lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
    "max_unpool_module": Row(IMAGE, lambda x: nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(x))),
}

ROWS = {**ARITHMETIC, **PRODUCTS, **CONVOLUTIONS, **POOLING, **JOINING, **SHAPES, **ORDER, **PLACES}
ROWS |= {f"keyword_{name}": row for name, row in KEYWORDS.items()}
ROWS |= NORMALISED | {f"function_{name}": Row(V, function) for name, function in (ACTIVATIONS | STEPS).items()}


class Fragment(nn.Module):
    """The function between activations, so that its input's linearization differs from sample to sample."""

    def __init__(self, row: Row):
        super().__init__()
        self.row = row
        sample = torch.zeros(1, *row.shape, dtype=DTYPE)
        self.register_buffer("mix", const(row.function(sample).numel(), 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.row.function(F.leaky_relu(x - 0.2, -0.6) + 0.3)
        return F.relu(F.leaky_relu(y, 0.3).flatten(1) @ self.mix)


def inputs(row: Row) -> Tensor:
    return torch.randn(2, *row.shape, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def check_norms(model: nn.Module, x: Tensor, layers: list[list[oracle.Layer]], q: float):
    found = llr_fast.gradient_norms(model, x, q)
    for layer, expected in zip(found, zip(*layers, strict=True), strict=True):
        same(layer.distance, torch.stack([sample.distance for sample in expected]))
        same(layer.norm, torch.stack([sample.norm(q) for sample in expected]))


def same(got: Tensor, expected: Tensor):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


if torch.__version__.startswith("2.11."):
    del ROWS["aminmax"]  # of which autograd has no derivative there


@pytest.mark.parametrize("name", ROWS)
def test_rule(name):
    model, x = Fragment(ROWS[name]), inputs(ROWS[name])
    layers = [oracle.neurons(model, sample) for sample in x.split(1)]
    for q in (1, 2, math.inf):
        check_norms(model, x, layers, q)
    expected = torch.stack([torch.cat([layer.margin(2) for layer in sample]).min() for sample in layers])
    for method in ("exact", "search"):
        same(llr_fast.margin(model, x, method=method).value, expected)


@pytest.mark.parametrize("name", ROWS)
def test_rule_at_the_input(name):
    """Before any activation, where all samples share one linearization."""
    model, x = nn.Sequential(networks.Apply(ROWS[name].function), nn.ReLU()), inputs(ROWS[name])
    check_norms(model, x, [oracle.neurons(model, sample) for sample in x.split(1)], 2)
