"""The paper's experiments, one command each: python -m llr_fast paper EXPERIMENT."""

from __future__ import annotations

import argparse

from llr_fast.paper import distortion, estimators, mnist, timing, toy, vowels

EXPERIMENTS = (mnist, toy, vowels, distortion, timing, estimators)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `paper` to the commands of `python -m llr_fast`."""
    parser = commands.add_parser("paper", help="repeat an experiment of the paper", description=__doc__)
    experiments = parser.add_subparsers(title="experiments", required=True, metavar="EXPERIMENT")
    for experiment in EXPERIMENTS:
        experiment.add_command(experiments)
