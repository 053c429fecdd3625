"""Which bounds an enclosure is made with."""

from __future__ import annotations

import torch

from llr_fast.certificates.frozen import Frozen
from llr_fast.certificates.rigorous import gradients
from llr_fast.certificates.rigorous.absolute import AbsoluteBounds
from llr_fast.certificates.rigorous.enclosure import Enclosure, enclose
from llr_fast.linearized.gram import Chain


def enclosed(
    frozen: Frozen,
    q: float,
    exact: bool,
    chain: Chain | None,
    failure_probability: float,
    generator: torch.Generator | None,
) -> Enclosure:
    """The margins of the batch whose evaluation noted what rounding does; without random directions if `exact`."""
    absolute = AbsoluteBounds(frozen)
    if not exact:
        norms = gradients.by_sketch(frozen, q, absolute, failure_probability, generator)
    elif chain is not None:
        norms = gradients.by_gram(chain, absolute)
    else:
        norms = gradients.over_axes(frozen, q, absolute)
    return enclose(frozen, absolute, norms, q)
