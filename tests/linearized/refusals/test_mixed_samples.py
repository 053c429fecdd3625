"""What drops, selects or mixes the samples of a batch has no margin of each sample."""

import networks
import pytest
import torch
import torch.nn.functional as F
from refusal_cases import C4, DTYPE, check_refused, inside, mixes

MIXING = {
    "mean": mixes(lambda x: x.mean(0), "mean"),
    "centred": mixes(lambda x: x - x.mean(0), "mean"),
    "sum": mixes(lambda x: x.sum(), "sum"),
    "first": mixes(lambda x: x[0], "__getitem__"),
    "first_kept": mixes(lambda x: x[:1], "__getitem__"),
    "flip": mixes(lambda x: x.flip(0), "flip"),
    "roll": mixes(lambda x: x.roll(1, 0), "roll"),
    "permuted": mixes(lambda x: x[torch.tensor([1, 0])], "__getitem__"),
    "index_select": mixes(lambda x: x.index_select(0, torch.tensor([1, 0])), "index_select"),
    "cat_constant": mixes(lambda x: torch.cat([x, torch.ones(1, 4, dtype=DTYPE)]), "cat"),
    "cumsum": mixes(lambda x: x.cumsum(0), "cumsum"),
    "mixing_matrix": mixes(lambda x: torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=DTYPE) @ x, "matmul"),
    "pairs": mixes(lambda x: x.reshape(1, 8) @ torch.ones(8, 2, dtype=DTYPE), "matmul"),
    "all_pairs": mixes(lambda x: x.unsqueeze(0) - x.unsqueeze(1), "sub"),
    "max_over_batch": mixes(lambda x: x.amax(0), "amax"),
    "pool_over_batch": mixes(lambda x: F.max_pool1d(x.T.unsqueeze(0), 2), "max_pool1d"),
    "conv_over_batch": mixes(lambda x: F.conv1d(x.T.unsqueeze(0), torch.ones(3, 4, 2, dtype=DTYPE)), "conv1d"),
    "einsum": mixes(lambda x: torch.einsum("bi,ij->j", x, C4), "einsum"),
    "transposed_addition": mixes(lambda x: x[:, :2] + x[:, :2].T, "add"),
    "neighbour": mixes(lambda x: x[:, :2] - x[:, 2:].flip(0), "flip"),
    "dropped_by_squeeze": mixes(lambda x: x.split(1)[0].squeeze(0), "split"),
    "linear_over_batch": mixes(lambda x: F.linear(x.T, torch.ones(3, 2, dtype=DTYPE)), "linear"),
    "cumsum_of_merged": mixes(lambda x: x.reshape(-1).cumsum(0), "cumsum"),
    "reordered_by_arange": mixes(lambda x: x[torch.arange(len(x) - 1, -1, -1)], "__getitem__"),
    "every_other": mixes(lambda x: torch.cat([x, x])[::2], "__getitem__"),
    "steps_of_neighbours": mixes(lambda x: x.view(1, 2, 4)[:, :1] + x.view(1, 2, 4), "__getitem__"),
    "unfolded": mixes(lambda x: x.unfold(0, 2, 1), "unfold"),
    "matrix_of_samples": mixes(lambda x: torch.tensordot(torch.ones(3, 2, dtype=DTYPE), x, dims=1), "einsum"),
    "batch_norm_over_batch": mixes(
        lambda x: F.batch_norm(x.T, torch.zeros(2, dtype=DTYPE), torch.tensor([1.0, 9.0], dtype=DTYPE)), "batch_norm"
    ),
    "sorted_out": mixes(lambda x: x.index_select(0, torch.zeros(2, dtype=torch.long)), "index_select"),
    "repeated_first": mixes(lambda x: x[:1].expand(2, 4), "__getitem__"),
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_may_not_mix(name):
    case = MIXING[name]
    check_refused(case, inside(networks.Apply(lambda x: F.relu(case.run(x)))))
