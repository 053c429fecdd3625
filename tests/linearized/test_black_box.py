"""What margins promise, seen from outside: within them the plain model is one affine map, and beyond them another.

Here nothing of the library is compared with anything that knows its kinks: models run as they are, at random points of
the ball around x, just inside the boundary and just beyond it.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr_fast

DTYPE = torch.float64
B, D, SHAPE = 4, 5, (2, 4)
GENERATOR = torch.Generator().manual_seed(3)
C4, C24 = (torch.randn(shape, generator=GENERATOR, dtype=DTYPE) for shape in (4, (2, 4)))

PLACES, EDGES = torch.tensor([[3, 0, 2, 1], [1, 1, 3, 0]]), torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 2, 0]])
SPARSE = torch.randn(5, 4, generator=GENERATOR, dtype=DTYPE).relu().to_sparse()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(2)
    RNN = nn.RNN(2, 2, nonlinearity="relu", batch_first=True).to(DTYPE).requires_grad_(False)


def mean_of_neighbours(h: Tensor) -> Tensor:
    index = EDGES[1].expand(len(h), 2, -1)
    return torch.zeros_like(h).scatter_reduce(2, index, h[..., EDGES[0]], "mean", include_self=False)


def assigned(target: Tensor, index, value) -> Tensor:
    target[index] = value
    return target


# Functions of h [B, 2, 4] whose kinks, all of them, bend what they compute where h is an affine function of x.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda h: h.max(2)[0],
    "max_all": lambda h: h.amax((1, 2)),
    "min": lambda h: h.min(1, keepdim=True).values,
    "amin": lambda h: torch.amin(h, (2, 1)),
    "aminmax": lambda h: torch.cat(torch.aminmax(h, dim=2), 1),
    "sort": lambda h: h.sort(2)[0],
    "sort_descending": lambda h: h.sort(1, descending=True).values,
    "msort": lambda h: torch.msort(h.transpose(0, 1)).transpose(0, 1),
    "topk": lambda h: h.topk(2)[0],
    "topk_smallest": lambda h: h.topk(3, 2, largest=False)[0],
    "median": lambda h: h.median(2)[0],
    "kthvalue": lambda h: h.kthvalue(3, -1)[0],
    "cummax": lambda h: h.cummax(2)[0],
    "cummin": lambda h: h.cummin(1)[0],
    "l1_norm": lambda h: h.norm(1, 2),
    "max_min": lambda h: torch.cat([torch.max(*h.unbind(1)), torch.min(*h.unbind(1))], 1),
    "group_sort": lambda h: h.view(-1, 2, 2, 2).sort(3)[0],
    "by_argmax": lambda h: h * h.argmax(2, keepdim=True),
    "by_argsort": lambda h: h + h.argsort(2).to(h),
    "where": lambda h: torch.where(h > 0.1, h, 0.2 * h),
    "where_of_two": lambda h: torch.where(h[:, :1] <= h[:, 1:], h, -h),
    "where_of_numbers": lambda h: h + torch.where(h < 0, 0.5, -0.5),
    "mask": lambda h: h * (h > C4),
    "mask_as_float": lambda h: (h.ge(C24)).float() * (h - C24),
    "several_masks": lambda h: h * ((h > -0.5) & ~(h > 0.5) | (h > 1)),
    "masked_fill": lambda h: h.masked_fill(h < -0.2, -0.4),
    "top_by_threshold": lambda h: h * (h >= h.kthvalue(3, 2, keepdim=True).values),
    "mean_of_some": lambda h: h.masked_fill(h < 0, 0).sum(2) / (h >= 0).sum(2).clamp_min(1),
    "one_hot": lambda h: h * F.one_hot(h.argmax(2), 4),
    "sign": lambda h: h * torch.sign(h),
    "heaviside": lambda h: h * torch.heaviside(h - C4, C4[:1]),
    "round": lambda h: torch.round(3 * h),
    "floor": lambda h: h + torch.floor(2 * h),
    "ceil": lambda h: h.ceil() * C4,
    "floor_divide": lambda h: h // 0.7,
    "remainder": lambda h: h % 0.7,
    "fake_quantize": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.25, 3, 0, 7),
    "fake_quantize_by_channel": lambda h: torch.fake_quantize_per_channel_affine(
        h, torch.tensor([0.5, 0.25]), torch.tensor([0, 2], dtype=torch.int32), 1, -3, 4
    ),
    "straight_through": lambda h: h + (h.sign() - h).detach(),
    "rounded_straight_through": lambda h: h + (torch.round(3 * h) / 3 - h).detach(),
    "jump_relu": lambda h: torch.where(h > C24.abs(), h, torch.zeros_like(h)),
    "gather": lambda h: h.gather(2, PLACES.expand(len(h), 2, 4)),
    "gather_by_order": lambda h: h.gather(2, h.argsort(2).flip(2)),
    "routed": lambda h: h * torch.zeros_like(h).scatter_(2, h.argsort(2)[..., 2:], 1.0),
    "scatter": lambda h: h.new_ones(len(h), 2, 4).scatter(2, PLACES[:, [0]].expand(len(h), 2, 4), h),
    "scatter_add": lambda h: h.new_zeros(len(h), 2, 4).scatter_add_(2, PLACES.expand(len(h), 2, 4), h),
    "messages": lambda h: h + torch.zeros_like(h).index_add_(2, EDGES[1], h[..., EDGES[0]], alpha=-0.7),
    "sparse": lambda h: torch.sparse.mm(SPARSE, h.flatten(0, 1).T).T.reshape(-1, 2, 5),
    "set_item": lambda h: assigned(h.clone(), (slice(None), 0, slice(0, 2)), h[:, 1, 2:] - 1),
    "set_item_by_mask": lambda h: assigned(h.clone(), h < -0.3, 0.2),
    "windows": lambda h: h.unfold(2, 2, 1) - h.unfold(2, 2, 1).mean(3, keepdim=True) / 2,
    "tensordot": lambda h: torch.tensordot(h, C24, ([2], [1])),
    "lerp": lambda h: torch.lerp(h, h.roll(1, 2), C4.abs()).diff(dim=2),
    "filtered": lambda h: torch.fft.irfft(torch.fft.rfft(h) * torch.complex(C4[:3], C4[1:]), 4),
    "unpooled": lambda h: F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2),
    "recurrent": lambda h: RNN(h.mT)[0],
}
# ... not all of them.
PARTLY = {
    "mean_of_neighbours": lambda h: h / 2 + mean_of_neighbours(F.relu(h)),
    "any_mask": lambda h: h * (h > 0.3).any(2, keepdim=True) - h * (h > -1).all(1, keepdim=True),
    "mean_of_winners": lambda h: h.masked_fill(h < h.mean(2, keepdim=True), 0),
    "linf_norm": lambda h: torch.linalg.vector_norm(h, math.inf, dim=(1, 2)),
}


class Model(nn.Module):
    """The function between dense layers, of a first one that is affine or has kinks of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool):
        super().__init__()
        self.function, self.bent = function, bent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(D, math.prod(SHAPE))
            self.last = nn.Linear(function(torch.randn(B, *SHAPE, dtype=DTYPE))[0].numel(), 3)
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.3) if self.bent else self.first(x)
        h = self.function(h.view(-1, *SHAPE))
        return self.last(F.leaky_relu(h, -0.4).reshape(len(x), -1))


def affine(model: nn.Module, point: Tensor, step: float) -> Tensor:
    """Slopes and offset of the map that the plain model is at a point [D], from its outputs alone."""
    steps = step * torch.eye(D, dtype=DTYPE)
    slopes = ((model(point + steps) - model(point - steps)) / (2 * step)).T
    return torch.cat([slopes, (model(point[None])[0] - slopes @ point)[:, None]], 1)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("name", [*FUNCTIONS, *PARTLY])
def test_within_a_margin_the_model_is_affine_and_beyond_it_another_one(name, bent, p):
    model = Model((FUNCTIONS | PARTLY)[name], bent)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, D, generator=generator, dtype=DTYPE)
    found = llr_fast.margin(model, x, p, method="exact")
    torch.testing.assert_close(llr_fast.margin(model, x, p, method="search").value, found.value)
    for b, (sample, boundary, radius) in enumerate(zip(x, found.boundary_point(x), found.value)):
        step = 1e-4 * float(radius)
        here = affine(model, sample, step)
        assert same(here, affine(model, sample + 0.999 * (boundary - sample), step))
        for _ in range(5):
            way = torch.randn(D, generator=generator, dtype=DTYPE)
            assert same(here, affine(model, sample + 0.999 * radius * way / way.norm(p=p), step))
        torch.testing.assert_close(llr_fast.margin(model, sample[None], p).value[0], found.value[b])
        if not bent and name in FUNCTIONS:
            assert not same(here, affine(model, sample + 1.001 * (boundary - sample), step))
