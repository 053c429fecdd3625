"""Selection of the best epoch."""

import pytest
import torch
from torch import nn

from llr_fast.paper.training import Training, fit


@pytest.mark.parametrize("scores, best", [([3, 1, 2], 2), ([1, 1, 2], 1), ([2, float("nan"), 1], 3), ([1, 2, 3], 1)])
def test_the_lowest_score_is_best_and_its_state_is_kept(scores, best):
    """The weight counts the steps: two for each epoch."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    given = iter(map(float, scores))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training = Training(
        model, optimizer, lambda batch: -model.weight.sum(), lambda: [None, None], {"score": lambda: next(given)}
    )
    found = fit(training, len(scores), None, "test")["score"]
    assert (found["epoch"], found["score"]) == (best, scores[best - 1])
    assert found["state"]["weight"].item() == 2 * best and model.weight.item() == 2 * len(scores)
