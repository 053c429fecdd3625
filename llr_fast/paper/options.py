"""Command lines of the experiments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llr_fast.checks import check_count, check_seed

Commands = argparse._SubParsersAction
Counts = Mapping[str, tuple[int, str]]  # name -> default and meaning


def add_experiment(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    shows: str,
    description: str | None,
    run: Callable[[argparse.Namespace], None],
    counts: Counts,
    data: str | None = None,
) -> argparse.ArgumentParser:
    """Adds a command with the options --out and --seed, one for each of `counts`, and --data, a folder of `data`."""
    parser = commands.add_parser(name, help=shows, description=description)
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"folder of {data}")
    parser.add_argument("--out", type=Path, default=Path("paper"), metavar="DIR", help="default: %(default)s")
    for option, (default, meaning) in counts.items():
        flag = "--" + option.replace("_", "-")
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    parser.set_defaults(run=run, resumable=True)
    return parser


def settings_of(options: argparse.Namespace, counts: Counts) -> dict[str, Any]:
    """The counts, each at least 1, and the seed.

    Raises:
        ValueError: a count is less than 1, or the seed is none of torch's.
    """
    settings = {name: getattr(options, name) for name in counts}
    for name, value in settings.items():
        check_count(name, value)
    check_seed(options.seed)
    return {**settings, "seed": options.seed}
