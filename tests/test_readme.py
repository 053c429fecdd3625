"""The examples of README and pages run as pasted, in order, and print what is shown; the README's commands exist."""

import contextlib
import importlib
import io
import re
from decimal import Decimal
from pathlib import Path

import pytest

from llr_fast.linearized.table import TABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


PAGES = ["README.md", *(f"docs/{name}.md" for name in ("tour", "training", "losses", "recipes", "rules"))]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch, rules_as_they_were):
    """A block of text shows what the block of Python before it prints; pictures that are drawn are shown."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL)
    assert blocks
    namespace, printed = {}, ""
    for language, block in blocks:
        if language == "text":
            assert_same_print(printed, block)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(block, page, "exec"), namespace)
        printed = stream.getvalue()
    assert {path.name for path in tmp_path.iterdir()} - {"model.pt"} == set(re.findall(r"\(images/(tour.*?)\)", text))


@pytest.fixture
def rules_as_they_were():
    """A page may add rules."""
    importlib.import_module("llr_fast.linearized.rules")  # fills the table
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


def assert_same_print(got, shown):
    """But for two units of the last digit of a number, as one sample of 500 is two of 0.1%."""
    assert NUMBER.split(got) == NUMBER.split(shown)
    for number, expected in zip(map(Decimal, NUMBER.findall(got)), map(Decimal, NUMBER.findall(shown))):
        assert abs(number - expected) <= 2 * Decimal(10) ** expected.as_tuple().exponent, (got, shown)


@pytest.mark.parametrize("name", ["recipes", "tour"])
def test_every_block_shows_what_it_prints(name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    languages = re.findall(r"^```(\w+)$", page, re.MULTILINE)
    titles = re.findall(r"^## (?!Where next)", page, re.MULTILINE)
    assert languages == ["python", "text"] * (len(titles) + (name == "recipes"))  # all of which begin with one start


def test_guidance_is_what_was_measured():
    table, _, run = (ROOT / "benches" / "results" / "guidance.md").read_text().partition("\n\n")
    assert table in (ROOT / "docs" / "training.md").read_text() and run.startswith("Run: python -m benches.guidance")


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for command in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", README) for word in command.split()}
    assert named and named <= targets


def test_operators_are_where_it_says():
    public = re.search(r"The fused operators are public.*?\n\n", README, re.DOTALL)[0]
    folders = {path.parent.name for path in (ROOT / "llr_fast" / "ops").glob("*/reference.py")}
    for name in folders:
        assert f"`{name}`" in public
        assert callable(getattr(importlib.import_module(f"llr_fast.ops.{name}"), name))
