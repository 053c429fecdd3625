"""Functions and modules of torch that are not piecewise linear raise an error that names them and where they are."""

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from compare import refused
from refusal_cases import DTYPE, RELU, Refused, X, check_refused, inside, no_rule
from torch import nn

import llr_fast

# By the name that the message has to mention.
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
    "__rdiv__": lambda x: 1 / x,
    "reciprocal": torch.reciprocal,
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "linalg_vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
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
    "matmul": lambda x: x.view(-1, 2, 2) @ x.view(-1, 2, 2),
    "bmm": lambda x: torch.bmm(x.view(-1, 2, 2), x.view(-1, 2, 2)),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x),
    "linear": lambda x: F.linear(torch.ones(1, 4, dtype=DTYPE), x),
    "prod": lambda x: x.prod(1),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*[x.view(-1, 2, 2)] * 3),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + 1),
}


@pytest.mark.parametrize("name", NOT_PIECEWISE_LINEAR)
def test_function_and_module_are_named(name):
    check_refused(no_rule(NOT_PIECEWISE_LINEAR[name], name))


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
    "region": lambda model: llr_fast.region(model, X[:1]),
    "robustness": lambda model: llr_fast.robustness(model, X),
    "count_linear_regions": lambda model: llr_fast.count_linear_regions(model, [X]),
    "evaluate": lambda model: llr_fast.evaluate(model, [X], std=[1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_entry_refuses(call):
    with refused(llr_fast.NotPiecewiseLinearError, "gelu", "block.act"):
        CALLS[call](inside(nn.GELU()))


class Called(nn.Module):
    """A module that is not called with x alone."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def of_module(make, function, path="block.act", error=llr_fast.NotPiecewiseLinearError):
    """Refused for this function of torch, called by the module at this path."""
    return Refused(make, error, (function, path))


MODULES = {
    "LayerNorm": of_module(lambda: nn.LayerNorm(4), "layer_norm"),
    "RMSNorm": of_module(lambda: nn.RMSNorm(4), "rms_norm"),
    "GroupNorm": of_module(lambda: nn.GroupNorm(2, 4), "group_norm"),
    "Softmax": of_module(lambda: nn.Softmax(1), "softmax"),
    "Bilinear": of_module(
        lambda: Called(nn.Bilinear(4, 4, 2), lambda layer, x: layer(x, x)), "bilinear", "block.act.layer"
    ),
    "LSTM": of_module(
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LSTM(2, 3, batch_first=True)), "lstm", "block.act.1"
    ),
    "GRU": of_module(
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GRU(2, 3, batch_first=True)), "gru", "block.act.1"
    ),
    "LSTMCell": of_module(lambda: nn.LSTMCell(4, 3), "lstm_cell"),
    "MultiheadAttention": of_module(
        lambda: Called(nn.MultiheadAttention(2, 1, batch_first=True), lambda layer, x: layer(*[x.view(-1, 2, 2)] * 3)),
        "multi_head_attention_forward",
        "block.act.layer",
    ),
    "TransformerEncoderLayer": of_module(
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 3, batch_first=True)),
        "multi_head_attention_forward",
        "block.act.1.self_attn",
    ),
    "InstanceNorm1d": of_module(
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2)), "instance_norm", "block.act.1"
    ),
    "BatchNorm1d_without_statistics": of_module(
        lambda: nn.BatchNorm1d(4, track_running_stats=False), "batch_norm", error=ValueError
    ),
}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_torch_that_are_not_piecewise_linear(name, context):
    case = MODULES[name]
    with context():
        check_refused(case, inside(case.run()))


SPARSE = {
    "linear": F.linear,
    "mul": torch.mul,
}


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_constants_are_refused(name, layout):
    constant = getattr(torch.eye(X.size(1), dtype=X.dtype), layout)()
    model = networks.Apply(lambda x: SPARSE[name](x, constant).relu())
    hint = r"sparse constant is not supported; pass its to_dense"
    with refused(llr_fast.NotPiecewiseLinearError, name, "Apply", match=hint):
        llr_fast.margin(model, X)


def test_after_an_error_everything_works():
    with refused(llr_fast.NotPiecewiseLinearError, "gelu", "block.act"):
        llr_fast.margin(inside(nn.GELU()), X)
    torch.testing.assert_close(llr_fast.margin(RELU, X).value, oracle.margin(RELU, X, 2))
    assert type(torch.relu(X)) is torch.Tensor
