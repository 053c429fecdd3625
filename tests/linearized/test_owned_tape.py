"""The tape owns what it replays: whatever a model changes in place after it was used, every answer is that of autograd
with copies of what it keeps."""

import compare
import numpy as np
import oracle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast

DTYPE = torch.float64
N = 5


class Layers(nn.Module):
    """Dense layers with the function `between` them, which gets the number of the layer too."""

    def __init__(self, between, state=lambda: None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(N, N) for _ in range(3))
        self.between, self.state = between, state

    def forward(self, x):
        state = self.state()
        for layer in self.layers:
            x = self.between(layer(x), state).relu()
        return x


def scaled(x, gain):
    y = x * gain
    gain *= -0.5
    return y


def divided(x, gain):
    y = x / gain
    gain.add_(1)
    return y


def scaled_through_data(x, gain):
    y = x * gain
    gain.data.mul_(-0.5)
    return y


def scaled_through_a_view(x, gain):
    y = x * gain
    gain[1:].mul_(-0.5)
    return y


def shared_with_numpy(x, gain):
    y = x * gain
    array = gain.numpy()
    array *= -0.5
    return y


def an_array(x, array):
    y = x * torch.from_numpy(array)
    array *= -0.5
    return y


def multiplied(x, weight):
    y = x @ weight
    weight.t_().mul_(0.7)
    return y


def dense(x, weight):
    y = F.linear(x, weight)
    weight.data[0] += 1
    return y


def einsum_of_a_list(x, weight):
    operands = [x, weight]
    y = torch.einsum("bi,ij->bj", operands)
    operands[1] = operands[1] * 2
    operands.append(None)
    weight.neg_()
    return y


def masked(x, mask):
    y = x * mask
    mask.logical_not_()
    return y


def masked_fill(x, mask):
    y = x.masked_fill(mask, 0.3)
    mask.logical_not_()
    return y


def chosen(x, mask):
    y = torch.where(mask, x, 2 * x - 0.1)
    mask.logical_not_()
    return y


def chosen_by_the_method(x, mask):
    y = (2 * x).where(mask, x)
    mask.fill_(False)
    return y


def indexed_by_a_mask(x, mask):
    y = torch.cat([x[:, mask], x[:, ~mask]], 1)
    mask.logical_not_()
    return y


def indexed(x, index):
    y = x[:, index]
    index.add_(1).remainder_(N)
    return y


def selected(x, index):
    y = x.index_select(1, index)
    index.data.copy_(index.flip(0))
    return y


def taken(x, index):
    y = x.take_along_dim(index[None], 1)
    index.zero_()
    return y


def indexed_by_an_array(x, array):
    y = x[:, array]
    array[:] = array[::-1].copy()
    return y


def indexed_by_a_list(x, places):
    y = x[:, places]
    places.reverse()
    places[0] = places[1]
    return y


def clamped(x, bounds):
    y = torch.minimum(torch.maximum(x, bounds[0]), bounds[1])
    bounds[0].sub_(0.4)
    bounds[1].data.mul_(3)
    return y


def parametric(x, slope):
    y = F.prelu(x, slope)
    slope.mul_(-2)
    return y


def maximum(x, other):
    y = torch.maximum(x, other)
    other.add_(0.3)
    return y


def padded(x, pad):
    y = F.pad(x, pad)[:, :N]
    pad[0], pad[1] = pad[1], pad[0]
    return y


def permuted(x, order):
    y = x.view(-1, 1, N).permute(order).reshape(-1, N)
    order[:] = [0, 1, 2]
    return y


def split(x, sizes):
    y = torch.cat(x.split(sizes, 1)[::-1], 1)
    sizes.reverse()
    return y


def viewed(x, shape):
    y = x.repeat(1, 2).view(shape).flatten(1)[:, 1 : N + 1]
    shape[:] = [-1, N, 2]
    return y


def convolved(x, kernel):
    y = F.conv1d(x.unsqueeze(1), kernel, padding=1).squeeze(1)
    kernel.mul_(-0.5)
    return y


def convolved_through_data(x, kernel):
    y = F.conv_transpose1d(x.unsqueeze(1), kernel, padding=1).squeeze(1)
    kernel.data[..., 0] = 0
    return y


def convolved_and_normalised(x, kernel):
    y = F.conv1d(x.unsqueeze(1), kernel, padding=1)
    kernel.mul_(2)
    y = F.batch_norm(y, kernel[0, 0, :1] + 0, kernel[0, 0, 1:2].square() + 1)
    kernel.neg_()
    return y.squeeze(1)


def normalised(x, statistics):
    y = F.batch_norm(x, *statistics)
    for tensor in statistics:
        tensor.mul_(1.5)
    return y


def stacked(x, rows):
    rows.append(x)
    y = torch.stack(rows, 1).sum(1)
    rows[0] = 2 * x
    return y


def concatenated(x, parts):
    parts.append(x)
    y = torch.cat(parts, 1)[:, -N:] + torch.cat(parts, 1)[:, :N]
    parts[:] = [x, x - 1]
    return y


def concatenated_and_emptied(x, parts):
    parts += [x, torch.ones(1, N, dtype=x.dtype).expand(len(x), N)]
    y = torch.cat(parts, 1)
    parts.clear()
    return y[:, 2 : N + 2]


def rows_of_a_constant(x, parts):
    constant = torch.ones(len(x), N, dtype=x.dtype)
    y = torch.cat([x, constant], 1).view(-1, 2, N).sum(1)
    constant.zero_()
    return y


def gain(*shape):
    return lambda: torch.linspace(0.5, 1.5, shape[0], dtype=DTYPE)


def mask():
    return torch.tensor([True, False, True, True, False])


def matrix():
    return torch.randn(N, N, generator=torch.Generator().manual_seed(3), dtype=DTYPE)


def kernel():
    return torch.tensor([[[0.3, -1.0, 0.7]]], dtype=DTYPE)


def statistics():
    return [torch.linspace(0.5, 1.5, N, dtype=DTYPE) for _ in range(4)]


def bounds():
    return [torch.full((N,), -0.5, dtype=DTYPE), torch.full((N,), 0.5, dtype=DTYPE)]


STATES = {
    gain(N): (scaled, divided, scaled_through_data, scaled_through_a_view, shared_with_numpy, maximum),
    lambda: np.linspace(0.5, 1.5, N): (an_array,),
    matrix: (multiplied, dense, einsum_of_a_list),
    mask: (masked, masked_fill, chosen, chosen_by_the_method, indexed_by_a_mask),
    lambda: torch.tensor([3, 1, 0, 2, 2]): (indexed, selected, taken),
    lambda: np.array([3, 1, 0, 2, 2]): (indexed_by_an_array,),
    lambda: [3, 1, 0, 2, 2]: (indexed_by_a_list,),
    bounds: (clamped,),
    lambda: torch.tensor([0.3], dtype=DTYPE): (parametric,),
    lambda: [1, -1]: (padded,),
    lambda: [0, 2, 1]: (permuted,),
    lambda: [2, 3]: (split,),
    lambda: [-1, 2, N]: (viewed,),
    kernel: (convolved, convolved_through_data, convolved_and_normalised),
    statistics: (normalised,),
    list: (stacked, concatenated, concatenated_and_emptied, rows_of_a_constant),
}
CASES = {function.__name__: (function, state) for state, functions in STATES.items() for function in functions}


def case(name):
    torch.manual_seed(len(name))
    return Layers(*CASES[name]).double(), torch.randn(2, N, dtype=DTYPE)


@pytest.mark.parametrize("name", CASES)
def test_margins_are_those_of_the_constants_as_they_were(name):
    compare.margins_are_right(*case(name))


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_constants_as_they_were(name):
    model, x = case(name)
    compare.roll_is_right(model, x)
    compare.margin_loss_is_right(model, x)


@pytest.mark.parametrize("name", ["scaled", "indexed_by_a_list", "chosen", "convolved", "concatenated"])
def test_norms_and_counts_are_those_of_the_constants_as_they_were(name):
    model, x = case(name)
    compare.norms_are_right(model, x)
    compare.densities_are_right(model, x)


class Restored(nn.Module):
    """Changes its own tensors while it runs, and changes them back."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("shift", torch.linspace(-1, 1, 4))
        self.gain = nn.Parameter(torch.linspace(1, 2, 4), requires_grad=False)
        self.norm = nn.BatchNorm1d(4).eval()
        self.change = change

    def forward(self, x):
        y = (self.norm(self.first(x)) * self.gain + self.shift).relu()
        self.change(self, 1)
        y = (self.norm(self.second(y)) * self.gain + self.shift).relu()
        self.change(self, -1)
        return y


@torch.no_grad()
def buffer(model, sign):
    model.shift.add_(sign)


@torch.no_grad()
def frozen_parameter(model, sign):
    model.gain.mul_(4.0**sign)


def frozen_parameter_through_data(model, sign):
    model.gain.data.mul_(4.0**sign)


@torch.no_grad()
def statistics_of_a_norm(model, sign):
    model.norm.running_mean.add_(sign)
    model.norm.running_var.mul_(4.0**sign)


@pytest.mark.parametrize("change", [buffer, frozen_parameter, frozen_parameter_through_data, statistics_of_a_norm])
def test_tensors_of_the_model_that_change_and_change_back(change):
    torch.manual_seed(1)
    model, x = Restored(change).double().eval(), torch.randn(3, 4, dtype=DTYPE)
    model.norm.weight.requires_grad_(False)
    compare.margins_are_right(model, x)
    compare.roll_is_right(model, x)
    compare.margin_loss_is_right(model, x)


class Moves(nn.Module):
    """A parameter that is trained, changed while the model runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.gain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        for layer in (self.first, self.second):
            x = (layer(x) * self.gain).relu()
            with torch.no_grad():
                self.gain.mul_(0.5)
        with torch.no_grad():
            self.gain.mul_(4)
        return x


LOSSES = {
    "exact": lambda model: llr_fast.ROLLLoss(model, estimator="exact"),
    "top": lambda model: llr_fast.ROLLLoss(model, estimator="exact", gamma=20),
    "rademacher": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher"),
    "top_of_axes": lambda model: llr_fast.ROLLLoss(model, estimator="axis", gamma=20),
    "margin": llr_fast.MarginLoss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_trained_parameter_that_changes_is_named(name):
    with pytest.raises(ValueError, match="'gain' changed in place"):
        LOSSES[name](Moves())(torch.randn(3, 4))


def test_a_trained_parameter_that_changes_has_a_margin():
    compare.margins_are_right(Moves().double(), torch.randn(3, 4, dtype=DTYPE))


class OwnDropout(nn.Module):
    """One mask in one memory, drawn again for every layer; or kept and moved along."""

    def __init__(self, draw):
        super().__init__()
        self.layers, self.draw = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), draw

    def forward(self, x):
        mask = torch.empty(len(x), 6, dtype=x.dtype)
        mask.bernoulli_(0.5)
        for layer in self.layers:
            x = (layer(x) * mask).relu()
            self.draw(mask)
        return x


DRAWS = {
    "again": lambda mask: mask.bernoulli_(0.5),
    "through_data": lambda mask: mask.data.bernoulli_(0.5),
    "moved": lambda mask: mask.copy_(mask.roll(1, 1)),
}


@pytest.mark.parametrize("gamma", [100, 30])
@pytest.mark.parametrize("name", DRAWS)
def test_masks_of_a_step_in_one_memory(name, gamma):
    torch.manual_seed(0)
    model, x = OwnDropout(DRAWS[name]).double(), torch.randn(1, 6, dtype=DTYPE)
    torch.manual_seed(5)
    penalty = llr_fast.ROLLLoss(model, estimator="exact", gamma=gamma)(x)[1]
    torch.manual_seed(5)
    wanted = oracle.roll_penalty(compare.AsItWas(model), x, gamma=gamma)
    compare.close(penalty.detach(), wanted.detach())
    parameters = list(model.parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(penalty, parameters, **options)
    for got, gradient in zip(found, torch.autograd.grad(wanted, parameters, **options)):
        compare.close(got, gradient)
