"""The site of `make docs`: its menu has every page, and its reference every public name, each with a docstring."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import llr_fast
import llr_fast.plot

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MENU = re.search(r"^nav:\n(.*?)\n\n", (ROOT / "mkdocs.yml").read_text(), re.DOTALL | re.MULTILINE)[1]
ELSEWHERE = {"index.md", "contributing.md", "changelog.md"}  # README.md and others, by the hook
SHOWN = [
    name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


def public():
    """Names of functions and classes, each once; `llr_fast.ops` has one module for each operator."""
    names = [f"llr_fast.{name}" for name in llr_fast.__all__]
    names += [f"llr_fast.plot.{name}" for name in llr_fast.plot.__all__ if callable(getattr(llr_fast.plot, name))]
    for folder in (path.parent for path in (ROOT / "llr_fast" / "ops").glob("*/reference.py")):
        path = f"llr_fast.ops.{folder.name}"
        operators = inspect.getmembers(importlib.import_module(path), inspect.isfunction)
        names += [f"{path}.{name}" for name, found in operators if found.__module__ == path and name[0] != "_"]
    return names


def test_the_menu_has_every_page_once():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(re.findall(r"[\w/]+\.md", MENU)) == sorted(pages | ELSEWHERE)


def test_the_reference_has_every_public_name_once():
    assert sorted(SHOWN) == sorted(public())


@pytest.mark.parametrize("name", SHOWN)
def test_public_names_have_docstrings(name):
    """Of functions, of every parameter; of classes, of every public method."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(found):
        assert found.__doc__ and not found.__doc__.startswith(f"{attribute}(")  # as dataclasses do by themselves
        methods = inspect.getmembers(found, inspect.isfunction)
        own = {key: method for key, method in methods if key[0] != "_" and method.__module__.startswith("llr_fast")}
        assert all(method.__doc__ for key, method in own.items() if key != "extra_repr")
    else:
        documented = set(re.findall(r"\w+", found.__doc__))
        assert set(inspect.signature(found).parameters) <= documented
