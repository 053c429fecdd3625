import functools

import networks
import oracle
import pytest
import torch

torch.manual_seed(0)  # of what the test files draw when they are imported


@functools.cache
def measured(name: str):
    model, x = networks.build(name)
    return model, x, [oracle.neurons(model, sample) for sample in x.split(1)]


@pytest.fixture
def case():
    """name -> (model, x [B, ...], the oracle's layers of every sample)"""
    return measured


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers in every run: some random networks show nothing of what is tested."""
    torch.manual_seed(0)
