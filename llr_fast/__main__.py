"""Command line: python -m llr_fast <command>."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from llr_fast import __version__, paper
from llr_fast.commands import demo, doctor

INTERRUPTED = 130  # the status of what Ctrl-C ended, 128 + SIGINT


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="python -m llr_fast", description="Linear regions of ReLU-like networks."
    )
    parser.add_argument("--version", action="version", version=f"llr_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_command(commands)
    doctor.add_command(commands)
    paper.add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what its user can mend, and Ctrl-C, end it with one line on stderr and a status."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        again = "; running the same command again goes on where it stopped" if options.resumable else ""
        print(f"interrupted{again}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ImportError, OSError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
