"""The experiments on MNIST at a tiny budget, on noise in MNIST's format."""

import json
import re

import pytest
import torch
from command_lines import fails
from test_datasets import idx

from llr_fast import evaluate, gradient_norms
from llr_fast.__main__ import main
from llr_fast.paper import algorithms, classifiers, curves, estimators, mnist, timing
from llr_fast.paper.datasets import Images
from llr_fast.paper.study import Study

TINY = {
    "mnist": "--epochs 2 --curve-epochs 1 --samples 1",
    "distortion": "--epochs 2 --images 3 --samples 9 --population 8 --generations 2 --networks 2",
    "timing": "--batch 4 --rounds 1",
    "estimators": "--epochs 2 --images 2 --points 9 --networks 2",
}
GAMMAS = (0, 100)
PICTURES = {
    "mnist": ["curves", "margins"],
    "distortion": ["quartiles"],
    "timing": ["steps"],
    "estimators": ["variance"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    for part, count in (("train", 72), ("t10k", 20)):
        for kind, size, high in (("images-idx3", (count, 6, 6), 256), ("labels-idx1", (count,), 10)):
            tensor = torch.randint(high, size, dtype=torch.uint8, generator=generator)
            (folder / f"{part}-{kind}-ubyte").write_bytes(idx(tensor))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    def dense(pixels):
        return torch.nn.Sequential(torch.nn.Linear(pixels, 9), torch.nn.ReLU(), torch.nn.Linear(9, 10))

    monkeypatch.setattr(classifiers, "dense", dense)
    monkeypatch.setitem(estimators.NETWORKS, "dense", dense)
    monkeypatch.setattr(curves, "GAMMAS", GAMMAS)
    monkeypatch.setattr(curves, "LAMS", (2.0,))
    monkeypatch.setattr(curves, "CS", (1.0, 8.0))


def command(name, data, out, *options):
    main(["paper", name, "--data", str(data), "--out", str(out), *TINY[name].split(), *options])


def numbers(out, name):
    return json.loads((out / f"{name}.json").read_text())["results"]


@pytest.mark.parametrize("name", TINY)
def test_writes_and_prints_tables_and_pictures(name, data, tmp_path, capsys):
    command(name, data, tmp_path)
    written, printed = (tmp_path / f"{name}.md").read_text(), capsys.readouterr().out
    assert written in printed and written.count("\n|") > 4
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["experiment"] == name and record["machine"]["torch"] and record["commit"] and record["seconds"]
    found = sorted(path.name for path in tmp_path.glob("*.png"))
    assert found == [f"{name}-{picture}.png" for picture in PICTURES[name]]


@pytest.mark.parametrize("name", TINY)
def test_second_run_computes_nothing_and_shows_the_same(name, data, tmp_path, monkeypatch):
    command(name, data, tmp_path)
    first = (tmp_path / f"{name}.md").read_text()
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("trained or timed again"))
    command(name, data, tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == first


@pytest.mark.parametrize("name", ["mnist", "distortion", "estimators"])
def test_interrupted_run_goes_on_to_the_same_numbers(name, data, tmp_path, monkeypatch):
    command(name, data, tmp_path / "whole")
    steps, step = [], torch.optim.SGD.step

    def interrupted(*arguments, **options):
        steps.append(None)
        if len(steps) == 5:  # in the second network
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="130"):
        patched.setattr(torch.optim.SGD, "step", interrupted)
        command(name, data, tmp_path / "parts")
    command(name, data, tmp_path / "parts")
    assert numbers(tmp_path / "parts", name) == numbers(tmp_path / "whole", name)


def test_interrupted_evaluation_goes_on_to_the_same_numbers(data, tmp_path, monkeypatch):
    """Of the batches of the second network none is computed twice."""
    monkeypatch.setattr(mnist, "BATCH", 8)
    command("mnist", data, tmp_path / "whole")
    batches = []

    def interrupted(model, loader, p, **options):
        batches.extend(loader if p else [])  # without margins it is what does not take long
        if len(batches) == 5:
            raise KeyboardInterrupt
        return evaluate(model, loader, p, **options)

    monkeypatch.setattr(mnist, "evaluate", interrupted)
    with pytest.raises(SystemExit, match="130"):
        command("mnist", data, tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "mnist").glob("*.part*.json"))) == 1
    command("mnist", data, tmp_path / "parts")
    assert numbers(tmp_path / "parts", "mnist") == numbers(tmp_path / "whole", "mnist")
    assert len(batches) == 1 + 3 * len(mnist.variants(1))
    assert not list((tmp_path / "parts" / "mnist").glob("*.part*.json"))


def test_other_settings_need_another_folder(data, tmp_path, capsys):
    command("timing", data, tmp_path)
    with fails(capsys, r"^error: out: expected a folder of the same settings .* with seed=0"):
        command("timing", data, tmp_path, "--seed", "1")


@pytest.mark.parametrize("name", TINY)
def test_wrong_folder_and_wrong_count(name, data, tmp_path, capsys):
    with fails(capsys, "^error: data: expected the files train-images-idx3-ubyte"):
        command(name, tmp_path, tmp_path)
    option = TINY[name].split()[0]
    with fails(capsys, f"^error: {option[2:]}: expected"):
        command(name, data, tmp_path, option, "0")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(data, tmp_path, capsys):
    command("distortion", data, tmp_path, "--networks", "1")
    folder = tmp_path / "distortion"
    (folder / "vanilla-0.json").unlink()
    (folder / "vanilla-0.pt").write_bytes((folder / "vanilla-0.pt").read_bytes()[:-100])
    with fails(capsys, r"^error: .*vanilla-0\.pt: expected the state of a training run"):
        command("distortion", data, tmp_path, "--networks", "1")
    (folder / "durations.json").write_text("{")
    with fails(capsys, r"^error: .*durations\.json: expected JSON"):
        command("distortion", data, tmp_path, "--networks", "1")


def test_table_of_the_paper(data, tmp_path, monkeypatch):
    """All margins are those of pixels from 0 to 1."""
    units = []
    for part in (mnist, curves):
        monkeypatch.setattr(part, "evaluate", lambda *a, **named: units.append(r := evaluate(*a, **named)) or r)
    command("mnist", data, tmp_path)
    assert {report.unit for report in units} == {"input before normalisation"} and len(units) == 2 * (7 + len(GAMMAS))
    text = (tmp_path / "mnist.md").read_text()
    assert "|8523|" in text.replace(" ", "")
    assert mnist.deviation([90.0, 110.0, 230.0], (100, 100, 200)) == "+15%"
    assert mnist.deviation([70.0, 110.0, 200.0], (100, 100, 200)) == "-30%"


def test_networks_that_diverge_are_gaps_of_the_curves(data, tmp_path, monkeypatch):
    def diverge(model, roll, data, epochs, path):
        model[0].weight.data.fill_(torch.nan if roll.C == 8 else 1)
        path.touch()

    monkeypatch.setattr(classifiers, "train", diverge)
    split = classifiers.split(mnist.datasets.mnist(data), classifiers.MEAN, classifiers.STD, flat=True)
    points = curves.measure(split, Study("mnist", tmp_path, {"seed": 0, "curve_epochs": 1}))
    assert [p["margin"] is None and p["accuracy"] is None for p in points] == [False, True] * len(GAMMAS)
    curves.draw(points).savefig(tmp_path / "gaps.png")


def test_split_of_the_paper():
    images, labels = torch.arange(24.0).view(24, 1, 1), torch.zeros(24, dtype=torch.long)
    found = classifiers.split(Images(images, labels, images, labels), mean=1.0, std=2.0)
    assert len(found.train) == 22 and len(found.validation) == 2 and len(found.test) == 24
    assert found.test[3][0].item() == 1.0  # (3 - 1) / 2
    kept = {int(x * 2 + 1) for part in (found.train, found.validation) for x, _ in part}
    assert kept == set(range(24))


def test_variances_are_those_of_drawn_directions():
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2)), torch.randn(1, 5)
    exact = sum(layer.norm.square().sum() for layer in gradient_norms(model, x)).item()
    draws = {
        "axis": torch.eye(5)[torch.randint(5, (40000,))] * 5**0.5,
        "rademacher": torch.randint(0, 2, (40000, 5)) * 2.0 - 1,
        "gaussian": torch.randn(40000, 5),
    }
    jacobian = torch.func.jacrev(lambda x: algorithms.rows(algorithms.hidden_values(model, x)))(x).view(7, 5)
    for name, deviation in estimators.deviations(model, x).items():
        sums = (draws[name] @ jacobian.T).square().sum(1)
        assert sums.mean().item() == pytest.approx(exact, rel=0.03)
        assert (sums.std() / exact).item() == pytest.approx(deviation, rel=0.05)


def test_disagreement_stops_the_timing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "per_neuron_backprop", lambda model, x: algorithms.paper_passes(model, 2 * x))
    with pytest.raises(RuntimeError, match="penalties that agree"):
        command("timing", data, tmp_path)


def test_tables_of_made_up_estimates():
    """Deviations of 4 and 2 make one random-sign direction worth 4 axes."""
    run = {"accuracy": 0.5, "margin": 0.25, "deviations": {"axis": 4.0, "rademacher": 2.0, "gaussian": 3.0}}
    losses = ("vanilla", "axis", "rademacher", "gaussian")
    text = estimators.text({"dense": {loss: [run, run] for loss in losses}}, {"epochs": 1, "images": 1, "networks": 2})
    rows = [re.findall(r"([\d.]+) ± 0", row) for row in text.splitlines() if row.startswith("| dense")]
    assert rows == 2 * [["4", "2", "3", "4"]] + 4 * [["0.5", "0.25"]]
