"""Functions of torch in unusual forms: which of them are supported, and which are refused for want of a rule."""

import pytest
import torch
import torch.nn.functional as F
from refusal_cases import C4, DTYPE, Refused, check_refused, check_supported, mixes, no_rule
from torch import nn

import llr_fast

SUPPORTED = {
    "cumsum": lambda x: x.cumsum(1).abs(),
    "addmv": lambda x: torch.mv(x, C4[:, 0]).unsqueeze(1).abs(),
    "trace": lambda x: torch.einsum("bii->b", x.view(-1, 2, 2)).unsqueeze(1).abs(),
    "diagonal": lambda x: x.view(-1, 2, 2).diagonal(dim1=1, dim2=2).abs(),
    "im2col": lambda x: F.unfold(x.view(-1, 1, 2, 2), 2).flatten(1).abs(),
    "take_along_dim": lambda x: x.take_along_dim(torch.tensor([[3, 1]]), 1).abs(),
    "tile": lambda x: x.tile(1, 2).abs(),
    "hstack": lambda x: torch.hstack([x, x - 1]).abs(),
    "fmax": lambda x: torch.fmax(x, x.flip(1) / 2),
    "fmin_of_constant": lambda x: torch.fmin(C4[:, 0], x),
    "maximum_of_constant_first": lambda x: torch.maximum(C4[:, 0], x),
    "einsum_ellipsis": lambda x: torch.einsum("...j,jk->...k", x, C4).abs(),
    "einsum_implicit": lambda x: torch.einsum("bj,jk", x, C4).abs(),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1).abs(),
    "max_of_two": lambda x: torch.max(x, -x.roll(1, 1)),
    "max_over_axis": lambda x: x.max(1).values.unsqueeze(1),
    "amax": lambda x: x.view(-1, 2, 2).amax(1),
    "amin": lambda x: x.view(-1, 2, 2).amin((1, 2), keepdim=True),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, 1).values,
    "median": lambda x: x.median(1).values,
    "clamp_crossed": lambda x: x.clamp(0.5, -0.5) + x.abs(),
    "same_slope": lambda x: F.leaky_relu(x, 1.0),
    "celu_of_constant": lambda x: F.celu(C4[:, 0]) * x.abs(),
    "where_of_two": lambda x: torch.where(C4[:, 0] > 0, x, x.flip(1)).abs(),
    "stacked_in_front": lambda x: torch.stack([x, 0.5 - x]).abs(),
    "batch_last": lambda x: (C4.T @ x.T).abs(),
    "batch_merged_last": lambda x: x.t().reshape(-1).abs(),
    "batch_merged_first": lambda x: (x - 0.1).reshape(-1).abs(),
    "batch_squeezed": lambda x: x.squeeze().abs(),
    "diff": lambda x: x.diff(dim=1).abs(),
    "lerp": lambda x: torch.lerp(x, C4[:, 0], 0.3).abs(),
    "tensordot": lambda x: torch.tensordot(x, C4, dims=1).abs(),
    "addcmul": lambda x: torch.addcmul(x, C4[:, 0], C4[:, 1]).abs(),
    "addcdiv": lambda x: torch.addcdiv(x, C4[:, 0], C4[:, 1]).abs(),
    "tril": lambda x: x.view(-1, 2, 2).tril().flatten(1).abs(),
    "unfold": lambda x: x.unfold(1, 2, 1).flatten(1).abs(),
    "gather": lambda x: x.gather(1, torch.tensor([[3, 1]]).expand(len(x), 2)).abs(),
    "rot90": lambda x: x.view(-1, 2, 2).rot90(1, (1, 2)).flatten(1).abs(),
    "nan_to_num": lambda x: x.nan_to_num().abs(),
    "lp_pool": lambda x: F.lp_pool1d(x.unsqueeze(1), 1, 2).flatten(1).abs(),
    "index_add": lambda x: x.new_zeros(len(x), 4).index_add(1, torch.tensor([0, 1, 1, 2]), x - 0.2).abs(),
    "scatter": lambda x: (
        torch.zeros(len(x), 4, dtype=DTYPE).scatter(1, torch.tensor([[3, 1, 0, 2]]).expand(len(x), 4), x - 0.2).abs()
    ),
    "fft": lambda x: torch.fft.rfft(x).real.abs(),
    "filter": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.complex(C4[:3, 0], C4[:3, 1]), 4).abs(),
    "complex": lambda x: (torch.complex(x, x.flip(1)) * (1 + 2j)).imag.abs(),
    "max_pool_indices": lambda x: F.max_pool1d(x.unsqueeze(1), 2, return_indices=True)[0].flatten(1),
    "max_unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x.unsqueeze(1), 2, return_indices=True), 2).flatten(1).abs(),
    "abs_by_aten": lambda x: torch.ops.aten.abs(x),
    "ones_at_places": lambda x: torch.zeros_like(x).scatter_(1, x.argsort(1)[:, :2], 1.0) * x,
    "sparse_by_dense": lambda x: torch.sparse.mm(torch.eye(4, dtype=DTYPE).to_sparse_csr(), x.T).T.abs(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_constructs_are_right(name):
    check_supported(SUPPORTED[name])


class AbsWithoutBackward(torch.autograd.Function):
    """Its backward pass is not that of what it computes."""

    @staticmethod
    def forward(ctx, x):
        return x.abs() - 0.3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


with torch.random.fork_rng():
    torch.manual_seed(0)
    RNN = nn.RNN(2, 3, 2, nonlinearity="relu", batch_first=True, bidirectional=True).double().requires_grad_(False)
    CELL = nn.RNNCell(2, 2, nonlinearity="relu").double().requires_grad_(False)


def by_hand(x, state, w_ih, w_hh, b_ih, b_hh):
    return F.relu(x @ w_ih.T + b_ih + state @ w_hh.T + b_hh)


def rnn_by_hand(x):
    """Two layers in both directions, of two steps."""
    steps = [x[:, :2], x[:, 2:]]
    last = []
    for layer in RNN.all_weights[:2], RNN.all_weights[2:]:
        first = [by_hand(step, x.new_zeros(len(x), 3), *weights) for step, weights in zip((steps[0], steps[1]), layer)]
        there = [first[0], by_hand(steps[1], first[0], *layer[0])]
        back = [by_hand(steps[0], first[1], *layer[1]), first[1]]
        steps, last = [torch.cat(pair, 1) for pair in zip(there, back)], [*last, there[-1], back[0]]
    return torch.stack(steps, 1).sum(2) + torch.stack(last).sum((0, 2))[:, None]


def rnn(x):
    outputs, last = RNN(x.view(-1, 2, 2))
    return outputs.sum(2) + last.sum((0, 2))[:, None]


SUPPORTED_BUT_BY_AUTOGRAD = {
    "in_place_by_aten": (
        lambda x: torch.ops.aten.relu_.default(torch.ops.aten.add_.Tensor(2 * x, x.flip(1), alpha=-1)),
        lambda x: F.relu(2 * x - x.flip(1)),
    ),
    "rnn": (rnn, rnn_by_hand),
    "rnn_cell": (
        lambda x: CELL(x[:, :2], CELL(x[:, 2:])),
        lambda x: by_hand(x[:, :2], by_hand(x[:, 2:], 0 * x[:, :2], *CELL.parameters()), *CELL.parameters()),
    ),
    "custom_function": (lambda x: AbsWithoutBackward.apply(x), lambda x: x.abs() - 0.3),
    "clamp_by_tensor": (lambda x: x.clamp(min=C4[:, 0] / 5), lambda x: torch.maximum(x, C4[:, 0] / 5)),
    "clamp_by_itself": (lambda x: x.clamp(max=x.flip(1) / 2), lambda x: torch.minimum(x, x.flip(1) / 2)),
    "detached_branch": (lambda x: (x.detach() + x.flip(1)).abs(), lambda x: (x + x.flip(1)).abs()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUPPORTED_BUT_BY_AUTOGRAD)
def test_supported_where_autograd_does_not_follow(name):
    """The oracle, which differentiates by autograd, runs the same function in other words."""
    check_supported(*SUPPORTED_BUT_BY_AUTOGRAD[name])


REFUSED = {
    "inner": no_rule(lambda x: torch.inner(x, C4.T).abs(), "inner"),
    "kron": no_rule(lambda x: torch.kron(x, C4[:1]).abs(), "kron"),
    "dstack": no_rule(lambda x: torch.dstack([x, x - 1]).abs(), "dstack"),
    "square_by_aten": no_rule(lambda x: torch.ops.aten.abs(torch.ops.aten.mul.Tensor(x, x)), "mul"),
    "modulus": no_rule(lambda x: torch.complex(x, x.flip(1)).abs(), "abs"),
    "as_strided": no_rule(lambda x: x.contiguous().as_strided((len(x), 2), (4, 1)).abs(), "as_strided"),
    "conv_without_batch": no_rule(
        lambda x: F.conv1d(x, C4[:2, :1].view(2, 1, 1).expand(2, 2, 1)).abs() if len(x) == 2 else x.abs(), "conv1d"
    ),
    "vmap": Refused(
        lambda x: torch.vmap(lambda row: (row * 2).abs())(x), llr_fast.NotPiecewiseLinearError, ("aten.mul.Tensor",)
    ),
    "prelu_of_itself": mixes(lambda x: F.prelu(x, x[0, :1]), "__getitem__"),
    "split_by_batch": mixes(lambda x: torch.cat([sample.abs() for sample in x.split(1)]), "split"),
    "loop_over_batch": mixes(lambda x: torch.stack([sample.abs() for sample in x]), "unbind"),
    "two_copies_in_batch": mixes(lambda x: torch.cat([x, -x]).abs().chunk(2)[0] + 1, "chunk"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_constructs_without_a_rule_are_refused(name):
    check_refused(REFUSED[name])
