"""An experiment's folder: what is finished stays in it, so that a run that was interrupted goes on when run again."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from llr_fast.checks import check_folder
from llr_fast.commands.doctor import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PART = ".part"


class Study:
    """Steps and results of one experiment.

    `out/name/` holds the finished steps and the networks in training; `out/name.json`, `.md` and `-*.png` the results.

    Args:
        name: of the experiment.
        out: the folder.
        settings: that the results depend on, ready for JSON.

    Raises:
        OSError: no files can be written into the folder.
        ValueError: it holds steps of other settings.
    """

    def __init__(self, name: str, out: Path, settings: Mapping[str, Any]) -> None:
        self.name, self.out, self.folder = name, out, out / name
        self.settings = json.loads(json.dumps(settings))
        check_folder("out", self.folder)
        known = _read(self.folder / "settings.json", self.settings)
        if known != self.settings:
            differing = sorted(k for k in known.keys() | settings.keys() if known.get(k) != self.settings.get(k))
            were = ", ".join(f"{key}={known.get(key)!r}" for key in differing)
            raise ValueError(
                f"out: expected a folder of the same settings or none, got {self.folder} with {were}; "
                "delete it or choose another"
            )
        if not (self.folder / "settings.json").exists():
            _write(self.folder / "settings.json", self.settings)
            _write(self.folder / "commit.json", _commit())

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, which JSON must be able to hold; it is not called where an earlier run did."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            start = time.perf_counter()
            try:
                _write(path, compute())
                for part in self.folder.glob(f"{name}{PART}*.json"):
                    part.unlink()
            finally:
                self._note_duration(name, time.perf_counter() - start)
        return _read(path, None)

    def parts(self, name: str, count: int, compute: Callable[[int], Any]) -> list[Any]:
        """What `compute` returns for each number below `count`, within the step of that name, which may be long.

        As of steps, but for infinite numbers, which stay what they are. The files go when the step is finished.
        """
        paths = [self.folder / f"{name}{PART}{i}.json" for i in range(count)]
        for i, path in enumerate(paths):
            if not path.exists():
                _write(path, json.dumps(compute(i)))  # of strings JSON changes nothing
        return [json.loads(_read(path, None)) for path in paths]

    def publish(self, results: Mapping[str, Any], text: str, pictures: Mapping[str, Figure]) -> None:
        """Writes results and pictures; prints the text."""
        record = {
            "experiment": self.name,
            "commit": _read(self.folder / "commit.json", None),
            "machine": dict(versions()),
            "seconds": {name: round(seconds, 1) for name, seconds in self._durations().items()},
            "settings": self.settings,
            "results": results,
        }
        _write(self.out / f"{self.name}.json", record)
        minutes = sum(self._durations().values()) / 60
        where = f"{record['machine']['cpu']}, PyTorch {record['machine']['torch']}, commit {record['commit']}"
        text = f"{text}\n\nRun: {minutes:.1f} minutes on {where}.\n"
        (self.out / f"{self.name}.md").write_text(text)
        print(text)
        for name, figure in pictures.items():
            print("picture:", save(figure, self.out / f"{self.name}-{name}.png"))

    def _durations(self) -> dict[str, float]:
        return dict(_read(self.folder / "durations.json", {}))

    def _note_duration(self, step: str, seconds: float) -> None:
        durations = self._durations()
        _write(self.folder / "durations.json", {**durations, step: durations.get(step, 0.0) + seconds})


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture of 256 colours."""
    figure.savefig(path, dpi=100)
    return shrink(path)


def shrink(path: Path, source: str = "") -> Path:
    """To 256 colours, which is a third of the size; the `source` of what it shows is kept in the file."""
    from PIL import Image, PngImagePlugin  # comes with matplotlib

    info = PngImagePlugin.PngInfo()
    if source:
        info.add_text("Source", source)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True, pnginfo=info)
    return path


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three digits."""
    cells = [[f"{v:#.3g}".rstrip(".") if isinstance(v, float) else str(v) for v in row] for row in rows]
    align = ("left", *["right"] * (len(headers) - 1))
    return str(tabulate(cells, headers, tablefmt="github", disable_numparse=True, colalign=align))


def margin_of(row: Mapping[str, Any], norm: str, level: str, unit: float) -> float:
    """A percentile of a report's margins, as a step returns it, in that unit."""
    value = row["margins"][norm][level]
    return math.inf if value is None else value / unit


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {deviation:.1g}"


def _commit() -> str:
    """Of the checkout that the package lies in when a run begins, marked where changed; "unknown" outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _read(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON as an earlier run wrote it, {error}; delete it") from error


def _write(path: Path, content: Any) -> None:
    """In two steps, so that an interruption leaves no half of a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_finite(content), indent=1) + "\n")
    partial.replace(path)


def _finite(content: Any) -> Any:
    """JSON has no word for infinite margins: they become null."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
