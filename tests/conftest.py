import functools

import networks
import oracle
import pytest


@functools.cache
def measured(name: str):
    model, x = networks.build(name)
    return model, x, [oracle.neurons(model, sample) for sample in x.split(1)]


@pytest.fixture
def case():
    """name -> (model, x [B, ...], the oracle's layers of every sample)"""
    return measured
