"""The notebooks run from top to bottom, and hold what a run printed and drew."""

import notebooks
import pytest


@pytest.mark.parametrize("name, sizes", [("tour", {"EPOCHS": 2}), ("regions", {"EPOCHS": 10, "WIDTH": 8})])
def test_runs_and_was_stored(name, sizes):
    """Of the stored outputs only their kinds are compared: tables and pictures of smaller networks are others."""
    assert name in notebooks.NAMES
    for cell, outputs in notebooks.cells(name, **sizes):
        assert cell["execution_count"]
        assert [sorted(output) for output in outputs] == [sorted(output) for output in cell["outputs"]]


def test_every_notebook_is_run():
    assert notebooks.NAMES == ("regions", "tour")
    assert all(path.stat().st_size < 250_000 for path in notebooks.FOLDER.glob("*.ipynb"))
