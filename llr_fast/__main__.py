"""Command line: python -m llr_fast <command>."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llr_fast import demo, doctor, paper


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llr_fast", description="Linear regions of ReLU-like networks.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_command(commands)
    doctor.add_command(commands)
    paper.add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
