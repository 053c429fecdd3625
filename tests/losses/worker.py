"""One of two processes of a group: python worker.py RANK FOLDER. Saves what its half of the batch led to.

The parent, `test_distributed.py`, uses the same networks and losses on the joint batch.
"""

from __future__ import annotations

import os
import sys
import weakref
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed._composable import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import llr_fast

sys.path.append(str(Path(__file__).parents[1]))
import networks

RANKS = 2
LOSSES = {
    "exact": lambda model, rank: llr_fast.ROLLLoss(model, estimator="exact"),
    "top": lambda model, rank: llr_fast.ROLLLoss(model, estimator="exact", gamma=30),
    "rademacher": lambda model, rank: llr_fast.ROLLLoss(model, estimator="rademacher", generator=generator(rank)),
    "axis": lambda model, rank: llr_fast.ROLLLoss(model, estimator="axis", samples=2, generator=generator(rank)),
    "lazy": lambda model, rank: llr_fast.ROLLLoss(model, estimator="exact", every=3),
    "lazy, without": lambda model, rank: at_second_step(llr_fast.ROLLLoss(model, estimator="exact", every=3)),
    "margin": lambda model, rank: llr_fast.MarginLoss(model),
}
WRAPPINGS = {"ddp": DistributedDataParallel, "fsdp": fully_shard}
NETWORKS = ("relu", "residual", "frames")  # norms by Gram matrices, by all axes at once, and by axes in chunks


def generator(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(rank)


def at_second_step(loss: llr_fast.ROLLLoss) -> llr_fast.ROLLLoss:
    loss.steps = 1
    return loss


def batch(network: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, x [4, ...] and y [4] of all ranks together."""
    model, x = networks.build(network, batch=2 * RANKS)
    return model, x, torch.tensor([0, 1, 1, 0])


def step(loss: nn.Module, x: Tensor, y: Tensor) -> None:
    output, penalty = loss(x)
    (cross_entropy(output, y) + penalty).backward()


def gradients(loss: nn.Module) -> list[Tensor]:
    found = (parameter.grad for parameter in loss.parameters())
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def message(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def sharded_part(model: nn.Module) -> nn.Module:
    fully_shard(model[2])
    return model


INSIDE = {  # ways to distribute a model itself
    "fully_shard": fully_shard,
    "fully_shard of a part": sharded_part,
    "DistributedDataParallel": DistributedDataParallel,
    "replicate": replicate,
    "FullyShardedDataParallel": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
}


def refusals() -> dict[str, list[str]]:
    """What the losses say of models that are distributed themselves."""
    x, losses = batch("relu")[1], (llr_fast.ROLLLoss, llr_fast.MarginLoss)
    return {
        how: [
            message(lambda loss=loss, distribute=distribute: loss(distribute(batch("relu")[0]))(x)) for loss in losses
        ]
        for how, distribute in INSIDE.items()
    }


def samples() -> TensorDataset:
    """Points of which several lie in the same region."""
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator(0))
    return TensorDataset(torch.cat([x, x + 1e-6]), torch.arange(24) % 3)


def measured(group: distributed.ProcessGroup | None) -> tuple[llr_fast.Report, llr_fast.RegionCount]:
    """Of the samples; those of this rank, where there is a group."""
    model, dataset = batch("relu")[0], samples()
    sampler = None if group is None else DistributedSampler(dataset, shuffle=False)
    loader = DataLoader(dataset, batch_size=5, sampler=sampler)
    report = llr_fast.evaluate(model, loader, progress=False, group=group)
    return report, llr_fast.count_linear_regions(model, loader, progress=False, group=group)


def one_rank_raises(rank: int) -> str:
    """An empty batch on rank 1, while rank 0 waits for its gradients."""
    model, x, y = batch("relu")
    loss = DistributedDataParallel(llr_fast.ROLLLoss(model))
    here = slice(0, 2 if rank == 0 else 0)
    return message(lambda: step(loss, x[here], y[here]))


def deleted() -> bool:
    """Whether a parallel loss is gone once it is deleted, which must happen before the group is destroyed."""
    model, x, y = batch("relu")
    parallel = DistributedDataParallel(llr_fast.ROLLLoss(model))
    step(parallel, x, y)
    reducer = weakref.ref(parallel.reducer)
    del parallel
    return reducer() is None


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": RANKS, "timeout": timedelta(seconds=20)}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", **options)
    init_device_mesh("cpu", (RANKS,))
    half = slice(2 * rank, 2 * rank + 2)
    found = {}
    for network in NETWORKS:
        for name, make in LOSSES.items():
            for wrapping, wrap in WRAPPINGS.items():
                model, x, y = batch(network)
                loss = wrap(make(model, rank))
                step(loss, x[half], y[half])
                found[network, name, wrapping] = gradients(loss)
    found["refusals"] = refusals()
    found["measured"] = measured(distributed.group.WORLD)
    found["deleted"] = deleted()
    distributed.barrier()
    found["one_rank_raises"] = one_rank_raises(rank)
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # the group is broken, and taking it down may wait for the other rank


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
