"""The page of results shows the results."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(os.fspath(ROOT))  # for the package benches

from benches import reproduction  # noqa: E402
from llr_fast.paper import EXPERIMENTS  # noqa: E402

PAGE = reproduction.PAGE.read_text()


def test_tables_are_those_of_the_runs():
    assert reproduction.filled(PAGE) == PAGE


def test_every_experiment_is_there():
    names = {experiment.__name__.rsplit(".", 1)[1] for experiment in EXPERIMENTS}
    assert names == {block[2] for block in reproduction.BLOCK.finditer(PAGE)}
    assert names == set(re.findall(r"python -m llr_fast paper (\w+)", PAGE))
    assert names == {path.stem for path in reproduction.RESULTS.glob("*.json")}


def test_pictures_exist():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", PAGE)
    assert pictures and all((reproduction.PAGE.parent / picture).is_file() for picture in pictures)
