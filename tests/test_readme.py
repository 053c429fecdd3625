"""The README's examples run as pasted, in order, and its commands exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/losses.md"])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


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
