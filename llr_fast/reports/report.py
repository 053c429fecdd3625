"""A network's accuracy, margins and number of linear regions over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from tabulate import tabulate
from torch import Tensor, distributed, nn

from llr_fast import norms
from llr_fast.certificates.agreement import model_dtype, plain_output
from llr_fast.certificates.margin import margin
from llr_fast.certificates.strategy import METHODS, Method, Options
from llr_fast.checks import check_choice, check_count, check_finite, check_generator, check_range, described
from llr_fast.data import stream
from llr_fast.linearized.torch_modes import as_written
from llr_fast.outputs import Around, logits_of
from llr_fast.ranks import check_group, gathered
from llr_fast.regions.count import Counter, RegionCount
from llr_fast.regions.robustness import with_margins


@dataclass(frozen=True)
class Report:
    """What `evaluate` found; `print(report)` shows a table.

    Attributes:
        points: number of samples.
        accuracy: from 0 to 1; None where the batches have no labels.
        regions: bounds of the number of linear regions that the samples lie in.
        margins: p -> [points] float64 on the CPU, in the order of the data.
        exact: p -> whether no margin has a probability of failure (`margin`'s method "search" has).
        percentiles: those that the table shows.
        unit: of the margins and of eps.
        eps: the distance for which accuracy was certified; None where none was given.
        certified: p -> from 0 to 1, the part of the samples that are classified rightly, proven to stay so within
            `eps`; empty without eps.
    """

    points: int
    accuracy: float | None
    regions: RegionCount
    margins: dict[float, Tensor]
    exact: dict[float, bool]
    percentiles: tuple[float, ...]
    unit: str
    eps: float | None = None
    certified: dict[float, float] = field(default_factory=dict)

    def percentile(self, p: float) -> dict[float, float]:
        """Percentiles of the l_p margins; values of samples, not interpolated, because margins may be infinite."""
        values = self.margins[check_choice("p", p, tuple(self.margins))].numpy()
        levels = numpy.array(self.percentiles, dtype=numpy.float64) / 100
        found = numpy.quantile(values, levels, method="nearest")  # torch's has a limit of 2^24 values
        return dict(zip(self.percentiles, found.tolist()))

    def to_dict(self) -> dict[str, Any]:
        """The numbers with names, ready for JSON, but for infinite margins, which JSON has no word for."""
        return {
            "points": self.points,
            "accuracy": self.accuracy,
            "regions": {"lower": self.regions.lower, "upper": self.regions.upper},
            "margins": {
                f"l{p:g}": {"exact": self.exact[p], **{f"P{level:g}": v for level, v in self.percentile(p).items()}}
                for p in self.margins
            },
            "unit": self.unit,
            **({} if self.eps is None else {"eps": self.eps}),
            **({"certified": {f"l{p:g}": part for p, part in self.certified.items()}} if self.certified else {}),
        }

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown."""
        return self._table("github")

    def __str__(self) -> str:
        return self._table("simple")

    def _table(self, style: str) -> str:
        rows = [("points", str(self.points))]
        if self.accuracy is not None:
            rows.append(("accuracy", f"{self.accuracy:.1%}"))
        for p, part in self.certified.items():
            rows.append((f"certified accuracy, l{p:g}, eps {self.eps:g}", f"{part:.1%}"))
        rows.append(("linear regions, lower bound", str(self.regions.lower)))
        rows.append(("linear regions, upper bound", str(self.regions.upper)))
        for p in self.margins:
            rows += [(f"l{p:g} margin, P{level:g}", f"{v:#.3g}") for level, v in self.percentile(p).items()]
        headers = ("", f"margins in units of the {self.unit}")
        align = ("left", "right")
        return str(tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align))


@as_written
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    p: float | Sequence[float] = norms.NORMS,
    *,
    std: float | Sequence[float] | Tensor | None = None,
    eps: float | None = None,
    regions: int | None = 1,
    percentiles: Sequence[float] = (25, 50, 75, 100),
    method: Method = "auto",
    failure_probability: float = 1e-10,
    generator: torch.Generator | None = None,
    progress: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Report:
    """Measures accuracy, l_p margins and linear regions over a data set.

    Args:
        model: a piecewise-linear network in evaluation mode. Where the batches have labels, its output is logits
            [B, classes], or [B] or [B, 1] of one logit, or has them as its attribute or entry `logits`, or is a tuple
            that begins with them.
        loader: batches (x, y), or x alone, such as a DataLoader yields; read once, moved to the model's device. The
            labels y [B] are a tensor of integers below the number of classes; those of one logit are 0 or 1, in any
            dtype.
        p: 1, 2 or inf, or several of them.
        std: where the inputs were normalised as (v - mean) / std, the standard deviation: a number, one for each
            channel (axis 1 of x), or a tensor that broadcasts with a sample. Margins then refer to v: they are those
            of the network of v, min |z| / ||grad_x z / std||_q, exact also where channels differ.
        eps: also certify accuracy: the part of the samples that are classified rightly and stay so within the l_p
            distance eps, in the unit of the margins, by `robustness`. Batches need labels.
        regions: with eps, how many linear regions `robustness` may visit for each sample; None for as many as it takes
            to decide.
        percentiles: of the margins, from 0 to 100, to show.
        method, failure_probability, generator: as in `margin`.
        progress: whether long work shows a progress bar.
        group: processes that evaluate together, each with batches of its own, as from a DistributedSampler; each
            returns the report of all samples, ordered by rank. `torch.distributed.group.WORLD` for all processes.

    Raises:
        TypeError: a batch is no tensor and begins with none; labels are no tensor.
        ValueError: there is no batch, labels are no classes of the model, its output has no logits, or std is not
            positive or does not fit; and as `margin`.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
        >>> x, y = torch.tensor([[3.0, -1.0], [2.0, 0.5]]), torch.tensor([0, 1])
        >>> print(llr_fast.evaluate(model, [(x, y)], p=2, std=[10.0, 1.0], percentiles=[0, 100]))
                                       margins in units of the input before normalisation
        ---------------------------  ----------------------------------------------------
        points                                                                          2
        accuracy                                                                    50.0%
        linear regions, lower bound                                                     2
        linear regions, upper bound                                                     2
        l2 margin, P0                                                               0.500
        l2 margin, P100                                                              1.00
    """
    wanted = dict.fromkeys(check_choice("p", v, norms.NORMS) for v in (p if isinstance(p, (tuple, list)) else (p,)))
    if not isinstance(percentiles, Iterable):
        raise TypeError(f"percentiles: expected several numbers, got {described(percentiles)}")
    percentiles = tuple(check_range("percentiles", level, 0, 100) for level in percentiles)
    check_choice("method", method, METHODS)
    check_range("failure_probability", failure_probability, 1e-300, 0.5)
    check_generator(generator)
    check_group(group)
    limit = 0.0 if eps is None else check_range("eps", eps, 0)
    regions = None if regions is None else check_count("regions", regions)
    counter, correct, labelled = Counter(model), 0, 0
    found: dict[float, list[Tensor]] = {value: [] for value in wanted}
    exact, certified = dict.fromkeys(wanted, True), dict.fromkeys(wanted if eps is not None else (), 0)
    for index, (x, y) in enumerate(stream(model, loader, "evaluate", progress, "loader")):
        network, v, factor = (model, x, 1.0) if std is None else _before_normalisation(model, x, std)
        counter.add(x)  # first: it refuses layers in training mode, which the model itself would update
        if y is not None:
            correct, labelled = correct + _correct(model, x, y, index), labelled + len(y)
        elif eps is not None:
            raise ValueError(
                f"loader: expected labels, which certified accuracy (eps) needs, got none in batch {index}"
            )
        for value in wanted:
            options = Options(value, method, failure_probability, generator)
            if eps is None:
                part = margin(network, v, **vars(options))
            else:
                labels, until = y.long().to(x.device), limit / factor
                part, near = with_margins(network, v, options, labels, regions, until)
                certified[value] += int((near.lower * factor > limit).sum())
            found[value].append(part.value.cpu() * factor)
            exact[value] &= bool(part.exact.all())
    counter.merge(group)
    counted = counter.result()
    ranks = gathered((correct, labelled, found, exact, certified), group)
    correct, labelled = sum(rank[0] for rank in ranks), sum(rank[1] for rank in ranks)
    accuracy = correct / labelled if labelled else None
    margins = {value: torch.cat([part for rank in ranks for part in rank[2][value]]) for value in wanted}
    exact = {value: all(rank[3][value] for rank in ranks) for value in wanted}
    stays = {value: sum(rank[4][value] for rank in ranks) / labelled for value in certified}
    unit = "input" if std is None else "input before normalisation"
    return Report(counted.points, accuracy, counted, margins, exact, percentiles, unit, eps, stays)


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Any, index: int) -> int:
    """How many labels of a batch the model predicts."""
    if not isinstance(y, Tensor):
        raise TypeError(f"loader: expected labels in a torch.Tensor, got {described(y)} in batch {index}")
    logits = logits_of(plain_output(model, x))
    one_logit = logits.size(1) == 1
    predicted = (logits > 0).long().squeeze(1) if one_logit else logits.argmax(1)
    if predicted.shape != y.shape:
        raise ValueError(
            f"loader: expected labels of shape {tuple(predicted.shape)}, got {tuple(y.shape)} in batch {index}"
        )
    integers = not y.is_floating_point()
    high = 1 if one_logit else logits.size(1) - 1
    classes = ((y == 0) | (y == 1)) if one_logit else (y >= 0) & (y <= high)
    if not (integers or one_logit) or not classes.all():
        bad = "" if classes.all() else f" with {y[~classes][0].item()}"
        raise ValueError(f"loader: expected labels from 0 to {high}, integers, got {y.dtype}{bad} in batch {index}")
    return int((predicted == y.to(predicted.device)).sum())


class _Normalising(Around):
    """The model as a function of v - mean, for inputs x = (v - mean) / std."""

    std: Tensor

    def __init__(self, model: nn.Module, std: Tensor, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype
        self.register_buffer("std", std)

    def forward(self, v: Tensor) -> Any:
        return self.model((v / self.std).to(self.dtype))


def _before_normalisation(
    model: nn.Module, x: Tensor, std: float | Sequence[float] | Tensor
) -> tuple[nn.Module, Tensor, float]:
    """The network of v - mean, its input, and a factor of its margins."""
    try:
        if isinstance(std, bool):
            raise TypeError
        scale = torch.as_tensor(std, dtype=torch.float64, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"std: expected a number, several or a torch.Tensor, got {described(std)}") from None
    if scale.dim() == 1 and len(scale) == x.size(1):
        scale = scale.view(-1, *[1] * (x.dim() - 2))
    check_finite("std", scale)
    try:
        fits = scale.expand(x.shape[1:]).shape == x.shape[1:]
    except RuntimeError:
        fits = False
    if not fits or not (scale > 0).all():
        smallest = f" with a minimum of {scale.min().item():g}" if scale.numel() else ""
        raise ValueError(
            f"std: expected positive numbers, one, one for each of {x.size(1)} channels, or of the shape "
            f"{tuple(x.shape[1:])}, got shape {tuple(scale.shape)}{smallest}"
        )
    if (scale == scale.flatten()[0]).all():
        # Every margin is multiplied by it, and the model itself may have a faster way than through a division.
        return model, x, scale.flatten()[0].item()
    return _Normalising(model, scale, model_dtype(model, x.double())), x.double() * scale, 1.0
