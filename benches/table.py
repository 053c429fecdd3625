"""Writes the tables of the README's numbers from the results of the benches: python -m benches.table."""

from __future__ import annotations

import json
from pathlib import Path

from tabulate import tabulate
