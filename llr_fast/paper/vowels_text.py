"""The tables of the vowels experiment, the paper's numbers beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any, NamedTuple

from llr_fast.paper.sequences import Split, Variant
from llr_fast.paper.study import margin_of, table

PERCENTILES = ("P25", "P50", "P75", "P100")
UNIT = 1e-6  # of the margins in the tables
SELECTIONS = {"validation": "validation data", "test": "test data, as the paper"}

Rows = Mapping[Variant, Mapping[str, Mapping[str, Any]]]  # for each loss and each way to select an epoch


class Printed(NamedTuple):
    """The paper's numbers: accuracy in percent, percentiles of the margins in units of 1e-6."""

    accuracy: int
    l1: tuple[int, ...]
    l2: tuple[int, ...]


PAPER = {
    Variant(): Printed(98, (66, 177, 337, 1322), (23, 61, 113, 438)),
    Variant(2**-5, 2**4): Printed(98, (264, 562, 1107, 5227), (95, 207, 407, 1809)),
    Variant(2**-1, 2**2): Printed(97, (1284, 2898, 6086, 71235), (544, 1249, 2644, 22968)),
}


def text(rows: Rows, checks: Mapping[Variant, Mapping[str, Any]], data: Split, settings: Mapping[str, Any]) -> str:
    return "\n\n".join([_about(data, settings), _main(rows), _regions(rows), _RATIOS, _ratios(rows), _compared(checks)])


def name(variant: Variant) -> str:
    return f"ROLL, λ = {_power(variant.lam)}, C = {_power(variant.C)}" if variant.lam else "vanilla"


def _power(value: float) -> str:
    return f"2^{math.log2(value):g}"


def _about(data: Split, settings: Mapping[str, Any]) -> str:
    penalty = (
        "exact, as in the paper"
        if settings["estimator"] == "exact"
        else f"by {settings['samples']} random directions for each sequence (the paper: exact)"
    )
    return (
        f"Japanese Vowels, {len(data.test.x)} test sequences; margins in 1e-6 of the input, the paper's as printed "
        f"there. Trained on {len(data.train.x)} sequences, {len(data.validation.x)} held out for validation; the paper "
        "trains on all of them. The epoch is that of the lowest cross-entropy plus penalty, on the data named in the "
        "table; selection on test data, as in the paper, is there for comparison only.\n\n"
        f"What the paper does not state: {settings['epochs']} epochs; LeakyReLU slope {settings['slope']:g}; "
        f"scoRNN with rho = {settings['rho']:g} (the part of D that is -1), A initialised by angles from U(0, π/2), "
        "W trained at the common learning rate, h_0 = 0, other weights Glorot uniform, zero biases. "
        f"{settings['hidden']} hidden units; the penalty is {penalty}.\n\n"
        "Stability bounds (Figure 3) are drawn for channel 9 of the test sequences at P50 and P75 of vanilla's l2 "
        "margins, with the networks selected on validation data; bars end where the picture ends."
    )


def _main(rows: Rows) -> str:
    margins = (f"{norm} {level}" for norm in ("l1", "l2") for level in PERCENTILES)
    headers = ("loss", "epoch selected on", "epoch", "accuracy", *margins)
    lines: list[list[Any]] = []
    for variant, found in rows.items():
        printed = PAPER[variant]
        lines.append([name(variant), "paper", "", f"{printed.accuracy}%", *printed.l1, *printed.l2])
        for by, row in found.items():
            values = [margin_of(row, norm, level, UNIT) for norm in ("l1", "l2") for level in PERCENTILES]
            lines.append([name(variant), SELECTIONS[by], row["epoch"], f"{row['accuracy']:.1%}", *values])
    return table(headers, lines)


def _regions(rows: Rows) -> str:
    headers = ("loss", "epoch selected on", "#CLR lower", "#CLR upper", *(f"linf {p}" for p in PERCENTILES))
    lines = [
        [
            *(name(variant), SELECTIONS[by], row["regions"]["lower"], row["regions"]["upper"]),
            *(margin_of(row, "linf", level, UNIT) for level in PERCENTILES),
        ]
        for variant, found in rows.items()
        for by, row in found.items()
    ]
    return table(headers, lines)


_RATIOS = "How many times as large as vanilla's, percentile by percentile; the paper speaks of 4 and 20 times:"


def _ratios(rows: Rows) -> str:
    vanilla, *others = rows
    levels = PERCENTILES[:3]
    headers = ("loss", "margins", *(f"paper {p}" for p in levels), *(f"ours {p}" for p in levels), "test-selected P50")
    lines: list[list[Any]] = []
    for variant in others:
        for norm in ("l1", "l2"):
            theirs = [a / b for a, b in zip(getattr(PAPER[variant], norm), getattr(PAPER[vanilla], norm))][:3]
            ours = {
                by: [margin_of(row, norm, p, UNIT) / margin_of(rows[vanilla][by], norm, p, UNIT) for p in levels]
                for by, row in rows[variant].items()
            }
            lines.append([name(variant), norm, *theirs, *ours["validation"], ours["test"][1]])
    return table(headers, lines)


def _compared(checks: Mapping[Variant, Mapping[str, Any]]) -> str:
    """The sampled penalties, as multiples of the exact ones."""
    lines = []
    for variant, check in checks.items():
        ratios = [draw / check["exact"] for draw in check["draws"]]
        lines.append([name(variant), check["exact"], f"{fmean(ratios):.4f}", f"{stdev(ratios):.4f}"])
    draws = len(next(iter(checks.values()))["draws"])
    return f"The penalty of the test sequences by random directions, over the exact one; {draws} draws:\n\n" + table(
        ("loss", "exact penalty", "mean of sampled / exact", "standard deviation"), lines
    )
