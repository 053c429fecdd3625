"""The vowels command at a tiny budget, on sequences of the same format as the data's."""

import json

import pytest
import torch
from command_lines import fails
from torch import nn
from torch.nn.utils import parametrize

from llr_fast import ROLLLoss
from llr_fast.__main__ import main
from llr_fast.paper import sequences, vowels
from llr_fast.paper.datasets import VOWELS_FILES, Sequences, japanese_vowels
from llr_fast.paper.scornn import ScoRNN
from llr_fast.paper.sequences import Variant, by_length, objective, split

LENGTHS = (3, 4, 6)
TINY = ("--epochs", "2", "--hidden", "6", "--held", "1", "--samples", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of the two files: 2 classes, 12 channels."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for name, count in zip(VOWELS_FILES.values(), (8, 6)):
        lines = ["# made by a test", "@problemName JapaneseVowels", "@data"]
        for i in range(count):
            x = torch.randn(12, LENGTHS[i % len(LENGTHS)], generator=generator) + i % 2
            lines.append(":".join([*(",".join(map(str, channel)) for channel in x.tolist()), str(i % 2 + 1)]))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("vowels")
    command(data, out)
    return out


def command(data, out, *options):
    main(["paper", "vowels", "--data", str(data), "--out", str(out), *TINY, *options])


def test_writes_the_papers_numbers_beside_ours(finished):
    record = json.loads((finished / "vowels.json").read_text())
    networks = record["results"]["networks"]
    assert list(networks) == ["vanilla", "roll-lam0.03125-C16", "roll-lam0.5-C4"]
    for rows in networks.values():
        assert set(rows) == {"validation", "test"}
        for row in rows.values():
            assert row["points"] == 6 and 1 <= row["epoch"] <= 2
            assert row["margins"]["l2"]["P50"] <= row["margins"]["l1"]["P50"]
    assert record["settings"]["rho"] == 0.5 and record["settings"]["slope"] == 0.01
    text = (finished / "vowels.md").read_text()
    assert "22968 |" in text and "test data, as the paper" in text and "2 random directions" in text
    assert (finished / "vowels-stability.png").read_bytes().startswith(b"\x89PNG")


def test_second_run_trains_and_measures_nothing(finished, data, monkeypatch):
    first = (finished / "vowels.md").read_text()
    monkeypatch.setattr(vowels, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(vowels, "evaluate", lambda *_: pytest.fail("measured again"))
    command(data, finished)
    assert (finished / "vowels.md").read_text() == first


def test_an_interrupted_run_goes_on_to_the_same_result(finished, data, tmp_path, monkeypatch):
    # Of every network an epoch has 6 / 4 steps, so the fourth step is in the middle of the second epoch.
    monkeypatch.setattr(sequences, "BATCH", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command(data, whole)
    steps, step = [], torch.optim.Adam.step

    def interrupted(*arguments, **options):
        steps.append(None)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", interrupted)
        with pytest.raises(SystemExit, match="130"):
            command(data, parts)
    command(data, parts)
    results = [json.loads((out / "vowels.json").read_text())["results"] for out in (whole, parts)]
    assert results[0] == results[1]


def test_exact_estimator(data, tmp_path):
    command(data, tmp_path, "--estimator", "exact", "--epochs", "1")
    assert "the penalty is exact, as in the paper" in (tmp_path / "vowels.md").read_text()
    for check in json.loads((tmp_path / "vowels.json").read_text())["results"]["estimators"].values():
        assert all(draw == pytest.approx(check["exact"], rel=0.5) for draw in check["draws"])


def test_wrong_folder_says_which_files_are_expected(tmp_path, capsys):
    with fails(capsys, r"JapaneseVowels_TRAIN\.ts, JapaneseVowels_TEST\.ts"):
        command(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("option", "value"), [("held", "4"), ("epochs", "0"), ("hidden", "5")])
def test_options_outside_their_range_are_refused(data, tmp_path, option, value, capsys):
    with fails(capsys, f"^error: {option}: expected"):
        command(data, tmp_path, f"--{option}", value)


def test_weight_is_orthogonal_and_stays_so_in_training():
    torch.manual_seed(0)
    model = ScoRNN(3, 10, 2, rho=0.3).double()
    before = model.recurrent.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    after = model.recurrent.weight
    for weight in (before, after):
        assert torch.allclose(weight @ weight.t(), torch.eye(10, dtype=torch.float64), atol=1e-12)
        assert torch.linalg.det(weight).item() == pytest.approx(-1)  # three of the signs
    assert not torch.allclose(before, after, atol=1e-3)


def test_first_weight_has_the_rotations_of_the_cayley_transform():
    torch.manual_seed(0)
    weight = ScoRNN(3, 8, 2, rho=0.0).double().recurrent.weight
    blocks = torch.stack([weight[i : i + 2, i : i + 2] for i in range(0, 8, 2)])
    assert torch.allclose(torch.block_diag(*blocks), weight)
    angles = blocks[:, 0, 0].acos()
    assert ((angles >= 0) & (angles <= torch.pi / 2)).all()


def test_network_is_the_recurrence_of_its_definition():
    torch.manual_seed(0)
    model, x = ScoRNN(3, 4, 2, slope=0.1), torch.randn(5, 6, 3)
    state = torch.zeros(5, 4)
    for t in range(6):
        z = x[:, t] @ model.input.weight.t() + state @ model.recurrent.weight.t() + model.input.bias
        state = torch.maximum(z, 0.1 * z)
    assert torch.allclose(model(x), model.output(state), atol=1e-6)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_one_weight_changes_no_gradient(estimator):
    torch.manual_seed(0)
    model = ScoRNN(3, 4, 2).double()
    groups = by_length(_sequences(4, 3))
    found = []
    for cached in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        loss = objective(model, Variant(1.0, 2.0), estimator, 2)
        if cached:
            with model.one_weight():
                loss(groups).backward()
        else:
            loss(groups).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert not parametrize._cache
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=1e-12)


def test_groups_by_length_are_sample_by_sample():
    torch.manual_seed(0)
    model, data = ScoRNN(3, 4, 2).double(), _sequences(7, 3)
    groups = by_length(data)
    assert [group.x.size(1) for group in groups] == sorted({len(x) for x in data.x})
    assert torch.cat([group.which for group in groups]).sort().values.equal(torch.arange(7))
    roll = ROLLLoss(model, lam=0.3, C=2.0, estimator="exact")
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(data.x, data.y):
        output, penalty = roll(x.unsqueeze(0))
        total += nn.functional.cross_entropy(output, y.unsqueeze(0)) + penalty
    assert objective(model, Variant(0.3, 2.0), "exact", 1)(groups).item() == pytest.approx(total.item() / 7, rel=1e-12)


def test_split_holds_out_of_every_class(data):
    train, test = japanese_vowels(data)
    parts = split(train, test, held=2, seed=0)
    assert parts.validation.y.bincount().tolist() == [2, 2]
    assert parts.train.y.bincount().tolist() == (train.y.bincount() - 2).tolist()
    together = sorted(x.sum().item() for part in parts[:2] for x in part.x)
    assert together == sorted(x.sum().item() for x in train.x)
    assert parts.test is test


def _sequences(count, channels):
    return Sequences(
        [torch.randn(LENGTHS[i % len(LENGTHS)], channels, dtype=torch.float64) for i in range(count)],
        torch.arange(count) % 2,
    )
