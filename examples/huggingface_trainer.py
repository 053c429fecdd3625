"""The Trainer of Hugging Face, by compute_loss_func: python examples/huggingface_trainer.py [STEPS]."""

from __future__ import annotations

import sys
import tempfile

import digits
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import llr_fast


class Classifier(nn.Module):
    """Takes and returns what the Trainer passes on: named inputs, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.roll = llr_fast.ROLLLoss(digits.network(), lam=0.1, estimator="rademacher")

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits, penalty = self.roll(pixels)
        return {"logits": logits, "penalty": penalty}


def loss(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: int | None = None) -> Tensor:
    return cross_entropy(outputs["logits"], labels) + outputs["penalty"]


def main(steps: int = 20) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=32, report_to=[], save_strategy="no", use_cpu=True
        )
        samples = [{"pixels": x, "labels": y} for x, y in digits.dataset()]
        trainer = Trainer(Classifier(), arguments, train_dataset=samples, compute_loss_func=loss)
        print(f"loss {trainer.train().training_loss:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
