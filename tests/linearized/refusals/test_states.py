"""Models that are no function of x alone: they keep a state, ask for the type of x or draw random numbers."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import refused
from refusal_cases import DTYPE, X
from torch import nn

import llr_fast


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
    with refused(ValueError, match="keeps a state"):
        llr_fast.margin(Counting(step), X.to(dtype))


@pytest.mark.parametrize("part", [1e-3, 1e-7, 1e-10])
def test_models_that_ask_for_the_type_of_x_by_a_little(part):
    class Asking(nn.Module):
        def forward(self, x):
            return F.relu(x) * (1 if type(x) is torch.Tensor else 1 + part)

    with refused(ValueError, match="asks for the type"):
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

    with refused(ValueError, match="random numbers drawn in module 'Drawing'"):
        llr_fast.margin(Drawing(), X)
