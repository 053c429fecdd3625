"""Where rounding enters a frozen network: the results that take in the errors of the operations before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.local import SLACK
from llr_fast.linearized.operations import Pointwise, Scaled
from llr_fast.linearized.tape import Entry, Tape


@dataclass(frozen=True)
class Site:
    """A result on the tape.

    Attributes:
        error: a bound of the error of each entry of its value, [B, ...]: that of its operation, and of those before it
            whose results serve it alone and entry by entry, times |their coefficients|.
        terms: roundings that a product passes through in all of them, at most.
        samples: where the samples lie in the value.
    """

    error: Tensor
    terms: int
    samples: Samples

    @property
    def errors(self) -> Tensor:
        """[B, n]"""
        return self.samples.rows(self.error)


def sites_of(tape: Tape) -> dict[int, Site]:
    """By number, in the order of the tape; the values of all neurons depend on rounding through these alone."""
    entries = tape.up_to_last_activation()
    users: dict[int, list[Entry]] = {}
    for entry in entries:
        for number in entry.operands:
            users.setdefault(number, []).append(entry)
    handed_on: dict[int, Site] = {}
    sites: dict[int, Site] = {}
    for entry in entries:
        number = entry.results[0]
        site = _joined(entry, [handed_on.pop(operand, None) for operand in entry.operands])
        if site is not None and _serves_entry_by_entry(site, users.get(number, [])):
            handed_on[number] = site
        elif site is not None and number in users:
            sites[number] = site
    return sites


def _joined(entry: Entry, before: list[Site | None]) -> Site | None:
    """The entry's result, with what is handed on to it."""
    local, handed_on = entry.local, [site for site in before if site is not None]
    if local.samples is None or (local.error is None and not handed_on):
        return None
    error = local.error
    if handed_on:
        nothing = torch.zeros(
            [1] * (handed_on[0].error.dim() + 1), dtype=torch.float64, device=handed_on[0].error.device
        )
        operands = [Directions(nothing if site is None else site.error.unsqueeze(0)) for site in before]
        with entry.entered():
            error = entry.operation.absolute(*operands).tangents[0] + (0.0 if error is None else error)
    terms = local.terms + max((site.terms for site in handed_on), default=0)
    return None if error is None else Site(error * SLACK, terms, local.samples)


def _serves_entry_by_entry(site: Site, users: Sequence[Entry]) -> bool:
    """Whether one operation alone takes the result, and makes of each entry one of its own."""
    if len(users) != 1:
        return False
    operation = users[0].operation
    if isinstance(operation, Scaled):
        return True
    return isinstance(operation, Pointwise) and site.error.numel() == math.prod(operation.shape)
