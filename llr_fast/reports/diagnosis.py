"""What the library makes of a model: every function that is applied to what depends on x, and what is refused."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from llr_fast.certificates import evaluation
from llr_fast.certificates.agreement import model_dtype
from llr_fast.checks import check_finite, check_input, check_model
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.evaluation import Evaluation, Settings
from llr_fast.linearized.layers import Activation
from llr_fast.linearized.linearization import Linearization, NoLinearization
from llr_fast.linearized.table import TABLE, function_name
from llr_fast.linearized.tensor import LinearizedTensor
from llr_fast.linearized.torch_modes import as_written
from llr_fast.outputs import reals_of
from llr_fast.process import uncompiled
from llr_fast.regions.observed import Observed

Kind = Literal["affine", "piecewise linear", "refused"]
_DIRECTIONS = 16  # along which gradients are compared
_TOLERANCE = 1e-3  # relative; float32 alone makes 1e-5 of deep networks


@dataclass(frozen=True)
class Call:
    """A function that a module applies to something that depends on x.

    Attributes:
        module: its path in the model; the model's class name for the model itself.
        function: the function's name.
        kind: how it is handled.
        kinks: of a piecewise-linear function; of a max-pooling (0,), where the lead of the winner ends.
        neurons: that each of its calls has, of all samples.
        why: of a refused function the reason.
        times: how often it was called so.
    """

    module: str
    function: str
    kind: Kind
    kinks: tuple[float, ...] = ()
    neurons: int = 0
    why: str = ""
    times: int = 1


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `print(diagnosis)` shows a table.

    Attributes:
        calls: in the order in which they came first.
        problem: what else is wrong with the model as a whole, such as random numbers or layers in training mode; or "".
        value_error, gradient_error: the largest differences to the plain model's output and, along random directions,
            to its gradients by autograd, as part of the largest number; NaN where the model is refused.
    """

    calls: list[Call]
    problem: str
    value_error: float
    gradient_error: float

    @property
    def refused(self) -> list[Call]:
        """Those functions that margins and losses refuse."""
        return [call for call in self.calls if call.kind == "refused"]

    @property
    def supported(self) -> bool:
        """Whether margins and losses take the model, and find what plain autograd finds."""
        return not self.refused and not self.problem and max(self.value_error, self.gradient_error) <= _TOLERANCE

    def __str__(self) -> str:
        rows = [(c.module, c.function, c.times, _handled(c)) for c in self.calls]
        align = ("left", "left", "right", "left")
        table = tabulate(rows, ("module", "function", "calls", "handled as"), colalign=align, disable_numparse=True)
        lines = ["supported" if self.supported else f"not supported: {len(self.refused)} kinds of calls are refused"]
        if self.problem:
            lines.append(f"the model as a whole: {self.problem}")
        if not math.isnan(self.value_error):
            lines.append(
                f"difference to plain autograd: values {self.value_error:.0e}, gradients {self.gradient_error:.0e}"
            )
        return "\n".join([table, "", *lines])


def _handled(call: Call) -> str:
    if call.kind == "refused":
        return f"REFUSED: {call.why}"
    kinks = ", ".join(f"{kink:g}" for kink in call.kinks)
    return f"{call.kind}, {call.neurons} neurons, kinks at {kinks}" if call.kinks else call.kind


@as_written
def diagnose(model: nn.Module, x: Tensor) -> Diagnosis:
    """Shows at once what of a model is supported, what is refused, and where.

    The model, a copy of it, runs as it is, to its end, whatever is refused on the way: each function is tried by
    itself, on the values that the plain model has there. A model that is not refused is then evaluated as for a
    margin, and the values and gradients at its first sample are compared with those of plain autograd.

    Args:
        model: any network of x.
        x: [B, ...], finite; a few samples suffice. With two or more it shows where samples mix.

    Raises:
        TypeError, ValueError: the model or x is none; whatever the plain model raises.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GELU(), torch.nn.ReLU(), torch.nn.Sigmoid())
        >>> diagnosis = llr_fast.diagnose(model, torch.ones(1, 2))
        >>> [(call.module, call.function, call.kind) for call in diagnosis.calls]  # doctest: +NORMALIZE_WHITESPACE
        [('0', 'linear', 'affine'), ('1', 'gelu', 'refused'), ('2', 'relu', 'piecewise linear'),
         ('3', 'sigmoid', 'refused')]
        >>> diagnosis.supported, llr_fast.diagnose(model[0], torch.ones(1, 2)).supported
        (False, True)
    """
    check_model(model)
    check_input(model, x)
    check_finite("x", x)
    watching = _Watching(copy.deepcopy(model), len(x))
    with uncompiled, torch.no_grad():
        watching.run(x.detach().to(model_dtype(model, x)))
    calls = [replace(call, times=times) for call, times in watching.calls.items()]
    errors, problem = (math.nan, math.nan), ""
    if not any(call.kind == "refused" for call in calls):
        try:
            evaluation.check(model, x, torch.float64)
            evaluation.values_of(model, x, torch.float64)
            errors = _errors(model, x[:1].detach())
        except ValueError as error:
            problem = str(error)
    return Diagnosis(calls, problem, *errors)


def _errors(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Of the values and the derivatives along random directions at one sample."""
    observed, point = Observed(model), x.double()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(_DIRECTIONS, *x.shape, generator=generator, dtype=torch.float64).to(x.device)
    evaluation.layers_of(observed, point, Directions(directions), torch.float64, compared=False)
    found, of_value = observed.derivatives(point, _DIRECTIONS)
    with uncompiled, torch.inference_mode(False), torch.enable_grad():
        point = x.to(model_dtype(model, x), copy=True).requires_grad_()
        outputs = [output.flatten() for output in reals_of(model(point.clone()))]
        value = torch.cat([point.new_zeros(0), *outputs])
        weights = torch.randn(value.shape, generator=generator).to(value)
        total = (weights * value).sum()
        gradient = torch.zeros_like(point)
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, point, materialize_grads=True)
    plain = directions.flatten(1) @ gradient.flatten().double()
    return _difference(of_value, value.detach()), _difference(weights.double() @ found, plain)


def _difference(found: Tensor, plain: Tensor) -> float:
    largest = plain.abs().max().item() if plain.numel() else 0.0
    difference = (found - plain.double()).abs().max().item() if plain.numel() else 0.0
    return difference / largest if largest else difference


class _Watched(Tensor):
    """A plain tensor that depends on x; each function of it is tried on linearized tensors, then done."""

    watching: _Watching
    samples: Samples

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Watched))
        found = TABLE.get(func)
        if found is not None and found.query:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        samples = first.watching.tried(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: first.watching.watched(t, samples), result)


class _Watching:
    """Runs a model, and notes how each function in it would be handled."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        self._model, self._batch = model, batch
        self.calls: Counter[Call] = Counter()
        self._neurons: list[tuple[tuple[float, ...], int]] = []

    def run(self, x: Tensor) -> None:
        self._model(self.watched(x.clone(), Samples(self._batch)))

    def watched(self, tensor: Tensor, samples: Samples | None) -> Tensor:
        """The tensor with its axis of samples; behind a refused function the first one, if that is as long.

        Where it is not the samples are mixed for good, and what is done to the tensor alone cannot be judged.
        """
        if samples is None and not isinstance(tensor, _Watched):
            whole = self._batch == 1 or (tensor.dim() and tensor.size(0) == self._batch)
            samples = Samples(self._batch) if whole else None
        if samples is None:
            return tensor
        watched = tensor if isinstance(tensor, _Watched) else tensor.as_subclass(_Watched)
        watched.watching, watched.samples = self, samples
        return watched

    def tried(self, function: Any, args: Any, kwargs: Any) -> Samples | None:
        """Notes how the function is handled; the axis of samples of its result, if it is known."""
        settings = Settings(certificate=True)
        tried: Evaluation[None] = Evaluation(self._model, self._collect, settings)
        self._neurons.clear()
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map_only(_Watched, lambda t: self._linearized(t, tried), (args, kwargs))
        module, name = tried.module.path(), function_name(function)
        try:
            result = LinearizedTensor.__torch_function__(function, (), args, kwargs)
        except (ValueError, TypeError) as error:
            self.calls[Call(module, name, "refused", why=_reason(error, module, name))] += 1
            return None
        kinks = self._neurons[0][0] if self._neurons else ()
        neurons = sum(count for _, count in self._neurons)
        kind: Kind = "piecewise linear" if self._neurons else "affine"
        self.calls[Call(module, name, kind, kinks, neurons)] += 1
        leaf = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, LinearizedTensor)), None)
        return None if leaf is None else leaf.samples

    def _linearized(self, tensor: _Watched, tried: Evaluation[None]) -> LinearizedTensor:
        return LinearizedTensor(tensor.as_subclass(Tensor).clone(), NoLinearization(), tensor.samples, tried)

    def _collect(self, activation: Activation, linearization: Linearization) -> tuple[Linearization, None]:
        self._neurons.append((activation.kinks, activation.z.numel()))
        return linearization.activated(activation.slope), None


def _reason(error: Exception, module: str, name: str) -> str:
    """What the error says beside function and module, which stand in the same row."""
    text = str(error)
    known = (f"{name} in module {module!r}: ", f"{name} in module {module!r} ", f" (in module {module!r})")
    for part in (*known, ", and it is applied to a tensor that depends on the network's input"):
        text = text.replace(part, "")
    return text
