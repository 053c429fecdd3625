"""What is not piecewise linear, mixes samples or makes no sense raises, with a name; it is never certified silently."""

import contextlib
import math
import random
from collections import OrderedDict

import networks
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast

DTYPE = torch.float64
REFUSALS = (llr_fast.NotPiecewiseLinearError, ValueError)
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=DTYPE)


def inside(block: nn.Module) -> nn.Module:
    """The block as module 'block.act', behind a hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1))
    return nn.Sequential(OrderedDict(first=first, block=nn.Sequential(OrderedDict(act=block)))).double().eval()


NOT_PIECEWISE_LINEAR = {
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": F.log_softmax,
    "softmin": lambda x: F.softmin(x, 1),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x.view(-1, 2, 2)),
    "local_response_norm": lambda x: F.local_response_norm(x.view(-1, 2, 2), 2),
    "normalize": F.normalize,
    "mul": lambda x: x * x,
    "pow": lambda x: x**2,
    "square": torch.square,
    "div": lambda x: x / (x + 9),
    "rdiv": lambda x: 1 / x,
    "reciprocal": torch.reciprocal,
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "exp": torch.exp,
    "log": lambda x: (x + 9).log(),
    "sqrt": lambda x: (x + 9).sqrt(),
    "sin": torch.sin,
    "erf": torch.erf,
    "silu": F.silu,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "log_sigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "glu": F.glu,
    "gt": lambda x: x * (x > 0),
    "lt": lambda x: torch.where(x < 0, -x, x),
    "ge": lambda x: x.ge(0.0) * 1.0,
    "eq": lambda x: x == 0,
    "matmul": lambda x: x.view(-1, 2, 2) @ x.view(-1, 2, 2),
    "bmm": lambda x: torch.bmm(x.view(-1, 2, 2), x.view(-1, 2, 2)),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x),
    "linear": lambda x: F.linear(torch.ones(1, 4, dtype=DTYPE), x),
    "prod": lambda x: x.prod(1),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*[x.view(-1, 2, 2)] * 3),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + 1),
}


@pytest.mark.parametrize("name", NOT_PIECEWISE_LINEAR)
def test_function_and_module_are_named(name):
    with pytest.raises(llr_fast.NotPiecewiseLinearError) as error:
        llr_fast.margin(inside(networks.Apply(NOT_PIECEWISE_LINEAR[name])), X)
    assert name in str(error.value) and "block.act" in str(error.value)


CALLS = {
    "margin_exact": lambda model: llr_fast.margin(model, X, method="exact"),
    "margin_search": lambda model: llr_fast.margin(model, X, method="search"),
    "directional_margin": lambda model: llr_fast.directional_margin(model, X, torch.ones_like(X)),
    "gradient_norms": lambda model: llr_fast.gradient_norms(model, X),
    "activation_pattern": lambda model: llr_fast.activation_pattern(model, X),
    "roll_exact": lambda model: llr_fast.ROLLLoss(model, estimator="exact")(X),
    "roll_rademacher": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher")(X),
    "roll_axis": lambda model: llr_fast.ROLLLoss(model, estimator="axis")(X),
    "margin_loss": lambda model: llr_fast.MarginLoss(model)(X),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_entry_refuses(call):
    with pytest.raises(llr_fast.NotPiecewiseLinearError, match="gelu"):
        CALLS[call](inside(nn.GELU()))


class Called(nn.Module):
    """A module that is not called with x alone."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


MODULES = {
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "Softmax": lambda: nn.Softmax(1),
    "Bilinear": lambda: Called(nn.Bilinear(4, 4, 2), lambda layer, x: layer(x, x)),
    "LSTM": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LSTM(2, 3, batch_first=True)),
    "GRU": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GRU(2, 3, batch_first=True)),
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "MultiheadAttention": lambda: Called(
        nn.MultiheadAttention(2, 1, batch_first=True), lambda layer, x: layer(*[x.view(-1, 2, 2)] * 3)
    ),
    "TransformerEncoderLayer": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 3, batch_first=True)
    ),
    "InstanceNorm1d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2)),
    "BatchNorm1d_without_statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_torch_that_are_not_piecewise_linear(name, context):
    model = inside(MODULES[name]())
    with context(), pytest.raises(REFUSALS, match=r"block\.act"):
        llr_fast.margin(model, X)


def branch(x):
    return x if x.sum() > 0 else -x


ESCAPES = {
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x.sum()),
    "tolist": lambda x: x + torch.tensor(x.tolist()),
    "numpy": lambda x: x + torch.from_numpy(x.detach().numpy()).square(),
    "array": lambda x: x + torch.tensor(x.detach().__array__()).square(),
    "bool": lambda x: x if bool(x[:, 0].sum()) else -x,
    "branch": branch,
    "argmax": lambda x: x * x.argmax(1, keepdim=True),
    "nonzero": lambda x: x + len(x.nonzero()),
    "index_by_values": lambda x: torch.arange(9.0, dtype=DTYPE)[x.long().clamp(0, 8)] + x,
    "long": lambda x: x + x.long(),
    "round": torch.round,
    "sign": lambda x: x * x.sign(),
    "data": lambda x: x.data * x,
    "equality": lambda x: x * float(x[:, 0] == 0.5) + x,
    "inequality": lambda x: 2 * x if (x != 0) is True else x,
    "new_tensor": lambda x: x * x.new_tensor(x),
    "torch_tensor": lambda x: x * torch.tensor(x),
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "allclose": lambda x: x if torch.allclose(x, x) else -x,
}


@pytest.mark.parametrize("name", ESCAPES)
def test_values_do_not_escape(name):
    """Numbers read out of a tensor that depends on x would make the rest of the network look constant."""
    with pytest.raises(REFUSALS):
        llr_fast.margin(inside(networks.Apply(ESCAPES[name])), X)


def right_or_refused(function, plain=None):
    """A construct that a library may not know: the oracle's neurons and margin, or an error; never other numbers.

    `plain` is the same function for the oracle, where autograd does not know the construct either.
    """
    model, reference = (inside(networks.Apply(f)) for f in (function, plain or function))
    samples = [oracle.neurons(reference, sample) for sample in X.split(1)]
    try:
        found = llr_fast.gradient_norms(model, X, 1)
    except REFUSALS:
        found = None
    if found is not None:
        for neurons, layers in (
            ([n.distance for n in found], [[n.distance for n in s] for s in samples]),
            ([n.norm for n in found], [[n.norm(1) for n in s] for s in samples]),
        ):
            expected = torch.stack([torch.cat(sample) for sample in layers])
            torch.testing.assert_close(
                torch.cat(neurons, 1).sort(1).values, expected.sort(1).values, rtol=1e-8, atol=1e-12
            )
    expected = torch.stack([torch.cat([layer.margin(2) for layer in sample]).min() for sample in samples])
    for method in ("exact", "search"):
        try:
            value = llr_fast.margin(model, X, method=method).value
        except REFUSALS:
            continue
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12)


def relu_of_slice(x):
    y = 2 * x
    F.relu(y[:, :2], inplace=True)
    return y.abs()


def relu_of_row(x):
    y = x * 3
    y[:, 1].relu_()
    return y.abs()


def augmented_slice(x):
    y = x + 0.1
    y[:, :2] *= -3
    return y.abs()


def base_behind_view(x):
    y = x * 3
    view = y.view(-1, 2, 2)
    y.add_(1).mul_(2)
    return view.abs()


def chunk_in_place(x):
    left, right = (x * 2).chunk(2, 1)
    left.mul_(3)
    return (left + right).abs()


def unbind_in_place(x):
    y = x * 2
    for entry in y.unbind(1):
        entry.add_(0.5).abs_()
    return F.relu(y - 0.3)


def detached_in_place(x):
    y = x * 2
    y.detach().mul_(3)
    return y.abs()


def transposed_in_place(x):
    y = x * 2
    y.t().mul_(3)
    return y.abs()


def flattened_in_place(x):
    y = x * 2
    y.flatten(1).sub_(0.5)
    return y.abs()


def reshape_in_place(x):
    y = x * 2
    F.leaky_relu(y.reshape(len(x), 4), 0.3, inplace=True)
    return y.abs()


def in_place_of_input(x):
    y = x + 1
    z = y
    z *= -2
    return (y + z).abs()


def contiguous_alias(x):
    y = x * 2
    y.contiguous().mul_(3)
    return y.abs()


def dropout_alias(x):
    y = x * 2
    F.dropout(y, 0.5, training=False).mul_(3)
    return y.abs()


def to_alias(x):
    y = x * 2
    y.to(y.dtype).mul_(3)
    return y.abs()


def set_item(x):
    y = x * 2
    y[:, 0] = 1 - x[:, 1]
    return y.abs()


def set_item_of_buffer(x):
    buffer = torch.zeros(len(x), 4, dtype=DTYPE)
    buffer[:, 1:] = x[:, :3] - 0.2
    return buffer.abs()


def copied_into_buffer(x):
    buffer = torch.zeros(len(x), 4, dtype=DTYPE)
    buffer.copy_(x - 0.2)
    return buffer.abs()


def added_to_buffer(x):
    buffer = torch.ones(len(x), 4, dtype=DTYPE)
    buffer += x
    return buffer.abs()


def added_to_slice_of_buffer(x):
    buffer = torch.ones(len(x), 5, dtype=DTYPE)
    buffer[:, :4] += x
    return buffer.abs()


def added_to_view_of_buffer(x):
    buffer = torch.ones(len(x), 5, dtype=DTYPE)
    view = buffer[:, :4]
    view += x
    return buffer.abs()


def multiplied_into_view(x):
    buffer = torch.ones(len(x), 5, dtype=DTYPE)
    view = buffer[:, :4]
    view *= x
    return buffer.abs() + x[:, :1]


def out_argument(x):
    buffer = torch.zeros(len(x), 4, dtype=DTYPE)
    torch.add(x, 1, out=buffer)
    return buffer.abs()


def index_add(x):
    return torch.zeros(len(x), 4, dtype=DTYPE).index_add(1, torch.tensor([0, 1, 1, 2]), x - 0.2).abs()


def scatter(x):
    index = torch.tensor([[3, 1, 0, 2]]).expand(len(x), 4)
    return torch.zeros(len(x), 4, dtype=DTYPE).scatter(1, index, x - 0.2).abs()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.abs() - 0.3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


C4 = torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=DTYPE)
CONSTRUCTS = {
    function.__name__: function
    for function in (
        relu_of_slice,
        relu_of_row,
        augmented_slice,
        base_behind_view,
        transposed_in_place,
        flattened_in_place,
        reshape_in_place,
        in_place_of_input,
        contiguous_alias,
        dropout_alias,
        to_alias,
        set_item,
        set_item_of_buffer,
        copied_into_buffer,
        added_to_buffer,
        added_to_slice_of_buffer,
        added_to_view_of_buffer,
        multiplied_into_view,
        index_add,
        scatter,
    )
} | {
    "cumsum": lambda x: x.cumsum(1).abs(),
    "diff": lambda x: x.diff(dim=1).abs(),
    "lerp": lambda x: torch.lerp(x, C4[:, 0], 0.3).abs(),
    "tensordot": lambda x: torch.tensordot(x, C4, dims=1).abs(),
    "inner": lambda x: torch.inner(x, C4.T).abs(),
    "kron": lambda x: torch.kron(x, C4[:1]).abs(),
    "addmv": lambda x: torch.mv(x, C4[:, 0]).unsqueeze(1).abs(),
    "addcmul": lambda x: torch.addcmul(x, C4[:, 0], C4[:, 1]).abs(),
    "addcdiv": lambda x: torch.addcdiv(x, C4[:, 0], C4[:, 1]).abs(),
    "trace": lambda x: torch.einsum("bii->b", x.view(-1, 2, 2)).unsqueeze(1).abs(),
    "diagonal": lambda x: x.view(-1, 2, 2).diagonal(dim1=1, dim2=2).abs(),
    "tril": lambda x: x.view(-1, 2, 2).tril().flatten(1).abs(),
    "unfold": lambda x: x.unfold(1, 2, 1).flatten(1).abs(),
    "im2col": lambda x: F.unfold(x.view(-1, 1, 2, 2), 2).flatten(1).abs(),
    "gather": lambda x: x.gather(1, torch.tensor([[3, 1]]).expand(len(x), 2)).abs(),
    "take_along_dim": lambda x: x.take_along_dim(torch.tensor([[3, 1]]), 1).abs(),
    "rot90": lambda x: x.view(-1, 2, 2).rot90(1, (1, 2)).flatten(1).abs(),
    "tile": lambda x: x.tile(1, 2).abs(),
    "hstack": lambda x: torch.hstack([x, x - 1]).abs(),
    "dstack": lambda x: torch.dstack([x, x - 1]).abs(),
    "fft": lambda x: torch.fft.rfft(x).real.abs(),
    "nan_to_num": lambda x: x.nan_to_num().abs(),
    "max_over_axis": lambda x: x.max(1).values.unsqueeze(1),
    "amax": lambda x: x.view(-1, 2, 2).amax(1),
    "amin": lambda x: x.view(-1, 2, 2).amin((1, 2), keepdim=True),
    "fmax": lambda x: torch.fmax(x, x.flip(1) / 2),
    "fmin_of_constant": lambda x: torch.fmin(C4[:, 0], x),
    "maximum_of_constant_first": lambda x: torch.maximum(C4[:, 0], x),
    "einsum_ellipsis": lambda x: torch.einsum("...j,jk->...k", x, C4).abs(),
    "einsum_implicit": lambda x: torch.einsum("bj,jk", x, C4).abs(),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1).abs(),
    "max_of_two": lambda x: torch.max(x, -x.roll(1, 1)),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, 1).values,
    "median": lambda x: x.median(1).values,
    "clamp_crossed": lambda x: x.clamp(0.5, -0.5) + x.abs(),
    "max_pool_indices": lambda x: F.max_pool1d(x.unsqueeze(1), 2, return_indices=True)[0].flatten(1),
    "max_unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x.unsqueeze(1), 2, return_indices=True), 2).flatten(1).abs(),
    "lp_pool": lambda x: F.lp_pool1d(x.unsqueeze(1), 1, 2).flatten(1).abs(),
    "relu_out_of_aten": lambda x: torch.ops.aten.abs(x),
    "square_by_aten": lambda x: torch.ops.aten.abs(torch.ops.aten.mul.Tensor(x, x)),
    "complex": lambda x: torch.complex(x, x).real.abs(),
    "prelu_of_itself": lambda x: F.prelu(x, x[0, :1]),
    "same_slope": lambda x: F.leaky_relu(x, 1.0),
    "celu_of_constant": lambda x: F.celu(C4[:, 0]) * x.abs(),
    "where_of_two": lambda x: torch.where(C4[:, 0] > 0, x, x.flip(1)).abs(),
    "as_strided": lambda x: x.contiguous().as_strided((len(x), 2), (4, 1)).abs(),
    "split_by_batch": lambda x: torch.cat([sample.abs() for sample in x.split(1)]),
    "loop_over_batch": lambda x: torch.stack([sample.abs() for sample in x]),
    "two_copies_in_batch": lambda x: torch.cat([x, -x]).abs().chunk(2)[0] + 1,
    "stacked_in_front": lambda x: torch.stack([x, 0.5 - x]).abs(),
    "batch_last": lambda x: (C4.T @ x.T).abs(),
    "batch_merged_last": lambda x: x.t().reshape(-1).abs(),
    "batch_merged_first": lambda x: (x - 0.1).reshape(-1).abs(),
    "batch_squeezed": lambda x: x.squeeze().abs(),
    "conv_without_batch": lambda x: (
        F.conv1d(x, C4[:2, :1].view(2, 1, 1).expand(2, 2, 1)).abs() if len(x) == 2 else x.abs()
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_right_or_refused(name):
    right_or_refused(CONSTRUCTS[name])


UNKNOWN_TO_AUTOGRAD = {
    "chunk_in_place": (chunk_in_place, lambda x: (6 * x[:, :2] + 2 * x[:, 2:]).abs()),
    "unbind_in_place": (unbind_in_place, lambda x: F.relu((x * 2 + 0.5).abs() - 0.3)),
    "detached_in_place": (detached_in_place, lambda x: (6 * x).abs()),
    "out_argument": (out_argument, lambda x: (x + 1).abs()),
    "custom_function": (lambda x: StraightThrough.apply(x), lambda x: x.abs() - 0.3),
    "vmap": (lambda x: torch.vmap(lambda row: (row * 2).abs())(x), lambda x: (x * 2).abs()),
    "clamp_by_tensor": (lambda x: x.clamp(min=C4[:, 0] / 5), lambda x: torch.maximum(x, C4[:, 0] / 5)),
    "clamp_by_itself": (lambda x: x.clamp(max=x.flip(1) / 2), lambda x: torch.minimum(x, x.flip(1) / 2)),
    "detached_branch": (lambda x: (x.detach() + x.flip(1)).abs(), lambda x: (x + x.flip(1)).abs()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNKNOWN_TO_AUTOGRAD)
def test_right_or_refused_where_autograd_does_not_follow(name):
    right_or_refused(*UNKNOWN_TO_AUTOGRAD[name])


def test_caller_input_is_never_written():
    x = X.clone()
    model = nn.Sequential(networks.Apply(lambda x: F.relu_(x.mul_(2).add_(1))))
    for call in (llr_fast.margin, llr_fast.activation_pattern, llr_fast.gradient_norms):
        with contextlib.suppress(*REFUSALS):
            call(model, x)
        assert torch.equal(x, X)


MIXING = {
    "mean": lambda x: x.mean(0),
    "centred": lambda x: x - x.mean(0),
    "sum": lambda x: x.sum(),
    "first": lambda x: x[0],
    "first_kept": lambda x: x[:1],
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "permuted": lambda x: x[torch.tensor([1, 0])],
    "index_select": lambda x: x.index_select(0, torch.tensor([1, 0])),
    "cat_constant": lambda x: torch.cat([x, torch.ones(1, 4, dtype=DTYPE)]),
    "cumsum": lambda x: x.cumsum(0),
    "mixing_matrix": lambda x: torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=DTYPE) @ x,
    "pairs": lambda x: x.reshape(1, 8) @ torch.ones(8, 2, dtype=DTYPE),
    "all_pairs": lambda x: x.unsqueeze(0) - x.unsqueeze(1),
    "max_over_batch": lambda x: x.amax(0),
    "pool_over_batch": lambda x: F.max_pool1d(x.T.unsqueeze(0), 2),
    "conv_over_batch": lambda x: F.conv1d(x.T.unsqueeze(0), torch.ones(3, 4, 2, dtype=DTYPE)),
    "einsum": lambda x: torch.einsum("bi,ij->j", x, C4),
    "transposed_addition": lambda x: x[:, :2] + x[:, :2].T,
    "neighbour": lambda x: x[:, :2] - x[:, 2:].flip(0),
    "dropped_by_squeeze": lambda x: x.split(1)[0].squeeze(0),
    "linear_over_batch": lambda x: F.linear(x.T, torch.ones(3, 2, dtype=DTYPE)),
    "cumsum_of_merged": lambda x: x.reshape(-1).cumsum(0),
    "reordered_by_arange": lambda x: x[torch.arange(len(x) - 1, -1, -1)],
    "every_other": lambda x: torch.cat([x, x])[::2],
    "steps_of_neighbours": lambda x: x.view(1, 2, 4)[:, :1] + x.view(1, 2, 4),
    "unfolded": lambda x: x.unfold(0, 2, 1),
    "matrix_of_samples": lambda x: torch.tensordot(torch.ones(3, 2, dtype=DTYPE), x, dims=1),
    "batch_norm_over_batch": lambda x: F.batch_norm(x.T, torch.zeros(2).double(), torch.tensor([1.0, 9.0]).double()),
    "sorted_out": lambda x: x.index_select(0, torch.zeros(2, dtype=torch.long)),
    "repeated_first": lambda x: x[:1].expand(2, 4),
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_may_not_mix(name):
    model = nn.Sequential(inside(nn.Identity()), networks.Apply(MIXING[name]), nn.ReLU())
    with pytest.raises(REFUSALS):
        llr_fast.margin(model, X)
    with pytest.raises(REFUSALS):
        llr_fast.gradient_norms(model, X)


def training_mode(module):
    model = inside(module)
    model.train()
    return model


@pytest.mark.parametrize(
    "call", ["margin_exact", "margin_search", "directional_margin", "gradient_norms", "activation_pattern"]
)
@pytest.mark.parametrize("module", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_training_mode_has_no_certificate(module, call):
    with pytest.raises(ValueError, match=r"block\.act"):
        CALLS[call](training_mode(module))


@pytest.mark.parametrize("module", [nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.RReLU(), nn.Dropout1d(0.5)])
def test_other_random_layers_have_no_certificate(module):
    with pytest.raises((ValueError, llr_fast.NotPiecewiseLinearError), match=r"block\.act"):
        llr_fast.margin(training_mode(module), X)


@pytest.mark.parametrize("normalise", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_change_with_every_call_have_no_certificate(normalise):
    model = nn.Sequential(normalise(nn.Linear(4, 3)), nn.ReLU()).double()
    with pytest.raises(ValueError, match=r"'0\..*_u' updated; call model.eval\(\)"):
        llr_fast.margin(model, X)
    assert llr_fast.margin(model.eval(), X).value.isfinite().all()


RELU = inside(nn.ReLU())
INPUTS = {
    "integer": (X.long(), "int64"),
    "complex": (X.to(torch.complex128), "complex"),
    "boolean": (X > 0, "bool"),
    "one_axis": (X[0], "4"),
    "empty_batch": (X[:0], "0"),
    "nan": (X.clone().index_fill_(1, torch.tensor([2]), math.nan), "[Nn]a[Nn]|finite"),
    "infinite": (X.clone().index_fill_(1, torch.tensor([2]), math.inf), "inf|finite"),
    "device": (X.to("meta"), "meta"),
}
ENTRIES = {
    "margin": llr_fast.margin,
    "directional_margin": lambda model, x: llr_fast.directional_margin(model, x, x),
    "gradient_norms": llr_fast.gradient_norms,
    "activation_pattern": llr_fast.activation_pattern,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", INPUTS)
def test_bad_input(name, entry):
    x, got = INPUTS[name]
    with pytest.raises(ValueError, match=r"\bx\b") as error:
        ENTRIES[entry](RELU, x)
    assert error.match(got)


@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
@pytest.mark.parametrize("name", ["integer", "one_axis", "empty_batch", "device"])
def test_bad_input_of_losses(name, make):
    with pytest.raises(ValueError, match=r"\bx\b"):
        make(RELU)(INPUTS[name][0])


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_kinds(entry):
    with pytest.raises(TypeError, match=r"\bx\b.*list"):
        ENTRIES[entry](RELU, X.tolist())
    with pytest.raises(TypeError, match=r"model.*function"):
        ENTRIES[entry](lambda x: x.relu(), X)


@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
def test_losses_wrap_modules(make):
    with pytest.raises(TypeError, match="model"):
        make(torch.relu)
    with pytest.raises(TypeError, match=r"\bx\b"):
        make(RELU)(X.tolist())


@pytest.mark.parametrize(
    "options, name",
    [
        ({"p": 3}, "p"),
        ({"p": 0}, "p"),
        ({"p": "two"}, "p"),
        ({"p": None}, "p"),
        ({"method": "fast"}, "method"),
        ({"failure_probability": 0.0}, "failure_probability"),
        ({"failure_probability": 1.0}, "failure_probability"),
        ({"failure_probability": -1e-3}, "failure_probability"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_options_of_margin(options, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b.*{next(iter(options.values()))}"):
        llr_fast.margin(RELU, X, **options)


def test_bad_q():
    with pytest.raises(ValueError, match=r"\bq\b.*3"):
        llr_fast.gradient_norms(RELU, X, 3)


@pytest.mark.parametrize(
    "direction",
    [torch.ones(2, 3, dtype=DTYPE), torch.ones(4, dtype=DTYPE), torch.full((2, 4), math.nan, dtype=DTYPE), X.long()],
    ids=["shape", "axes", "nan", "integer"],
)
def test_bad_direction(direction):
    with pytest.raises(ValueError, match="direction"):
        llr_fast.directional_margin(RELU, X, direction)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": -1},
        {"gamma": 100.5},
        {"gamma": math.nan},
        {"samples": 0},
        {"samples": -2},
        {"lam": -1.0},
        {"lam": math.nan},
        {"C": -0.5},
        {"estimator": "sobol"},
    ],
    ids=str,
)
def test_bad_options_of_roll(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"\b{name}\b.*{value}"):
        llr_fast.ROLLLoss(RELU, **options)


def test_bad_option_of_margin_loss():
    with pytest.raises(ValueError, match=r"\blam\b.*-1"):
        llr_fast.MarginLoss(RELU, lam=-1)


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_weights_are_not_certified(broken, method):
    model = inside(nn.ReLU())
    model.first[0].weight.data[1, 1] = broken
    try:
        value = llr_fast.margin(model, X, method=method).value
    except ValueError:
        return
    assert value.isnan().all()


@pytest.mark.parametrize("method", ["exact", "search"])
def test_overflow_is_not_certified(method):
    model = inside(nn.Sequential(networks.Apply(lambda x: (x * 1e200) * 1e200), nn.ReLU()))
    try:
        value = llr_fast.margin(model, X, method=method).value
    except ValueError:
        return
    assert (value.isnan() | (value <= oracle.margin(model.first, X, 2) * (1 + 1e-9))).all()


def test_model_that_does_not_fit_the_input_says_so():
    with pytest.raises((RuntimeError, ValueError), match="mat1 and mat2"):
        llr_fast.margin(RELU, torch.randn(2, 7, dtype=DTYPE))


def test_after_an_error_everything_works():
    with pytest.raises(llr_fast.NotPiecewiseLinearError):
        llr_fast.margin(inside(nn.GELU()), X)
    torch.testing.assert_close(llr_fast.margin(RELU, X).value, oracle.margin(RELU, X, 2))
    assert type(torch.relu(X)) is torch.Tensor


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("function", [torch.matmul, F.linear, torch.mul, lambda x, c: torch.sparse.mm(c, x.T).T])
def test_sparse_constants_are_refused(function, layout):
    constant = getattr(torch.eye(X.size(1), dtype=X.dtype), layout)()
    model = networks.Apply(lambda x: function(x, constant).relu())
    with pytest.raises(llr_fast.NotPiecewiseLinearError, match=r"sparse constant is not supported; pass its to_dense"):
        llr_fast.margin(model, X)


def test_dropout_that_is_always_on_says_so():
    model = networks.Apply(lambda x: F.dropout(x, 0.5).relu()).eval()
    with pytest.raises(ValueError, match=r"dropout .* which the module is not; pass training=self\.training"):
        llr_fast.margin(model, X)


class Counting(nn.Module):
    """Adds so much for each call."""

    def __init__(self, step):
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x):
        self.calls += 1
        return F.relu(x) + self.step * self.calls


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("step", [1e-3, 1.0])
def test_a_state_is_no_rounding(step, dtype):
    """Two more evaluations, in float32, tell one from the other: they differ from the first by as much."""
    with pytest.raises(ValueError, match="keeps a state"):
        llr_fast.margin(Counting(step), X.to(dtype))


@pytest.mark.parametrize("part", [1e-3, 1e-7, 1e-10])
def test_models_that_ask_for_the_type_of_x_by_a_little(part):
    class Asking(nn.Module):
        def forward(self, x):
            return F.relu(x) * (1 if type(x) is torch.Tensor else 1 + part)

    with pytest.raises(ValueError, match="asks for the type"):
        llr_fast.margin(Asking(), X)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
@pytest.mark.parametrize("first", [True, False])
def test_numbers_drawn_before_and_after_all_operations(first, draw):
    class Drawing(nn.Module):
        def forward(self, x):
            self.kept = draw() if first else None
            x = F.relu(x)
            self.kept = self.kept or draw()
            return x

    with pytest.raises(ValueError, match="random numbers drawn in module 'Drawing'"):
        llr_fast.margin(Drawing(), X)


def index_of_numpy(x):
    index = np.array([2, 0, 1])
    y = (x * C4[:, 0])[:, index]
    index[:] = 3
    return y.abs()


def list_of_indices(x):
    index = [2, 0, 1]
    y = (x * C4[:, 0])[:, index]
    index[:] = [3, 3, 3]
    return y.abs()


def constant_changed_later(x):
    constant = C4[:, 0].clone()
    y = x * constant
    constant.zero_()
    return y.abs()


CHANGING = {
    index_of_numpy: lambda x: (x * C4[:, 0])[:, [2, 0, 1]].abs(),
    list_of_indices: lambda x: (x * C4[:, 0])[:, [2, 0, 1]].abs(),
    constant_changed_later: lambda x: (x * C4[:, 0]).abs(),
}


@pytest.mark.parametrize("function", CHANGING)
def test_constants_that_change_after_their_use(function):
    model = networks.Apply(function)
    expected = [oracle.neurons(networks.Apply(CHANGING[function]), sample)[0] for sample in X.split(1)]
    for q in (1, 2):
        (found,) = llr_fast.gradient_norms(model, X, q)
        torch.testing.assert_close(found.norm, torch.stack([layer.norm(q) for layer in expected]))
    for p in (1, 2):
        wanted = torch.stack([layer.margin(p).min() for layer in expected])
        torch.testing.assert_close(llr_fast.margin(model, X, p, method="search").value, wanted)
