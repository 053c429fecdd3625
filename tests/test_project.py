"""What the files around the code say of it: versions, workflows, hooks."""

import re
from pathlib import Path

import pytest

import llr_fast

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_versions_agree():
    version = llr_fast.__version__
    released = re.search(r"^## \[(\d.*?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert released[1] == version and f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {released[2]}\n" in citation


def test_changelog_has_the_usual_groups():
    headings = re.findall(r"^###? (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    groups = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert all(heading in groups or heading.startswith("[") for heading in headings)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_that_exist(path):
    named = set(re.findall(r"\bmake ([\w-]+)", path.read_text()))
    assert named and named <= TARGETS
    assert {"check", "test"} <= named or path.name != "ci.yml"


def test_workflows_test_the_oldest_torch():
    oldest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    makefiles = re.search(r"^TORCH_VERSION \?= (.+)$", MAKEFILE, re.MULTILINE)[1]
    tested = re.findall(r'torch: "([\d.]+)"', (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert tested[:2] == [f"{oldest}.0", makefiles] and len(tested) == 3


def test_hooks_are_those_of_make_check():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    checks = [re.sub(r"\$\(if \$\(CSRC\),(.*) \$\(CSRC\)\)", r"\1", line).strip() for line in recipe.splitlines()]
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert [check.replace("$(BIN)/", "") for check in checks] == hooks


def test_classifiers_name_the_oldest_python():
    project = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)", project)
    assert f'requires-python = ">={pythons[0]}"' in project
