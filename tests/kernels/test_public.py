"""Every public function of a model on a GPU finds what it finds on the CPU."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llr_fast

pytestmark = [pytest.mark.triton, pytest.mark.gpu]


def planar():
    return nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 9), nn.LeakyReLU(0.1), nn.Linear(9, 3)).double()


def convolutional():
    """Batch-norm, overlapping windows of max-pooling, a PReLU for each channel, both kinks of a ReLU6."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(4, 5, 3), nn.PReLU(5), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5, 8), nn.ReLU6(), nn.Linear(8, 3)),
    ).double()


NETWORKS = {"planar": (planar, (2,)), "convolutional": (convolutional, (2, 8, 8))}


def build(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    model(torch.randn(64, *shape, dtype=torch.float64))  # so that batch-norm knows the inputs
    return model.eval(), torch.randn(5, *shape, dtype=torch.float64)


def numbers(found):
    """Everything in a result that can be compared, in order; tensors on the CPU."""
    if dataclasses.is_dataclass(found):
        found = [getattr(found, field.name) for field in dataclasses.fields(found)]
    elif isinstance(found, dict):
        found = list(found.values())
    elif isinstance(found, (Tensor, np.ndarray)):
        return [torch.as_tensor(found).detach().cpu()]
    if isinstance(found, (list, tuple)):
        return [part for item in found for part in numbers(item)]
    return [] if isinstance(found, (bytes, type(None))) else [found]


def labels(x):
    return torch.arange(len(x), device=x.device) % 3


def loader(x):
    return [(x[:2].cpu(), labels(x)[:2].cpu()), (x[2:].cpu(), labels(x)[2:].cpu())]


def penalised(loss, x):
    output, penalty = loss(x)
    return [output, penalty, *torch.autograd.grad(penalty, list(loss.parameters()), allow_unused=True)]


CALLS = {
    **{
        f"margin, l{p}, {options}": lambda model, x, p=p, options=options: llr_fast.margin(model, x, p, **options)
        for p in (1, 2, math.inf)
        for options in ({"method": "exact"}, {"method": "search"})
    },
    "gradient_norms": lambda model, x: llr_fast.gradient_norms(model, x),
    "activation_pattern": lambda model, x: llr_fast.activation_pattern(model, x),
    "directional_margin": lambda model, x: llr_fast.directional_margin(model, x, torch.ones_like(x)),
    "robustness": lambda model, x: llr_fast.robustness(model, x),
    "robustness of labels, l_inf": lambda model, x: llr_fast.robustness(model, x, math.inf, y=labels(x)),
    "robustness, five regions": lambda model, x: llr_fast.robustness(model, x, regions=5),
    "region": lambda model, x: llr_fast.region(model, x[:1]),
    "region contains": lambda model, x: llr_fast.region(model, x[:1]).contains(x),
    "centre of a region": lambda model, x: llr_fast.region(model, x[:1]).chebyshev(),
    "regions_along": lambda model, x: [crossings.points for crossings in llr_fast.regions_along(model, x[:2], x[2:4])],
    "region_density": lambda model, x: llr_fast.region_density(model, x, 0.3, method="exact"),
    "count_linear_regions": lambda model, x: llr_fast.count_linear_regions(model, loader(x)),
    "evaluate": lambda model, x: llr_fast.evaluate(model, loader(x), eps=0.01),
    "MarginLoss": lambda model, x: penalised(llr_fast.MarginLoss(model), x),
    "ROLLLoss": lambda model, x: penalised(llr_fast.ROLLLoss(model, estimator="exact", gamma=30), x),
    "diagnose": lambda model, x: [llr_fast.diagnose(model, x).supported],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_cpu(network, call):
    model, x = build(network)
    on_gpu = copy.deepcopy(model).cuda(), x.cuda()
    found, expected = numbers(CALLS[call](*on_gpu)), numbers(CALLS[call](model, x))
    assert len(found) == len(expected) > 0
    for ours, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-12, equal_nan=True)
        elif isinstance(wanted, float):
            assert ours == pytest.approx(wanted, rel=1e-8, nan_ok=True)
        else:
            assert torch.equal(ours, wanted) if isinstance(wanted, Tensor) else ours == wanted


def test_rigorous_margins_are_of_a_cpu():
    model, x = build("planar")
    with pytest.raises(ValueError, match="expected a tensor on a CPU"):
        llr_fast.margin(model.cuda(), x.cuda(), rigorous=True)


def test_regions_on_plane():
    model, x = build("planar")
    areas = []
    for device in ("cpu", "cuda"):
        polygons = llr_fast.regions_on_plane(model.to(device), (-2, 2, -2, 2), like=x.to(device))
        corners = [torch.stack([p, p.roll(-1, 0)]) for p in polygons]
        areas.append(sorted(0.5 * abs(torch.linalg.det(c.transpose(0, 1)).sum().item()) for c in corners))
    assert areas[1] == pytest.approx(areas[0], rel=1e-8, abs=1e-10)


def test_gradient_distortion():
    """Whose random points differ between devices."""
    model, x = build("convolutional")
    found = llr_fast.gradient_distortion(model.cuda(), x.cuda(), labels(x.cuda()), 0.1, None, samples=50, population=20)
    assert found.maximal.is_cuda and bool((found.maximal >= 0).all())
