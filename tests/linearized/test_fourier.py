"""Networks that work on frequencies, in the precision that models are mostly written in."""

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr_fast


class SpectralConvolution(nn.Module):
    """Of Fourier neural operators: the lowest frequencies, multiplied by complex weights, into new ones."""

    def __init__(self, inputs: int, outputs: int, modes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(inputs, outputs, modes, dtype=torch.cfloat) / inputs)

    def forward(self, x: Tensor) -> Tensor:
        modes = self.weight.size(-1)
        frequencies = torch.fft.rfft(x)
        found = torch.zeros(len(x), self.weight.size(1), frequencies.size(-1), dtype=self.weight.dtype)
        found[..., :modes] = torch.einsum("bix,iox->box", frequencies[..., :modes], self.weight)
        return torch.fft.irfft(found, n=x.size(-1))


class Operator(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectral, self.local = SpectralConvolution(2, 3, 3), nn.Conv1d(2, 3, 1)
        self.last = nn.Conv1d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(F.relu(self.spectral(x) + self.local(x))))


def operator() -> Operator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Operator()


def doubled(model: Operator) -> Operator:
    """In float64, complex weights included, which .double() leaves alone."""
    model.spectral.weight.data = model.spectral.weight.data.to(torch.cdouble)
    return model.double()


X = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_fourier_neural_operators(p):
    found = llr_fast.margin(operator(), X, p).value
    expected = oracle.margin(doubled(operator()), X.double(), p)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-9, atol=1e-12)


def test_the_loss_of_a_fourier_neural_operator():
    model, x = doubled(operator()), X.double()
    found, expected = llr_fast.ROLLLoss(model, estimator="exact")(x)[1], oracle.roll_penalty(model, x)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(penalty, tuple(model.parameters())) for penalty in (found, expected)]
    torch.testing.assert_close(*gradients)
