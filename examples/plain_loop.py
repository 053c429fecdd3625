"""A plain loop, with a warm-up of lam and a decay of gamma: python examples/plain_loop.py [STEPS]."""

from __future__ import annotations

import itertools
import sys

import digits
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import llr_fast


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    roll = llr_fast.ROLLLoss(digits.network(), lam=0.0, estimator="rademacher")
    optimizer = torch.optim.Adam(roll.parameters(), lr=1e-3)
    batches = itertools.cycle(DataLoader(digits.dataset(), batch_size=32, shuffle=True))
    for step, (x, y) in zip(range(steps), batches):
        done = step / steps
        roll.lam = 0.1 * min(1.0, 2 * done)  # up to 0.1 in the first half
        roll.gamma = 100 - 50 * done  # from all neurons to the steepest half
        output, penalty = roll(x)
        loss = cross_entropy(output, y) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, penalty {penalty.item():.3f}")
    x, _ = digits.dataset()[:32]
    margins = llr_fast.margin(roll.model.eval(), x).value
    print(f"median l2 margin {margins.median().item():.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
