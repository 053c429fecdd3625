"""The toy command at a tiny budget."""

import json

import pytest
import torch
from command_lines import fails

from llr_fast.__main__ import main
from llr_fast.paper import toy

TINY = ("--epochs", "6", "--width", "6", "--points", "3")


def command(out, *options):
    main(["paper", "toy", "--out", str(out), *TINY, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy")
    command(out)
    return out


def test_writes_table_numbers_and_picture(finished):
    results = json.loads((finished / "toy.json").read_text())["results"]
    assert list(results) == list(toy.LOSSES)
    for found in results.values():
        margins = [found[f"l2 margin of the training points, P{level}"] for level in (0, 25, 50, 75, 100)]
        assert margins == sorted(margins) and margins[0] > 0 and found["linear regions"] > 1
    table = (finished / "toy.md").read_text()
    assert all(name in table for name in toy.LOSSES) and "Two spirals of 3 points" in table
    assert (finished / "toy-regions.png").read_bytes().startswith(b"\x89PNG")


def test_second_run_trains_nothing(finished, monkeypatch):
    first = (finished / "toy.md").read_text()
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("trained again"))
    command(finished)
    assert (finished / "toy.md").read_text() == first


def test_an_interrupted_run_goes_on_to_the_same_result(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy, "KEPT", 2)
    steps, step = [], torch.optim.Adam.step

    def interrupted(*arguments, **options):
        steps.append(None)
        if len(steps) == 10:  # the second network's fourth
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", interrupted)
        with fails(capsys, "^interrupted; running the same command again goes on where it stopped$", 130):
            command(tmp_path)
    before = len(steps)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *a, **k: (steps.append(None), step(*a, **k)))
    command(tmp_path)
    assert len(steps) - before == 4 + 6
    assert _results(tmp_path) == _results(finished)


def test_boundaries_that_lines_cross_are_counted_by_length(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.fill_(0.01)
    found = toy._measured(lambda: model, *toy.spirals(3))
    # Every row crosses the vertical kink and every column the horizontal one.
    assert found["boundaries crossed by a line, per unit of its length"] == pytest.approx(1 / (2 * toy.HALF))
    assert found["linear regions"] == 4


def test_other_settings_need_another_folder(finished, capsys):
    with fails(capsys, "^error: out: expected a folder of the same settings"):
        command(finished, "--seed", "1")


def test_no_points_are_refused(tmp_path, capsys):
    with fails(capsys, "^error: points: expected at least 1"):
        command(tmp_path, "--points", "0")


def _results(out):
    return json.loads((out / "toy.json").read_text())["results"]
