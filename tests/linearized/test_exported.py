"""Exported programs: what torch.export makes of a model has the margins of the model."""

import oracle
import pytest
import torch
from torch import Tensor, nn

import llr_fast

DTYPE = torch.float64


class Residual(nn.Module):
    """Two convolutions with batch-norm beside a shorter way, as in ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += self.short(x)
        return self.relu(y)


class Mixed(nn.Module):
    """Slices, shapes, comparisons, order, places and functions of several arguments."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.flatten(1).chunk(2, 1)
        y = torch.where(a[:, 1:] > 0.1, b[:, :-1], -b[:, 1:]).clamp(-2, 2)
        y = torch.cat([y.sort(1)[0], torch.max(a, b), a.unflatten(1, (-1, 2)).amax(2)], -1)
        y = nn.functional.pad(y, (1, 1)).to(x.dtype)[:, torch.tensor([3, 0, 4, 2, 5])]
        return nn.functional.leaky_relu(y, 0.1).mean(1, keepdim=True).abs() + nn.functional.hardtanh(y, -0.5, 0.25)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(Residual(3, 3, 1), Residual(3, 4, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3)),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


MODELS = {"resnet": resnet, "mixed": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), Mixed())}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_margins_of_exported_programs(name):
    with torch.random.fork_rng(devices=[]):
        model = MODELS[name]().to(DTYPE).eval().requires_grad_(False)
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    exported = torch.export.export(model, (x,), dynamic_shapes=[{0: torch.export.Dim("batch")}]).module()
    found, expected = llr_fast.margin(exported, x), llr_fast.margin(model, x)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.boundary_point(x), expected.boundary_point(x))
    for sample, value in zip(x.split(1), found.value, strict=True):
        torch.testing.assert_close(oracle.margin(model, sample, 2)[0], value)
    torch.testing.assert_close(llr_fast.margin(exported, x, rigorous=True).value, expected.value)
    penalties = [llr_fast.ROLLLoss(m, estimator="exact")(x)[1] for m in (exported, model)]
    torch.testing.assert_close(*penalties)
