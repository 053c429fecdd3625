"""One table from torch function to rule, and how a call finds its rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from llr_fast.linearized.batch_axis import MixedSamplesError
from llr_fast.linearized.tensor import LinearizedTensor, NotPiecewiseLinearError

R = TypeVar("R", bound=Callable[..., Any])
_NAMESPACES = (torch, Tensor, F, torch._C._nn)


@dataclass(frozen=True)
class Rule:
    """`run(function, *args, **kwargs)` computes the call `function(*args, **kwargs)`, always out of place.

    `inplace` says whether the function writes its result to its first argument: always, never, or, where its
    signature has that parameter, by the argument at position `inplace_position`. A rule that `updates` arguments of its
    own, such as running statistics, is given them and not copies, and keeps none of them.
    """

    run: Callable[..., Any]
    inplace: bool = False
    inplace_position: int | None = None
    query: bool = False
    updates: bool = False

    def writes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.inplace_position is not None:
            given = args[self.inplace_position] if len(args) > self.inplace_position else False
            return bool(kwargs.get("inplace", given))
        return self.inplace


TABLE: dict[Any, Rule] = {}


def rule(
    *names: str | Callable[..., Any], query: bool = False, inplace: bool = False, updates: bool = False
) -> Callable[[R], R]:
    """Registers a rule for functions of these names in torch, Tensor and torch.nn.functional, or for one function.

    With `inplace` their in-place forms, `relu_` or `__iadd__`, are registered too.
    """

    def register(run: R) -> R:
        for name in names:
            for function in _functions(name):
                position = _inplace_position(function)
                TABLE[function] = Rule(run, inplace_position=position, query=query, updates=updates)
            for function in _functions(_inplace_name(name)) if inplace and isinstance(name, str) else ():
                TABLE[function] = Rule(run, inplace=True)
        return run

    return register


def apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the rule of `function`; raises NotPiecewiseLinearError where there is none."""
    tensors = list(_tensors((args, kwargs)))
    operands = [tensor for tensor in tensors if isinstance(tensor, LinearizedTensor)]
    name, owner = function_name(function), operands[0].evaluation
    if any(tensor.layout != torch.strided for tensor in tensors if not isinstance(tensor, LinearizedTensor)):
        raise refuse(operands[0], function, "a sparse constant is not supported; pass its to_dense()")
    found = TABLE.get(function)
    if found is None:
        raise NotPiecewiseLinearError(
            f"{name} in module {owner.module_path()!r} has no rule: it is not piecewise linear or not supported, "
            "and it is applied to a tensor that depends on the network's input"
        )
    if not args and "input" in kwargs and "condition" not in kwargs:
        args = (kwargs.pop("input"),)
    if "axis" in kwargs:  # numpy's name, which torch takes too
        kwargs["dim"] = kwargs.pop("axis")
    if found.query:
        return found.run(function, *args, **kwargs)
    for operand in operands:
        operand.check_current(name, owner)
    if kwargs.pop("out", None) is not None:
        raise NotPiecewiseLinearError(f"{name} in module {owner.module_path()!r}: out= is not supported")
    target = args[0] if args and found.writes(args, kwargs) else None
    try:
        with owner.grad_mode():
            if not found.updates and (operands[0].linearization.keeps or owner.trains):
                args, kwargs = owner.owned(args), owner.owned(kwargs)
            result = found.run(function, *args, **kwargs)
    except MixedSamplesError as error:
        raise MixedSamplesError(f"{error} (in module {owner.module_path()!r})") from None
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(operand.shape)) for operand in operands)
        raise ValueError(
            f"{name} in module {owner.module_path()!r} failed on input of shape {shapes}: {error}"
        ) from error
    return result if target is None else _write(name, target, result)


def refuse(x: LinearizedTensor, function: Any, why: str) -> NotPiecewiseLinearError:
    """The error for a call that has a rule in general but not with these arguments."""
    return NotPiecewiseLinearError(f"{function_name(function)} in module {x.evaluation.module_path()!r}: {why}")


def function_name(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    return function.__self__.__name__ if name == "__get__" else name.lstrip("_") if name.startswith("_m") else name


def _write(name: str, target: Any, result: LinearizedTensor) -> LinearizedTensor:
    if not isinstance(target, LinearizedTensor) or target.shape != result.shape:
        raise NotPiecewiseLinearError(
            f"{name} writes a tensor that depends on the network's input into one that does not, or of another shape"
        )
    return target.become(result)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        for argument in arguments:
            yield from _tensors(argument)
    elif isinstance(arguments, dict):
        yield from _tensors(list(arguments.values()))


def _functions(name: str | Callable[..., Any]) -> Iterator[Any]:
    if not isinstance(name, str):
        yield name
        return
    for namespace in _NAMESPACES:
        function: Any = getattr(namespace, name, None)  # or a dtype or module of that name
        is_property = inspect.isdatadescriptor(function)
        if is_property or callable(function):
            yield function.__get__ if is_property else function


def _inplace_name(name: str) -> str:
    return f"__i{name[2:]}" if name.startswith("__") else f"{name}_"


def _inplace_position(function: Any) -> int | None:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return parameters.index("inplace") if "inplace" in parameters else None
