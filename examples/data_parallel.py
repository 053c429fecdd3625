"""Data parallelism, around the loss: torchrun --nproc-per-node 2 examples/data_parallel.py [STEPS] [ddp | fsdp]."""

from __future__ import annotations

import itertools
import sys
from datetime import timedelta

import digits
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import llr_fast


def main(steps: str = "20", kind: str = "ddp") -> None:
    # If a process raises, the others raise too, after this time at the latest.
    distributed.init_process_group("gloo", timeout=timedelta(minutes=2))
    torch.manual_seed(0)
    model = digits.network()
    rank = distributed.get_rank()
    directions = torch.Generator().manual_seed(rank)  # different directions for the samples of different ranks
    roll = llr_fast.ROLLLoss(model, lam=0.1, estimator="rademacher", generator=directions)
    parallel = DistributedDataParallel(roll) if kind == "ddp" else fully_shard(roll)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-3)
    dataset = digits.dataset()
    sampler: DistributedSampler = DistributedSampler(dataset, drop_last=True)
    batches = itertools.cycle(DataLoader(dataset, batch_size=16, sampler=sampler))
    for _, (x, y) in zip(range(int(steps)), batches):
        output, penalty = parallel(x)
        loss = cross_entropy(output, y) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"rank {rank}: loss {loss.item():.3f}")
    # DDP's reducer must not be the last to hold the group: it would wait for gloo's threads with Python's lock in hand,
    # while PyTorch 2.13 leaves them a Python object to free after each backward, for which they need the lock. Then the
    # process never ends. Python's own references to the group wait without the lock. A barrier only makes it rarer.
    del parallel
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
