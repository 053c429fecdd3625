"""Puts the tables of benches/results/paper into docs/reproduction.md: python -m benches.reproduction."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "reproduction.md", ROOT / "benches" / "results" / "paper"
BLOCK = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def filled(page: str) -> str:
    """The page with what the runs wrote between each pair of marks."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{(RESULTS / f'{block[2]}.md').read_text()}\n{block[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
