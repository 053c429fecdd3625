"""Table 2's ratios on a CPU: one training step by the paper's algorithms, and by llr_fast."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F
from tqdm import tqdm

from llr_fast import ROLLLoss
from llr_fast.paper import classifiers, datasets
from llr_fast.paper.algorithms import hidden_values, paper_passes, penalty, per_neuron_backprop, rows
from llr_fast.paper.options import Commands, add_experiment, settings_of
from llr_fast.paper.study import Study, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = {"batch": (64, "images of a step"), "rounds": (5, "times that each step is timed, in turn")}
AXES = 3
TOLERANCE = 1e-3  # relative, of penalties in float32

BACKPROP, ALL_AXES, SOME_AXES = "back-propagation per neuron", "all axes", f"{AXES} axes"
VANILLA, EXACT, OUR_AXES, SIGNS = "vanilla", "llr_fast, exact", f"llr_fast, {AXES} axes", "llr_fast, 1 random direction"
PAPER = {(BACKPROP, ALL_AXES): 12, (ALL_AXES, SOME_AXES): 9, (SOME_AXES, VANILLA): 2}

Step = Callable[[], Tensor]


def add_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `timing` to the experiments."""
    add_experiment(commands, "timing", "Table 2's ratios, on a CPU", __doc__, run, COUNTS, "MNIST's four idx files")


def run(options: argparse.Namespace) -> None:
    """Checks that the algorithms agree, times them in turn, and writes the tables and the figure."""
    settings = settings_of(options, COUNTS)
    images = datasets.mnist(options.data)
    study = Study("timing", options.out, {**settings, "threads": torch.get_num_threads()})
    found = study.step("steps", lambda: measured(images, settings))
    study.publish(found, text(found, settings), {"steps": draw(found["seconds"])})


def measured(images: datasets.Images, settings: Mapping[str, int]) -> dict[str, Any]:
    """Median seconds of every step, and by how much the results of the algorithms differ."""
    torch.manual_seed(settings["seed"])
    train = classifiers.split(images, classifiers.MEAN, classifiers.STD, flat=True).train
    x, y = next(iter(torch.utils.data.DataLoader(train, settings["batch"])))
    model = classifiers.dense(x.size(1))
    errors = disagreements(model, x)
    if max(errors.values()) > TOLERANCE:
        raise RuntimeError(f"expected penalties that agree to {TOLERANCE}, got {errors}")
    calls = steps(model, x, y)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(settings["rounds"] + 1), desc="rounds"):
        for name, call in calls.items():
            start = time.perf_counter()
            call().backward()
            seconds[name].append(time.perf_counter() - start)
            model.zero_grad()
    # The first round warms up.
    medians = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    return {"pixels": x.size(1), "seconds": medians, "errors": errors}


def steps(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Step]:
    """The loss of one step by each algorithm; lambda = C = 1, gamma = 100."""

    def paper(algorithm: Callable[[], tuple[Tensor, Tensor]]) -> Step:
        return lambda: F.cross_entropy(model(x), y) + penalty(*algorithm())

    def ours(**options: Any) -> Step:
        roll = ROLLLoss(model, **options)

        def step() -> Tensor:
            output, regulariser = roll(x)
            loss: Tensor = F.cross_entropy(output, y) + regulariser
            return loss

        return step

    return {
        VANILLA: lambda: F.cross_entropy(model(x), y),
        BACKPROP: paper(lambda: per_neuron_backprop(model, x)),
        ALL_AXES: paper(lambda: paper_passes(model, x)),
        SOME_AXES: paper(lambda: paper_passes(model, x, torch.randperm(x[0].numel())[:AXES])),
        EXACT: ours(estimator="exact"),
        OUR_AXES: ours(estimator="axis", samples=AXES),
        SIGNS: ours(estimator="rademacher"),
    }


def disagreements(model: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Relative differences of exact penalties from ours, and of squares along some axes from torch.func's."""
    with torch.no_grad():
        ours = ROLLLoss(model, estimator="exact")(x)[1]
        exact = {ALL_AXES: penalty(*paper_passes(model, x))}
        axes = torch.arange(AXES)
        some, _ = paper_passes(model, x, axes)
        directions = torch.eye(x.size(1))[axes]
        tangents = [jvp(lambda x: rows(hidden_values(model, x)), (x,), (d.expand_as(x),))[1] for d in directions]
        expected = torch.stack(tangents).square().sum(0) * (x.size(1) / AXES)
    exact[BACKPROP] = penalty(*per_neuron_backprop(model, x)).detach()
    found = {name: ((value - ours).abs() / ours).item() for name, value in exact.items()}
    return {**found, SOME_AXES: ((some - expected).norm() / expected.norm()).item()}


def text(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The paper's ratios beside ours, and every step over a plain one."""
    seconds = found["seconds"]
    ratios = table(
        ("time of a step over another's", "paper, one GPU", "the paper's algorithms here"),
        [[f"{a} / {b}", f"about {value}", seconds[a] / seconds[b]] for (a, b), value in PAPER.items()],
    )
    plain = table(
        ("step, forward and backward", "over vanilla"), [[name, s / seconds[VANILLA]] for name, s in seconds.items()]
    )
    gains = table(
        ("step", "times as fast as by the paper's algorithm"),
        [
            [f"{EXACT}, instead of {ALL_AXES}", seconds[ALL_AXES] / seconds[EXACT]],
            [f"{OUR_AXES}, instead of {SOME_AXES}", seconds[SOME_AXES] / seconds[OUR_AXES]],
        ],
    )
    about = (
        f"{found['pixels']}-300-300-300-300-10 on MNIST, batch {settings['batch']}, median of {settings['rounds']} "
        f"rounds in turn. Results agree to {max(found['errors'].values()):.1g}."
    )
    return "\n\n".join([about, ratios, plain, gains])


def draw(seconds: Mapping[str, float]) -> Figure:
    """Bars on a logarithmic axis."""
    from matplotlib.figure import Figure

    from llr_fast.plot import COLOURS

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    ax = figure.subplots()
    names = list(seconds)[::-1]
    ratios = [seconds[name] / seconds[VANILLA] for name in names]
    colours = [COLOURS[1] if name.startswith("llr_fast") else COLOURS[0] for name in names]
    bars = ax.barh(names, ratios, color=colours)
    ax.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=3)
    ax.set(xscale="log", xlabel="time of a training step over one without regularisation", xlim=(0.8, 3 * max(ratios)))
    return figure
