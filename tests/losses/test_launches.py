"""What a sampled step costs where each operator is a launch on a GPU: counted, not timed."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reading import NoReading
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import llr_fast
from llr_fast.ops.roll_max_pool import roll_max_pool

sys.path.append(os.fspath(Path(__file__).parents[2]))  # for the package benches

from benches import networks


class Launches(TorchDispatchMode):
    """Counts the operators that compute: no views and no allocations."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not is_view and "empty" not in function.name() and "detach" not in function.name():
            self.found[function.name()] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def launches():
    """Of a plain step of ResNet-18, and of one with ROLL along one direction."""
    torch.manual_seed(0)
    model, _ = networks.resnet18(64, 8)
    x, y = torch.rand(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    roll = llr_fast.ROLLLoss(model.train(), estimator="rademacher")
    roll(x)
    found = {}
    for name, step in (("plain", lambda: (model(x), 0)), ("roll", lambda: roll(x))):
        with Launches() as counted:
            output, penalty = step()
            (F.cross_entropy(output, y) + penalty).backward()
        found[name] = counted.found
    return found


def test_at_most_three_for_each_of_a_plain_step(launches):
    """The kernels of the activations sum up by a second launch each, in the forward pass."""
    second = launches["roll"]["llr_fast::roll_activation"]
    assert launches["roll"].total() + second <= 3 * launches["plain"].total()


def test_each_activation_is_one_operator_forwards_and_one_backwards(launches):
    assert launches["plain"]["aten::relu"] == 17
    assert launches["roll"]["llr_fast::roll_activation"] == launches["roll"]["llr_fast::roll_activation_backward"] == 17
    assert launches["roll"]["aten::relu"] == 0


def pooled():
    """Max-pooling with overlapping windows, without padding, with padding made beforehand, and of adaptive size."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)),
        *(nn.PReLU(4), nn.MaxPool2d(2), nn.Hardtanh(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )


@pytest.mark.parametrize("estimator, gamma", [("rademacher", 100), ("axis", 100), ("rademacher", 20), ("exact", 100)])
def test_no_number_is_read_back(estimator, gamma):
    torch.manual_seed(0)
    roll = llr_fast.ROLLLoss(pooled(), estimator=estimator, gamma=gamma)
    x = torch.randn(2, 3, 24, 24)
    roll(x)  # whose tables of windows are kept
    with NoReading():
        output, penalty = roll(x)
        (output.sum() + penalty).backward()


def test_a_pooling_keeps_what_it_takes_and_where_the_winners_are():
    z, tangents = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 30, 30), (1, 2, 4, 30, 30)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        out, *_ = roll_max_pool(z, tangents, (3, 3), (2, 2), (1, 1), (1, 1), (15, 15))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    own = {z.untyped_storage().data_ptr(), tangents.untyped_storage().data_ptr()}
    assert sum(size for where, size in storages.items() if where not in own) == 4 * out.numel()
