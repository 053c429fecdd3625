"""The tensor that carries its own linearization, and how a function of it finds its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llr_fast.checks import WithDerivatives
from llr_fast.errors import MixedSamplesError, NotPiecewiseLinearError
from llr_fast.linearized.batch_axis import Samples
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.linearized.layers import Activation
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.local import NoBoundError, Sums
from llr_fast.linearized.table import TABLE, function_name


class LinearizedTensor(WithDerivatives):
    """A tensor that depends on the network's input: its value and its linearization.

    Functions of it are looked up in `llr_fast.linearized.rules`; those without a rule raise NotPiecewiseLinearError.
    """

    value: Tensor
    linearization: Linearization
    samples: Samples
    evaluation: Evaluation[Any]
    _versions: list[int]  # shared by all views of one memory: [number of in-place changes so far]
    _seen: int

    @staticmethod
    def __new__(
        cls,
        value: Tensor,
        linearization: Linearization,
        samples: Samples,
        evaluation: Evaluation[Any],
        views: Sequence[LinearizedTensor] = (),
    ) -> LinearizedTensor:
        dtype = evaluation.settings.declared or value.dtype
        # In training it requires gradients, so that the result of a custom autograd function that takes it
        # has a `grad_fn`.
        options: dict[str, Any] = {"dtype": dtype, "device": value.device, "requires_grad": evaluation.settings.trains}
        self = Tensor._make_wrapper_subclass(cls, value.shape, **options)
        self.value, self.linearization = value, linearization
        self.samples, self.evaluation = samples, evaluation
        storage = value.untyped_storage()._cdata
        bases = [view for view in views if view.value.untyped_storage()._cdata == storage]
        self._versions = bases[0]._versions if bases else [0]
        self._seen = self._versions[0]
        evaluation.remember(self)
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any) -> Any:  # type: ignore[override]
        """Reached only where torch functions are switched off; torch's stub has no class for `self` here."""
        if func is torch.ops.aten.detach.default:  # a checkpoint keeps its inputs
            args[0].evaluation.checkpointed = True
            return args[0].replaced(args[0].value, args[0].linearization)
        raise NotPiecewiseLinearError(f"{func} was applied to a tensor that depends on the network's input")

    def replaced(
        self,
        value: Tensor,
        linearization: Linearization,
        samples: Samples | None = None,
        exact: bool = False,
        sums: Callable[[], Sums] | None = None,
    ) -> LinearizedTensor:
        """The result of a function of this tensor; `exact` of one that rounds nothing.

        How it adds up, `sums`, is asked for where the rounding of each result is bounded.
        """
        samples = self.samples if samples is None else samples
        if self.evaluation.settings.bounds and value.numel():
            if sums is None and not exact and not _share_memory(value, self.value):
                raise NoBoundError
            linearization.bounded(value, Sums() if sums is None else sums(), samples)
        rounding = self.evaluation.settings.rounding
        if rounding is not None and not exact and not _share_memory(value, self.value):
            linearization = rounding(value, linearization)
        return LinearizedTensor(value, linearization, samples, self.evaluation, views=(self,))

    def activated(self, function: str, kinks: tuple[float, ...], piece: Tensor, slope: Tensor) -> Linearization:
        """Has the entries collected as neurons; returns their linearization multiplied by `slope`."""
        if not self.value.numel():
            return self.linearization
        name = self.evaluation.name(function)
        activation = Activation(name, self.value, kinks, piece, slope, self.samples)
        return self.evaluation.collect(activation, self.linearization)

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
                f"{type(made_by).__name__} in module {self.evaluation.module.path()!r} is a custom autograd function, "
                "whose backward does not know the penalty; checkpoints need use_reentrant=False"
            )

    def stand_in(self) -> Tensor:
        """A plain tensor without numbers that looks to the model like this one: in shape, device and dtype."""
        dtype = self.evaluation.settings.declared or self.value.dtype
        return self.value.new_empty(1, dtype=dtype).expand(self.value.shape)

    def plain(self) -> Tensor:
        """The value as a tensor of its own, in the dtype that the model saw."""
        value = self.value.view_as(self.value)
        return value.to(self.evaluation.settings.declared) if self.evaluation.settings.declared else value

    def check_current(self, function: str, evaluation: Evaluation[Any]) -> None:
        """Raises where this tensor is of another evaluation or was changed through another view.

        One that is over goes on only in backward passes, where checkpoints compute it again.
        """
        over = self.evaluation.finished and torch._C._current_graph_task_id() == -1
        if over or self.evaluation is not evaluation:
            raise NotPiecewiseLinearError(
                f"{function} in module {self.evaluation.module.path()!r} reads a tensor that was kept from an earlier "
                "evaluation of the network; keep a detach()ed copy of its numbers instead"
            )
        self.check_no_function()
        if self._seen != self._versions[0]:
            raise NotPiecewiseLinearError(
                f"{function} in module {self.evaluation.module.path()!r} reads a tensor that was changed in place "
                "through another view of its memory; make the change out of place, or clone() first"
            )


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the rule of `function`; raises NotPiecewiseLinearError where there is none."""
    tensors = _tensors((args, kwargs), [])
    operands = [tensor for tensor in tensors if isinstance(tensor, LinearizedTensor)]
    name, evaluation = function_name(function), operands[0].evaluation
    if any(tensor.layout != torch.strided for tensor in tensors if not isinstance(tensor, LinearizedTensor)):
        raise refuse(operands[0], function, "a sparse constant is not supported; pass its to_dense()")
    found = TABLE.get(function)
    if found is None:
        raise NotPiecewiseLinearError(
            f"{name} in module {evaluation.module.path()!r} has no rule: it is not piecewise linear or not supported, "
            "and it is applied to a tensor that depends on the network's input"
        )
    if not args and "input" in kwargs and "condition" not in kwargs:
        args = (kwargs.pop("input"),)
    if "axis" in kwargs:  # numpy's name, which torch takes too
        kwargs["dim"] = kwargs.pop("axis")
    if found.query:
        return found.run(function, *args, **kwargs)
    for operand in operands:
        operand.check_current(name, evaluation)
    if kwargs.pop("out", None) is not None:
        raise NotPiecewiseLinearError(f"{name} in module {evaluation.module.path()!r}: out= is not supported")
    target = args[0] if args and found.writes(args, kwargs) else None
    try:
        with evaluation.settings.grad_mode():
            if not found.updates and (operands[0].linearization.keeps or evaluation.settings.trains):
                args, kwargs = evaluation.owned(args), evaluation.owned(kwargs)
            result = found.run(function, *args, **kwargs)
    except MixedSamplesError as error:
        raise MixedSamplesError(f"{error} (in module {evaluation.module.path()!r})") from None
    except NoBoundError:
        raise refuse(operands[0], function, "rigorous=True has no bound of its rounding") from None
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(operand.shape)) for operand in operands)
        raise ValueError(
            f"{name} in module {evaluation.module.path()!r} failed on input of shape {shapes}: {error}"
        ) from error
    return result if target is None else _write(name, target, result)


def refuse(x: LinearizedTensor, function: Any, why: str) -> NotPiecewiseLinearError:
    """The error for a call that has a rule in general but not with these arguments."""
    return NotPiecewiseLinearError(f"{function_name(function)} in module {x.evaluation.module.path()!r}: {why}")


def _write(name: str, target: Any, result: LinearizedTensor) -> LinearizedTensor:
    if not isinstance(target, LinearizedTensor) or target.shape != result.shape:
        raise NotPiecewiseLinearError(
            f"{name} writes a tensor that depends on the network's input into one that does not, or of another shape"
        )
    return target.become(result)


def _tensors(argument: Any, found: list[Tensor]) -> list[Tensor]:
    """Adds those in the argument, and in what it holds."""
    if isinstance(argument, Tensor):
        found.append(argument)
    elif isinstance(argument, (tuple, list)):
        for part in argument:
            _tensors(part, found)
    elif isinstance(argument, dict):
        for part in argument.values():
            _tensors(part, found)
    return found
