"""Writes the tables of docs/benchmarks.md from benches/results: python -m benches.table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from benches.providers import CROSS_ENTROPY, OURS, REFERENCE

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- Written by python -m benches.table -->\n", "<!-- End of what it writes -->\n"
LABELS = {
    "paper_passes": "D + 1 passes",
    "layer_by_layer": "Appendix D",
    "per_neuron_backprop": "neuron by neuron",
    "functorch_jacobian": "torch.func",
    REFERENCE: "plain PyTorch",
}


def render(results: dict) -> str:
    """The tables of one run, from the JSON of pytest-benchmark."""
    runs = [run["extra_info"] for run in results["benchmarks"]]
    parts = [_introduction(results)]
    for name, table in TABLES.items():
        chosen = [run for run in runs if run["table"].split()[0] == name]
        if chosen:
            parts.append(table(chosen))
    return "\n\n".join(parts) + "\n"


def ratio(run: dict, provider: str) -> float:
    """Seconds of a provider over those of llr_fast; NaN if it was not run."""
    seconds = run["seconds"].get(provider, math.nan) * run.get("scaled", {}).get(provider, 1)
    return seconds / run["seconds"][OURS]


def write(page: Path, results: Iterable[Path]) -> None:
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(render(json.loads(path.read_text())) for path in sorted(results))
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def _introduction(results: dict) -> str:
    machine, commit = results["machine_info"], results["commit_info"]["id"][:8]
    cuda = any(run["extra_info"]["device"] == "cuda" for run in results["benchmarks"])
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    device = machine["gpu"] if cuda else f"{machine['processor']}, {machine['cpu_capability']}, {threads}"
    command = "pytest benches -m gpu" if cuda else "make bench"
    where = f"{device}; PyTorch {machine['torch'].split('+')[0]}; commit {commit}"
    if {run["extra_info"]["table"] for run in results["benchmarks"]} == {"regions"}:
        return (
            f"`pytest benches/bench_regions.py` ({where}): how many times as\n"
            "long as `regions_on_plane`, in float64, other tools take (`pip install regioncam relucent`),\n"
            "after a check that all find as many regions, to 0.1%. relucent asks a solver for the neighbours\n"
            "of each region; it ran with one worker and without its verification."
        )
    return (
        f"`{command}` ({where}): how many times as long as `llr_fast` the alternatives\n"
        "take, timed in turn in one run, in float32, after a check that all agree. *D + 1 passes* and *Appendix D*\n"
        "(layer by layer) are the paper's algorithms, *neuron by neuron* is back-propagation, *torch.func* forward or\n"
        "reverse mode in chunks, *plain PyTorch* `llr_fast` without its kernels. ROLL has `lam=1, C=1,\n"
        'estimator="exact"`; a step is forward and backward.'
    )


def _roll(runs: list[dict]) -> str:
    rows = []
    for run in runs:
        passes = "forward" if run["passes"] == "forward" else f"step, gamma {run['gamma']}"
        name = f"{run['network']}, batch {run['shape'][0]}: {passes}"
        alternatives = [_number(ratio(run, provider)) for provider in LABELS]
        rows.append([name, *alternatives, _number(1 / ratio(run, CROSS_ENTROPY))])
    return _table(["exact ROLL", *LABELS.values(), "over cross-entropy"], rows)


def _training(runs: list[dict]) -> str:
    rows = []
    for run in runs:
        if "seconds" in run:
            name = f"{run['network']}, D = {math.prod(run['shape'][1:]):,}, batch {run['shape'][0]}"
            peaks = [r["megabytes"] for r in runs if r["table"] == "training memory" and r["network"] == run["network"]]
            peaks += [run["megabytes"]] if "megabytes" in run else []
            memory = [_number(peak[OURS] / peak[CROSS_ENTROPY]) for peak in peaks]
            rows.append([name, _number(1 / ratio(run, CROSS_ENTROPY)), *memory])
    return _table(["step with sampled ROLL over one without", "time", "peak memory"], rows)


def _margin(runs: list[dict]) -> str:
    rows = []
    for run in runs:
        points, *sizes = run["shape"]
        name = f"{run['network']}, D = {math.prod(sizes):,}, batch {points:,}"
        rows.append([name, _number(ratio(run, "layer_by_layer")), _number(1 / ratio(run, "forward"))])
    table = _table(["exact l2 margin", "Appendix D", "over a forward pass"], rows)
    scaled = [run["scaled"]["layer_by_layer"] for run in runs if "scaled" in run]
    return table + "".join(f"\n\nAppendix D was timed on 1/{scale:.3g} of the points." for scale in scaled)


def _ops(runs: list[dict]) -> str:
    found = {(run["op"], run["passes"]): _number(ratio(run, REFERENCE)) for run in runs}
    rows = []
    for op in dict.fromkeys(run["op"] for run in runs):
        sizes = next(run["sizes"] for run in runs if run["op"] == op)
        rows.append([f"`{op}`, {sizes}", found[op, "forward"], found.get((op, "forward + backward"), "")])
    return _table(["plain PyTorch over kernel", "forward", "forward + backward"], rows)


def _growth(runs: list[dict]) -> str:
    rows = []
    for axis in dict.fromkeys(run["axis"] for run in runs):
        along = [run for run in runs if run["axis"] == axis]
        curves = [
            [f"{run[axis]:,}" for run in along],
            [_number(ratio(run, "paper_passes")) or "-" for run in along],
            [_number(ratio(run, "layer_by_layer")) or "-" for run in along],
            [_number(1 / ratio(run, CROSS_ENTROPY)) for run in along],
        ]
        sizes, *others = [" / ".join(curve) for curve in curves]
        rows.append([f"{axis} {sizes}", *others])
    first, last = runs[0], runs[-1]  # of the sweeps of the input and of the batch: all else is as in every sweep
    base = f"{last['input']}-{last['width']}x{last['depth']}-10, batch {first['batch']}"
    return _table([f"exact ROLL step, {base}, as one grows", "D + 1 passes", "Appendix D", "over cross-entropy"], rows)


def _regions(runs: list[dict]) -> str:
    rows = [[run["network"], *(_number(ratio(run, tool)) or "-" for tool in ("regioncam", "relucent"))] for run in runs]
    return _table(["all regions on a square", "regioncam (float32)", "relucent"], rows)


def _memory(runs: list[dict]) -> str:
    names = ("paper_passes", "layer_by_layer", OURS, CROSS_ENTROPY)
    rows = []
    for run in runs:
        peaks = [run["megabytes"].get(name) for name in names]
        name = f"{run['network']}, D = {math.prod(run['shape'][1:]):,}"
        rows.append([name, *("" if peak is None else f"{peak:.0f}" for peak in peaks)])
    return _table(["peak MB of an exact ROLL step", "D + 1 passes", "Appendix D", "llr_fast", "cross-entropy"], rows)


TABLES = {
    "roll": _roll,
    "training": _training,
    "margin": _margin,
    "regions": _regions,
    "ops": _ops,
    "growth": _growth,
    "memory": _memory,
}


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    alignment = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="github", colalign=alignment, disable_numparse=True)


if __name__ == "__main__":
    write(ROOT / "docs" / "benchmarks.md", (ROOT / "benches" / "results").glob("*.json"))
