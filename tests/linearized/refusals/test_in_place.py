"""Changes in place, through views and of constants: which of them are followed, and which are refused."""

import networks
import pytest
import torch
import torch.nn.functional as F
from refusal_cases import DTYPE, Refused, X, check_refused, check_supported, no_rule
from torch import nn

import llr_fast


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


def set_item_by_mask(x):
    y = 2 * x
    y[x < 0.1] = 0.4
    return y + x


def set_item_of_view(x):
    buffer = torch.zeros(len(x), 4, dtype=DTYPE)
    view = buffer[:, :3]
    view[:, 1:] = x[:, :2] - 0.2
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


def writes(run, function):
    """Refused for a function that writes into what does not depend on x; no module is named."""
    return Refused(run, llr_fast.NotPiecewiseLinearError, (function,))


REFUSED = [
    no_rule(relu_of_slice, "abs"),
    no_rule(relu_of_row, "abs"),
    no_rule(augmented_slice, "__setitem__"),
    no_rule(base_behind_view, "abs"),
    no_rule(transposed_in_place, "abs"),
    no_rule(flattened_in_place, "abs"),
    no_rule(reshape_in_place, "abs"),
    no_rule(contiguous_alias, "abs"),
    no_rule(dropout_alias, "abs"),
    no_rule(to_alias, "abs"),
    writes(set_item_of_view, "__setitem__"),
    no_rule(copied_into_buffer, "copy_"),
    writes(added_to_slice_of_buffer, "add_"),
    writes(added_to_view_of_buffer, "add_"),
    writes(multiplied_into_view, "mul_"),
    no_rule(chunk_in_place, "add"),
    no_rule(unbind_in_place, "add_"),
    no_rule(detached_in_place, "abs"),
    no_rule(out_argument, "add"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.run.__name__)
def test_changes_through_other_memory_are_refused(case):
    check_refused(case)


@pytest.mark.parametrize(
    "function", [in_place_of_input, set_item, set_item_by_mask, set_item_of_buffer, added_to_buffer]
)
def test_changes_of_a_tensor_itself_are_right(function):
    check_supported(function)


@pytest.mark.parametrize("certificate", [llr_fast.margin, llr_fast.activation_pattern, llr_fast.gradient_norms])
def test_caller_input_is_never_written(certificate):
    x = X.clone()
    certificate(nn.Sequential(networks.Apply(lambda x: F.relu_(x.mul_(2).add_(1)))), x)
    assert torch.equal(x, X)
