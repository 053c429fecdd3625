"""Two processes with half of the batch each, by DistributedDataParallel and by fully_shard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worker
from torch import nn

import llr_fast

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(worker.__file__))]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(worker.RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(worker.RANKS)]


def joint_gradients(network, name):
    """Of one process; random directions are drawn for each half of the batch as the ranks draw them."""
    model, x, y = worker.batch(network)
    if name not in ("rademacher", "axis"):
        loss = worker.LOSSES[name](model, 0)
        worker.step(loss, x, y)
        return worker.gradients(loss)
    for rank in range(worker.RANKS):
        half = slice(2 * rank, 2 * rank + 2)
        worker.step(worker.LOSSES[name](model, rank), x[half], y[half])
    return [parameter.grad / worker.RANKS for parameter in model.parameters()]


@pytest.mark.parametrize("wrapping", worker.WRAPPINGS)
@pytest.mark.parametrize("name", worker.LOSSES)
@pytest.mark.parametrize("network", worker.NETWORKS)
def test_two_ranks_equal_one_process(ranks, network, name, wrapping):
    expected = joint_gradients(network, name)
    assert len(expected) == len(ranks[0][network, name, wrapping])
    for found in ranks:
        for got, wanted in zip(found[network, name, wrapping], expected):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_nothing_keeps_a_deleted_parallel_loss(ranks):
    assert all(found["deleted"] for found in ranks)


@pytest.mark.parametrize("how", worker.INSIDE)
def test_models_distributed_inside_are_refused(ranks, how):
    where = "its module '2'" if how.endswith("part") else "it"
    expected = f"ValueError: model: {where} is wrapped by {how.split()[0]}; wrap the loss instead"
    for found in ranks:
        assert all(message.startswith(expected) for message in found["refusals"][how])


def test_data_parallel():
    """On a CPU it calls the loss itself; of several devices it would make copies."""
    model, x, _ = worker.batch("relu")
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    torch.testing.assert_close(nn.DataParallel(loss)(x), loss(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="model: it is wrapped by DataParallel; wrap the loss instead, Distributed"):
        llr_fast.ROLLLoss(nn.DataParallel(model))(x)
    copy = nn.parallel.replicate(llr_fast.MarginLoss(nn.ReLU()), [0, 1])[1]
    with pytest.raises(ValueError, match="model: it is a copy that DataParallel made for one of several devices"):
        copy(x)


def test_measures_of_all_ranks(ranks):
    """evaluate and count_linear_regions over a DistributedSampler; the margins are ordered by rank."""
    report, count = worker.measured(None)
    for found in ranks:
        merged, merged_count = found["measured"]
        assert merged_count == count == merged.regions == report.regions
        assert (merged.points, merged.accuracy, merged.exact) == (24, report.accuracy, report.exact)
        for p, values in report.margins.items():
            torch.testing.assert_close(merged.margins[p], torch.cat([values[0::2], values[1::2]]))


def test_no_rank_waits_for_one_that_raised(ranks):
    """The fixture fails after a minute; the group's timeout is twenty seconds."""
    assert ranks[1]["one_rank_raises"].startswith("ValueError: x: expected shape")
    assert ranks[0]["one_rank_raises"].startswith("RuntimeError") or "Timeout" in ranks[0]["one_rank_raises"]
