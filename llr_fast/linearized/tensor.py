"""One evaluation of a network on a tensor that carries its own linearization."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import swap_tensors
from torch.utils._pytree import tree_leaves, tree_map_only

from llr_fast.linearized.batch_axis import MixedSamplesError, Samples
from llr_fast.process import uncompiled


class NotPiecewiseLinearError(ValueError):
    """The model applies a function that is not piecewise linear, or that has no rule, to a tensor that depends on x."""


class Linearization(Protocol):
    """What is known of the derivative of a tensor with respect to the network's input."""

    @property
    def keeps(self) -> bool: ...  # whether constants are kept for later, and so have to be copies
    @property
    def dtype(self) -> torch.dtype: ...
    def pointwise(self, function: Callable[..., Tensor], shape: Sequence[int], *others: Any) -> Any: ...
    def batched(self, function: Callable[[Tensor], Tensor]) -> Any: ...
    def convolved(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Any: ...
    def scaled(self, factor: Tensor, shape: Sequence[int]) -> Any: ...
    def linear(self, weight: Tensor) -> Any: ...
    def reshaped(self, shape: Sequence[int]) -> Any: ...
    def mapped(self, function: Callable[..., Any], *others: Any) -> Any: ...
    def activate(self, slope: Tensor, statistic: str | None) -> tuple[Any, Tensor]: ...


def identity(t: Tensor) -> Tensor:
    """The linear part of a function that only adds constants."""
    return t


@dataclass
class Layer:
    """The neurons of one call of a piecewise-linear function; `B` samples of `n` neurons each."""

    name: str
    z: Tensor  # [B, n]
    kinks: tuple[float, ...]
    piece: Tensor  # [B, n], integers, or bool where there are two; empty in training, which does not need it
    statistic: Tensor  # [B, n], of the gradients dz/dx; where none was asked for, the tangents [K, B, n]
    samples: Samples  # where the B samples lie in what the network computed

    @property
    def offset(self) -> Tensor:
        """z minus the nearest kink, [B, n]."""
        return offset(self.z, self.kinks)

    @property
    def distance(self) -> Tensor:
        """Distance of z to the nearest kink, [B, n]."""
        return self.offset.abs()


def offset(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """z minus the nearest of its kinks; the lower one where two are equally near."""
    if kinks == (0.0,):
        return z
    with torch.no_grad():
        nearest = torch.full_like(z, kinks[0])
        for kink in kinks[1:]:
            nearest = torch.where((z - kink).abs() < (z - nearest).abs(), kink, nearest)
    return z - nearest


@dataclass
class Evaluation:
    """Settings and findings of one evaluation of `model`.

    A certificate refuses layers in training mode and cuts parameters out of the graph. Values may have a precision of
    their own; to the model they keep the dtype `declared`, so that it makes its own constants as ever.
    Once `finished`, what checkpointed parts of the model compute again in the backward pass is not collected and leaves
    running statistics alone. `rounding` changes the linearization of every result that may be rounded.
    """

    model: nn.Module
    statistic: str | None = None
    certificate: bool = False
    declared: torch.dtype | None = None
    rounding: Callable[[Tensor, Any], Any] | None = None
    finished: bool = False
    checkpointed: bool = False
    layers: list[Any] = field(default_factory=list)
    _watched: list[tuple[Tensor, int]] = field(default_factory=list)
    _made: list[weakref.ref[LinearizedTensor]] = field(default_factory=list)
    _paths: dict[int, str] | None = None
    _backward: int = -1  # the backward pass behind which this evaluation will be finished again

    def constant(self, tensor: Any, like: torch.dtype) -> Any:
        """A parameter, buffer or other tensor that does not depend on x, ready to meet values of dtype `like`."""
        if not isinstance(tensor, Tensor) or isinstance(tensor, LinearizedTensor) or not tensor.is_floating_point():
            return tensor
        tensor = tensor.detach() if self.certificate else tensor
        return tensor if self.declared is None else tensor.to(like)

    @property
    def trains(self) -> bool:
        """Whether autograd keeps what functions take, for a backward pass."""
        return not self.certificate and torch.is_grad_enabled()

    def owned(self, argument: Any) -> Any:
        """An argument of a torch function as it is now: the network may change its lists, arrays and tensors later.

        Trained leaves stay what they are, so that gradients reach them; `check_watched` finds those that were changed.
        """
        if isinstance(argument, LinearizedTensor):
            return argument
        if isinstance(argument, Tensor):
            if self.certificate:
                return argument.detach().clone()
            if argument.requires_grad and argument.is_leaf:
                if not self.finished:
                    self._watched.append((argument, argument._version))
                return argument
            return argument.clone()
        if isinstance(argument, (list, tuple)):
            parts = map(self.owned, argument)
            return type(argument)(*parts) if hasattr(argument, "_fields") else type(argument)(parts)
        if isinstance(argument, dict):
            return {name: self.owned(part) for name, part in argument.items()}
        return argument.copy() if isinstance(argument, np.ndarray) else argument

    def note(self, tensor: LinearizedTensor) -> None:
        """Remembers a tensor of this evaluation, as long as somebody else holds it."""
        self._made.append(weakref.ref(tensor))
        if not self.certificate:  # checkpoints set hooks
            self.checkpointed |= torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        if self.finished and self._backward != torch._C._current_graph_task_id():
            self._backward = torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)

    def check_watched(self) -> None:
        for tensor, version in self._watched:
            if tensor._version != version:
                names = (name for name, parameter in self.model.named_parameters() if parameter is tensor)
                raise ValueError(
                    f"model: expected parameters that stay the same while it runs, got {next(names, 'one')!r} "
                    "changed in place after it was used; use a clone() of it"
                )

    def finish(self) -> None:
        """Turns what the model still holds of the evaluation into plain tensors, in the dtype that the model saw.

        Where parts of the model are checkpointed, their backward passes need what they took in as it is: there only
        what modules hold is replaced, and again what they then hold behind such a backward pass.
        """
        self.finished = True
        self._watched.clear()
        kept = [tensor for reference in self._made if (tensor := reference()) is not None]
        self._made.clear()
        if self.checkpointed or not all([_replaced(tensor) for tensor in kept]):
            for attributes in map(vars, self.model.modules()):
                for name, held in attributes.items():
                    if any(isinstance(leaf, LinearizedTensor) for leaf in tree_leaves(held)):
                        attributes[name] = tree_map_only(LinearizedTensor, LinearizedTensor.plain, held)

    def grad_mode(self) -> Any:
        return torch.no_grad() if self.certificate else contextlib.nullcontext()

    def report(
        self, function: str, x: LinearizedTensor, kinks: tuple[float, ...], piece: Tensor, slope: Tensor
    ) -> Linearization:
        """Collects the neurons `x`; returns their linearization multiplied by `slope`."""
        if not x.value.numel():
            return x.linearization
        linearization, measured = x.linearization.activate(slope, self.statistic)
        layer = self.collect(function, x, kinks, piece, measured)
        if not self.finished:
            self.layers.append(layer)
        return linearization

    def collect(
        self, function: str, x: LinearizedTensor, kinks: tuple[float, ...], piece: Tensor, measured: Tensor
    ) -> Any:
        """What to keep of the neurons `x`, whose linearization has the statistic `measured`."""
        rows = x.samples.rows
        measured = rows(measured, lead=measured.dim() - x.value.dim())
        piece = rows(piece) if self.certificate else piece
        return Layer(self._name(function), rows(x.value), kinks, piece, measured, x.samples)

    def module_path(self) -> str:
        """Path in the model of the module whose forward is running; the model's class name for the model itself."""
        module = self.running_module()
        return (self._paths or {}).get(id(module)) or type(module).__name__

    def running_module(self) -> nn.Module:
        """The module of the model whose forward is running."""
        if self._paths is None:
            self._paths = {id(module): path for path, module in self.model.named_modules()}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(owner, nn.Module) and id(owner) in self._paths:
                return owner
            frame = frame.f_back
        return self.model

    def _name(self, function: str) -> str:
        if not self.certificate:
            return function
        name = f"{self.module_path()}:{function}"
        repeats = sum(layer.name.split("#")[0] == name for layer in self.layers)
        return f"{name}#{repeats + 1}" if repeats else name


@functools.cache
def _rules() -> ModuleType:
    from llr_fast.linearized import rules  # here: they are written in terms of the class below

    return rules


class LinearizedTensor(Tensor):
    """A tensor that depends on the network's input: its value and its linearization.

    Functions of it are looked up in `llr_fast.linearized.rules`; those without a rule raise NotPiecewiseLinearError.
    """

    value: Tensor
    linearization: Any
    samples: Samples
    evaluation: Evaluation
    _versions: list[int]  # shared by all views of one memory: [number of in-place changes so far]
    _seen: int

    @staticmethod
    def __new__(
        cls, value: Tensor, linearization: Any, samples: Samples, evaluation: Evaluation, views: Sequence[Any] = ()
    ) -> LinearizedTensor:
        dtype = evaluation.declared or value.dtype
        # In training it requires gradients, so that the result of a custom autograd function that takes it
        # has a `grad_fn`.
        options: dict[str, Any] = {"dtype": dtype, "device": value.device, "requires_grad": evaluation.trains}
        self = Tensor._make_wrapper_subclass(cls, value.shape, **options)
        self.value, self.linearization = value, linearization
        self.samples, self.evaluation = samples, evaluation
        storage = value.untyped_storage().data_ptr()
        bases = [view for view in views if view.value.untyped_storage().data_ptr() == storage]
        self._versions = bases[0]._versions if bases else [0]
        self._seen = self._versions[0]
        evaluation.note(self)
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _rules().apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any) -> Any:  # type: ignore[override]
        """Reached only where torch functions are switched off; torch's stub has no class for `self` here."""
        if func is torch.ops.aten.detach.default:  # a checkpoint keeps its inputs
            args[0].evaluation.checkpointed = True
            return args[0].replaced(args[0].value, args[0].linearization)
        raise NotPiecewiseLinearError(f"{func} was applied to a tensor that depends on the network's input")

    def replaced(
        self, value: Tensor, linearization: Any, samples: Samples | None = None, exact: bool = False
    ) -> LinearizedTensor:
        """The result of a function of this tensor; `exact` of one that rounds nothing."""
        samples = self.samples if samples is None else samples
        rounding = self.evaluation.rounding
        if rounding is not None and not exact and not _share_memory(value, self.value):
            linearization = rounding(value, linearization)
        return LinearizedTensor(value, linearization, samples, self.evaluation, views=(self,))

    def become(self, other: LinearizedTensor) -> LinearizedTensor:
        """Takes over `other` in place; views of the old memory raise when they are used again."""
        self.value, self.linearization, self.samples = other.value, other.linearization, other.samples
        self._versions[0] += 1
        self._seen = self._versions[0]
        return self

    def check_no_function(self) -> None:
        """Raises where a torch.autograd.Function made this tensor: its backward knows nothing of linearizations."""
        with torch._C.DisableTorchFunctionSubclass():
            made_by = self.grad_fn
        if made_by is not None:
            raise NotPiecewiseLinearError(
                f"{type(made_by).__name__} in module {self.evaluation.module_path()!r} is a custom autograd function, "
                "whose backward does not know the penalty; checkpoints need use_reentrant=False"
            )

    def stand_in(self) -> Tensor:
        """A plain tensor without numbers that looks to the model like this one: in shape, device and dtype."""
        dtype = self.evaluation.declared or self.value.dtype
        return self.value.new_empty(1, dtype=dtype).expand(self.value.shape)

    def plain(self) -> Tensor:
        """The value as a tensor of its own, in the dtype that the model saw."""
        value = self.value.view_as(self.value)
        return value.to(self.evaluation.declared) if self.evaluation.declared else value

    def check_current(self, function: str, evaluation: Evaluation) -> None:
        """Raises where this tensor is of another evaluation or was changed through another view.

        One that is over goes on only in backward passes, where checkpoints compute it again.
        """
        over = self.evaluation.finished and torch._C._current_graph_task_id() == -1
        if over or self.evaluation is not evaluation:
            raise NotPiecewiseLinearError(
                f"{function} in module {self.evaluation.module_path()!r} reads a tensor that was kept from an earlier "
                "evaluation of the network; keep a detach()ed copy of its numbers instead"
            )
        self.check_no_function()
        if self._seen != self._versions[0]:
            raise NotPiecewiseLinearError(
                f"{function} in module {self.evaluation.module_path()!r} reads a tensor that was changed in place "
                "through another view of its memory; make the change out of place, or clone() first"
            )


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _replaced(tensor: LinearizedTensor) -> bool:
    """Makes a plain tensor of it, wherever it is held; False where autograd, a transform or a weak reference has it."""
    with torch._C.DisableTorchFunctionSubclass():
        holders: int = tensor._use_count()  # type: ignore[attr-defined]
        if holders > 1 or weakref.getweakrefs(tensor):
            return False
        swap_tensors(tensor, tensor.plain())
    return True


def linearize(
    model: Callable[[Tensor], Any], x: Tensor, linearization: Linearization, evaluation: Evaluation
) -> tuple[Any, list[Any]]:
    """Evaluates `model` at `x` [B, ...]; returns its output (plain tensors) and its layers of neurons.

    Also where the model raises, it holds no linearized tensor afterwards.
    """
    root = LinearizedTensor(x, linearization, Samples(x.size(0)), evaluation)
    with contextlib.nullcontext() if torch.compiler.is_compiling() else uncompiled:
        try:
            output = model(root)
            tree_map_only(LinearizedTensor, LinearizedTensor.check_no_function, output)
            evaluation.check_watched()
            output = tree_map_only(LinearizedTensor, lambda t: t.value, output)
        finally:
            evaluation.finish()
    return output, evaluation.layers


__all__ = [
    "Evaluation",
    "Layer",
    "LinearizedTensor",
    "Linearization",
    "identity",
    "MixedSamplesError",
    "NotPiecewiseLinearError",
    "linearize",
]
