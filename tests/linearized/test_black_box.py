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
}
# ... not all of them.
PARTLY = {"linf_norm": lambda h: torch.linalg.vector_norm(h, math.inf, dim=(1, 2))}


class Model(nn.Module):
    """The function between dense layers, of a first one that is affine or has kinks of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool):
        super().__init__()
        self.function, self.bent = function, bent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(D, math.prod(SHAPE))
            self.last = nn.Linear(function(torch.randn(B, *SHAPE))[0].numel(), 3)
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.3) if self.bent else self.first(x)
        h = self.function(h.view(-1, *SHAPE))
        return self.last(F.leaky_relu(h, -0.4).reshape(len(x), -1))


def affine(model: nn.Module, point: Tensor) -> Tensor:
    """Jacobian and offset of the map that the plain model is at a point [D]."""

    def run(t: Tensor) -> Tensor:
        return model(t[None])[0]

    jacobian = torch.func.jacrev(run)(point)
    return torch.cat([jacobian, (run(point) - jacobian @ point)[:, None]], 1)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
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
        here = affine(model, sample)
        assert same(here, affine(model, sample + 0.999 * (boundary - sample)))
        for _ in range(5):
            step = torch.randn(D, generator=generator, dtype=DTYPE)
            assert same(here, affine(model, sample + 0.999 * radius * step / step.norm(p=p)))
        assert same(found.value[b], llr_fast.margin(model, sample[None], p).value[0])
        if not bent and name in FUNCTIONS:
            assert not same(here, affine(model, sample + 1.001 * (boundary - sample)))
