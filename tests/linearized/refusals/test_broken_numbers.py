"""Weights that are not finite, and values beyond float64, have no margin: the layer that they reach is named."""

import math

import networks
import pytest
from compare import refused
from refusal_cases import X, inside
from torch import nn

import llr_fast


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_weights_are_not_certified(broken, method):
    model = inside(nn.ReLU())
    model.first[0].weight.data[1, 1] = broken
    with refused(ValueError, "first.1:leaky_relu", match="NaN or infinite"):
        llr_fast.margin(model, X, method=method)


@pytest.mark.parametrize("method", ["exact", "search"])
def test_overflow_is_not_certified(method):
    model = inside(nn.Sequential(networks.Apply(lambda x: (x * 1e200) * 1e200), nn.ReLU()))
    with refused(ValueError, "block.act.1:relu", match="NaN or infinite"):
        llr_fast.margin(model, X, method=method)
