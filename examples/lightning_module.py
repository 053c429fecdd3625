"""A LightningModule: python examples/lightning_module.py [STEPS]."""

from __future__ import annotations

import sys

import digits
import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import llr_fast


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.roll = llr_fast.ROLLLoss(digits.network(), lam=0.1, estimator="rademacher")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        output, penalty = self.roll(x)
        self.log("penalty", penalty)
        return cross_entropy(output, y) + penalty

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(steps: int = 20) -> None:
    lightning.seed_everything(0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", devices=1, **quiet)
    trainer.fit(Classifier(), DataLoader(digits.dataset(), batch_size=32, shuffle=True))
    print(f"penalty {trainer.callback_metrics['penalty'].item():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
