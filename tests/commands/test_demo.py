"""The demo and the picture it draws."""

import sys
from pathlib import Path

import pytest
import torch
from command_lines import fails

from llr_fast import errors
from llr_fast.__main__ import main
from llr_fast.commands import demo
from llr_fast.plot import plot_margins


def test_command_prints_one_table_and_writes_the_picture(tmp_path, capsys):
    main(["demo", "--epochs", "1", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr()
    header, _, *rows = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert "cross-entropy" in header and "ROLL" in header
    assert [row.split()[1] for row in rows] == [
        "accuracy",
        "certified",
        "activation",
        *3 * ["l1"],
        *3 * ["l2"],
        *3 * ["linf"],
    ]
    assert "epoch" in printed.err
    assert (tmp_path / "new" / "margins.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_same_result():
    digits = demo.load()
    first, again, other = (demo.train_and_measure("ROLL", digits, 1, seed) for seed in (0, 0, 1))
    assert torch.equal(first.margins[2], again.margins[2])
    assert not torch.equal(first.margins[2], other.margins[2])


@pytest.mark.parametrize("package", ["matplotlib", "sklearn.datasets"])
def test_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "(\.|llr-fast)\[demo\]"'):
        demo.load()


@pytest.mark.parametrize(
    "arguments, message, status",
    [
        ("demonstrate", "invalid choice: 'demonstrate'.*demo", 2),
        ("demo --epochs many", "--epochs: invalid int value: 'many'", 2),
        ("paper mnist", "required: --data", 2),
        ("demo --epochs 0", "error: epochs: expected at least 1, got 0", 1),
        (f"demo --seed {2**64}", "error: seed: expected a number from", 1),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, message, status, capsys):
    with fails(capsys, rf"^.*{message}", status):
        main(arguments.split())


@pytest.mark.parametrize("inside", ["", "folder"])
def test_folder_that_cannot_be_written_is_refused_before_the_training(inside, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(demo, "train_and_measure", lambda *_: pytest.fail("trained"))
    with fails(capsys, "^error: out: expected a folder to write into, got .*file"):
        main(["demo", "--out", str(tmp_path / "file" / inside)])


def test_interruption_and_missing_package_end_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "train_and_measure", interrupted)
    with fails(capsys, "^interrupted$", 130):
        main(["demo", "--out", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with fails(capsys, r'^error: the demo needs .* pip install "(\.|llr-fast)\[demo\]"$'):
        main(["demo", "--out", str(tmp_path)])


def interrupted(*_):
    raise KeyboardInterrupt


def test_what_nobody_expects_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(demo, "train_and_measure", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main(["demo", "--out", str(tmp_path)])


@pytest.mark.parametrize("inside, package", [(True, "."), (False, "llr-fast")])
def test_command_of_an_extra_fits_the_place(inside, package, monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "llr_fast" / "errors.py"))
    if inside:
        (tmp_path / "pyproject.toml").write_text("")
    assert str(errors.missing("it needs that", "demo")) == f'it needs that: pip install "{package}[demo]"'


def test_quartiles_with_infinite_margins():
    values = torch.tensor([1.0, 2.0, 3.0, torch.inf, torch.inf])
    assert demo.quartiles(values) == [2.0, 3.0, torch.inf]


def test_plot_leaves_out_what_a_logarithmic_axis_cannot_show():
    margins = {"a": torch.tensor([0.1, 0.15, 3.0]), "b": torch.tensor([0.0, 1.0, torch.inf])}
    ax = plot_margins(margins, p=float("inf"), unit="volts")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a: median 0.15", "b: median 1.0, 2 zero or infinite not shown"]
    assert [line.get_xdata()[0] for line in ax.lines] == [pytest.approx(0.15), 1.0]
    assert ax.get_xscale() == "log" and "volts" in ax.get_xlabel() and "infty" in ax.get_xlabel()


@pytest.mark.parametrize("margins, message", [({}, "1 to 4 networks, got 0"), ({"a": torch.zeros(3)}, "margins.'a'.")])
def test_plot_refuses_nothing_to_draw(margins, message):
    with pytest.raises(ValueError, match=message):
        plot_margins(margins)


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "(\.|llr-fast)\[plot\]"'):
        plot_margins({"a": torch.ones(3)})


def test_quartiles_are_those_of_the_nearest_digit():
    assert demo.quartiles(torch.tensor([1.0, 2.0, 3.0, 4.0])) == [2.0, 3.0, 3.0]


def test_default_options(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda *options: seen.append(options))
    main(["demo"])
    assert seen == [(Path(), 100, 0)]
