"""docs/claims.md names a test or result for each claim of the pages: all of them exist, and no line is left out."""

import argparse
import ast
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.certificates import search, strategy
from llr_fast.certificates.bounds import DIRECTIONS
from llr_fast.paper import EXPERIMENTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# The pages that claim something, each a section of its title.
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("models", "training", "losses", "benchmarks", "gpu", "gallery", "method", "limits", "reproduction")
}
# Those whose tables are results, which are compared with the files that they come from.
MEASURED = ("Numbers", "Training with ROLL", "Benchmarks", "On a GPU", "The paper's experiments")
CLAIMS = (ROOT / "docs" / "claims.md").read_text()


def sections(page):
    """Heading, without hashes -> text up to the next one; of code blocks, where hashes are comments, nothing."""
    parts = re.split(r"^#{1,2} (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rows(text):
    """The cells of the tables' rows, without those of their heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = [set("".join(cells)) <= {"-"} and any(cells) for cells in lines]
    return [cells for cells, rule, below in zip(lines, rules, [*rules[1:], False]) if not rule and not below]


def names(cell):
    """The names before brackets in backticks; else the cell itself."""
    return [name.split("(")[0] for name in re.findall(r"`(.+?)`", cell)][:1] or [cell]


NAMED = [(claim, backing) for text in sections(CLAIMS).values() for claim, backing in rows(text)]


@pytest.mark.parametrize("claim, backing", NAMED)
def test_what_backs_a_claim_exists(claim, backing):
    found = re.findall(r"`((?:tests|benches)/[^`]+)`", backing)
    assert found
    for path, _, function in (name.partition("::") for name in found):
        assert (ROOT / path).is_file()
        assert path.startswith("benches") or function in functions(ROOT / path)


def functions(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_section_and_every_line_of_a_table_has_claims():
    claims = sections(CLAIMS)
    pages = sections(README) | {page.partition("\n")[0].removeprefix("# "): page for page in PAGES.values()}
    assert list(pages) == [heading for heading in claims if heading != "What stands behind these pages"]
    for heading, text in pages.items():
        there = rows(claims[heading])
        assert there
        if heading not in MEASURED:
            assert {names(row[0])[0] for row in rows(text)} <= {names(row[0])[0] for row in there}


def test_limits_are_all_there():
    """A bullet may hold several claims."""
    assert len(rows(sections(CLAIMS)["Limits"])) >= len(re.findall(r"^- ", PAGES["limits"], re.MULTILINE))


def test_readme_shows_the_demo():
    table, _, run = (ROOT / "benches" / "results" / "demo.md").read_text().partition("\n\n")
    assert table in README and run.startswith("Run: python -m llr_fast demo, seed 0")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    """Pictures, pages and sections of pages."""
    text = re.sub(r"```.*?```|`.*?`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!http)(.+?)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in {
            re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings(target)
        }


def headings(page):
    return re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)


def test_headlines():
    """Of the README's first screen: numbers of the demo and of the benches."""
    first = sections(README)["llr_fast"]
    table = {row[0]: row[1:] for row in rows((ROOT / "benches" / "results" / "demo.md").read_text())}
    assert "from {} to {}".format(*table["l2 margin, P50"]) in " ".join(first.split())
    assert "from {} to {}".format(*table["certified accuracy, l2 0.02"]) in " ".join(first.split())
    benches = " ".join(PAGES["benchmarks"].split())
    step, passes = re.search(r"takes (\S+) plain steps", first)[1], re.search(r"takes (\d+) forward passes", first)[1]
    assert re.search(rf"ResNet-18, D = 150,528, batch 8 \| {step} ", benches)
    graph = next(row for row in rows(PAGES["gpu"]) if row[0].endswith("batch 8, compiled, reduce-overhead"))
    assert re.search(r"compiled (\S+) on an H200", first)[1] == f"{float(graph[-1]):.1f}"
    assert re.search(rf"ResNet-18, D = 150,528, batch 1 \| \| {passes} ", benches)
    assert int(re.search(r"takes ([\d,]+)\. Every", " ".join(first.split()))[1].replace(",", "")) == 3 * 224 * 224 + 1


def test_the_package_asks_for_what_the_readme_says():
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r"PyTorch \((\S+) or later\)", README)[1]
    assert f'"torch>={version}"' in project
    extras = re.findall(r'pip install\s"\.\[(\w+)\]"', README + PAGES["gallery"])
    assert extras and all(re.search(rf"^{extra} = ", project, re.MULTILINE) for extra in extras)


def test_numbers_of_directions():
    low, high = re.search(r"(\d+) to (\d+) random directions", PAGES["method"]).groups()
    assert (int(low), int(high)) == (min(DIRECTIONS.values()), max(DIRECTIONS.values()))


def test_when_more_directions_are_drawn():
    found = re.search(r"more than (\d+) neurons of a sample are left after the first (\d+), four", PAGES["method"])
    assert (int(found[1]), int(found[2]), 4) == (search.LEFT, search.MANY, strategy._SHARPER)


def test_the_plain_step_grows_more_with_the_input():
    records = json.loads((ROOT / "benches" / "results" / "cpu.json").read_text())["benchmarks"]
    growth = [r["extra_info"] for r in records if r["extra_info"]["table"] == "growth"]
    inputs = {r["input"]: r["seconds"] for r in growth if r["axis"] == "input"}
    ratios = [inputs[size]["llr_fast"] / inputs[size]["cross_entropy"] for size in sorted(inputs)]
    assert len(ratios) == 5 and ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_and_norms_are_of_float64(dtype):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(dtype), torch.randn(2, 3, dtype=dtype)
    for values in (torch.float32, torch.float64):
        found = llr_fast.margin(model, x, dtype=values)
        assert (found.value.dtype, found.gradient.dtype) == (values, torch.float64)
    (layer,) = llr_fast.gradient_norms(model, x)
    assert (layer.norm.dtype, layer.distance.dtype) == (torch.float64, torch.float64)


def test_experiments_take_what_the_readme_says():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for experiment in EXPERIMENTS:
        experiment.add_command(commands)
    listed = re.search(
        r"python -m llr_fast paper \{(.+?)\} --data DIR --out DIR`, `toy` without `--data`", PAGES["reproduction"]
    )[1]
    assert list(commands.choices) == listed.split(",")
    options = {name: command.format_usage() for name, command in commands.choices.items()}
    assert all("--out" in usage and ("--data" in usage) == (name != "toy") for name, usage in options.items())


RESULTS = ROOT / "benches" / "results" / "paper"


def test_what_the_page_says_of_mnist():
    """Accuracies and numbers of regions follow those of the paper, row by row."""
    found = rows((RESULTS / "mnist.md").read_text())
    deviations = [int(row[-1].rstrip("%")) for row in found if len(row) == 7 and row[-1].endswith("%")]
    assert (min(deviations), max(deviations)) == (-12, 7)
    networks = [row for row in found if len(row) == 8 and row[0] != "loss"]
    paper = {row[0]: row for row in networks if row[1] == "paper"}
    for row in networks:
        accuracy, said = (float(r[3].rstrip("%")) for r in (row, paper[row[0]]))
        assert abs(accuracy - said) <= 1
        assert all(math.isclose(int(row[i]), int(paper[row[0]][i]), rel_tol=0.04) for i in (4, 5))


def test_what_the_page_says_of_vowels():
    text = (RESULTS / "vowels.md").read_text()
    ratios = {(row[0], row[1]): [float(cell) for cell in row[2:8]] for row in rows(text) if row[1] in ("l1", "l2")}
    grown = {key: [ours >= paper for paper, ours in zip(row[:3], row[3:])] for key, row in ratios.items()}
    (weak, first), (_, second), (strong, third), (_, fourth) = grown
    assert (first, second, third, fourth) == ("l1", "l2", "l1", "l2")
    assert grown.pop((strong, "l1")) == [False, True, True] and ratios[strong, "l1"][::3] == [19.5, 18.4]
    assert all(all(row) for row in grown.values())
    assert [round(ratios[key, "l2"][4]) for key in (weak, strong)] == [7, 25]
    train, held = re.search(r"Trained on (\d+) sequences, (\d+) held out", text).groups()
    assert (int(train) + int(held)) == 6 * int(held)


def test_what_the_page_says_of_distortion():
    results = json.loads((RESULTS / "distortion.json").read_text())["results"]
    medians = {
        (name, measure): sorted(network[measure][1] for network in networks)
        for (name, networks), measure in itertools.product(results.items(), ("expected", "maximal"))
    }
    for measure, vanilla, roll in [("expected", (13, 34), (0, 3e-6, 0.13)), ("maximal", (21, 37), (0, 3e-6, 3.0))]:
        smallest, _, largest = medians["vanilla", measure]
        assert (round(smallest), round(largest)) == vanilla
        assert all(math.isclose(got, said, rel_tol=0.15) for got, said in zip(medians["ROLL", measure], roll))
    for network in itertools.chain(*results.values()):  # the genetic search finds no more than uniform samples
        assert all(found <= uniform for found, uniform in zip(network["maximal"], network["baseline"]))
