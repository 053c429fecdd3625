"""How a search goes about it: how often it waits for a GPU, how many neurons it takes at a time, how many samples."""

import math

import pytest
import torch
from reading import Readings
from torch import nn

import llr_fast
from llr_fast.certificates import evaluation, search
from llr_fast.certificates.frozen import Backward


def convolutional(layers):
    torch.manual_seed(0)
    body = [part for _ in range(layers) for part in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *body, nn.Flatten(), nn.Linear(256, 3))


@pytest.fixture
def passes(monkeypatch):
    """For each pass how many neurons of each sample it found the gradients of."""
    found, gradients = [], Backward.gradients

    def counted(self, layer, *args):
        found.append(layer.size(1))
        return gradients(self, layer, *args)

    monkeypatch.setattr(Backward, "gradients", counted)
    return found


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_it_waits_once_in_a_pass_and_a_few_times_in_all(p, coarse, passes, monkeypatch):
    """However many layers there are, and samples."""
    if coarse:
        monkeypatch.setattr(llr_fast.certificates.bounds, "FEW", 0)
    for layers in (2, 12):
        model, x = convolutional(layers), torch.randn(6, 1, 8, 8)
        llr_fast.margin(model, x, p, method="search")
        passes.clear()
        with Readings() as mode:
            llr_fast.margin(model, x, p, method="search")
        assert mode.count <= len(passes) + 40


def check_loose_search(p, coarse, passes, monkeypatch):
    """A search whose bounds are so loose that many neurons are left finds what the exact method does."""
    if coarse:
        monkeypatch.setattr(llr_fast.certificates.bounds, "FEW", 0)
    model, x = convolutional(4), torch.randn(3, 1, 8, 8)
    expected = llr_fast.margin(model, x, p, method="exact")
    passes.clear()
    found = llr_fast.margin(model, x, p, method="search", failure_probability=1e-200)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-8, atol=1e-12)
    assert torch.equal(found.neuron, expected.neuron) and torch.equal(found.layer, expected.layer)


@pytest.mark.parametrize(
    "many, p, coarse", [(1, 2, False), (3, 2, True), (7, 2, False), (3, 1, False), (7, 1, True), (3, math.inf, True)]
)
def test_several_neurons_at_a_time(many, p, coarse, passes, monkeypatch):
    monkeypatch.setattr(search, "MANY", many)
    monkeypatch.setattr(search, "CANDIDATES", 7)
    check_loose_search(p, coarse, passes, monkeypatch)
    assert max(passes) == (many if len(passes) > many else 1)


@pytest.mark.parametrize("p, coarse", [(1, True), (2, False), (2, True), (math.inf, False)])
@pytest.mark.parametrize("left, times", [(0, [1, 4]), (2**20, [1])])
def test_many_that_are_left_are_decided_by_more_directions(p, coarse, left, times, passes, monkeypatch):
    """Once, at most; the failure probability is shared by the two sets of bounds."""
    drawn, by_search = [], llr_fast.certificates.bounds.by_search

    def counted(frozen, probe, q, failure_probability, generator, times=1):
        drawn.append((times, failure_probability))
        return by_search(frozen, probe, q, failure_probability, generator, times)

    monkeypatch.setattr(llr_fast.certificates.bounds, "by_search", counted)
    monkeypatch.setattr(search, "MANY", 2)
    monkeypatch.setattr(search, "LEFT", left)
    check_loose_search(p, coarse, passes, monkeypatch)
    assert drawn == [(number, 0.5e-200) for number in times]


def test_sharper_bounds_leave_fewer(passes, monkeypatch):
    monkeypatch.setattr(search, "MANY", 2)
    model, x = convolutional(4), torch.randn(3, 1, 8, 8)
    counts = []
    for left in (0, 2**20):
        monkeypatch.setattr(search, "LEFT", left)
        passes.clear()
        llr_fast.margin(model, x, method="search", failure_probability=1e-40)
        counts.append(len(passes))
    assert counts[0] < counts[1] / 2


@pytest.mark.parametrize("free, directions", [(2**40, 2**23), (2**23 + 5, 2**6), (1, 1)])
def test_on_a_gpu_the_free_memory_decides(free, directions, monkeypatch):
    """An eighth of it, or less, down to a power of 2; of what the allocator holds, too."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - free // 4, 2**41))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free // 4 + 7)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    assert evaluation.directions_at_once(2**10, torch.float32, cuda) == directions
    assert evaluation.gradients_at_once(2**10, torch.float32, cuda) == directions
