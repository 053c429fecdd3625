"""One table from torch function to rule, and how a call finds its rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

R = TypeVar("R", bound=Callable[..., Any])
_NAMESPACES = (torch, Tensor, F, torch._C._nn)


@dataclass(frozen=True)
class Rule:
    """`run(function, *args, **kwargs)` computes the call `function(*args, **kwargs)`, always out of place.

    `inplace` says whether the function writes its result to its first argument: always, never, or, where its
    signature has that parameter, by the argument at position `inplace_position`. A rule that `updates` arguments of its
    own, such as running statistics, is given them and not copies, and keeps none of them. One that `takes_ties` is
    right whichever of equal entries torch chooses, and one that `takes_sparse` constants knows of layouts.
    """

    run: Callable[..., Any]
    inplace: bool = False
    inplace_position: int | None = None
    query: bool = False
    updates: bool = False
    takes_ties: bool = False
    takes_sparse: bool = False

    def writes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.inplace_position is not None:
            given = args[self.inplace_position] if len(args) > self.inplace_position else False
            return bool(kwargs.get("inplace", given))
        return self.inplace


TABLE: dict[Any, Rule] = {}


def rule(
    *names: str | Callable[..., Any],
    query: bool = False,
    inplace: bool = False,
    updates: bool = False,
    takes_ties: bool = False,
    takes_sparse: bool = False,
    writes: bool = False,
) -> Callable[[R], R]:
    """Registers a rule for functions of these names in torch, Tensor and torch.nn.functional, or for one function.

    With `inplace` their in-place forms, `relu_` or `__iadd__`, are registered too; what `writes` is one itself.
    """

    options: dict[str, Any] = {"takes_ties": takes_ties, "takes_sparse": takes_sparse}

    def register(run: R) -> R:
        for name in names:
            for function in _functions(name):
                position = _inplace_position(function)
                TABLE[function] = Rule(run, writes, position, query, updates, **options)
            for function in _functions(_inplace_name(name)) if inplace and isinstance(name, str) else ():
                TABLE[function] = Rule(run, inplace=True, **options)
        return run

    return register


def function_name(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    return function.__self__.__name__ if name == "__get__" else name.lstrip("_") if name.startswith("_m") else name


def named_by(function: Any) -> Any:
    """The function of torch that an operator of an exported program stands for; any other function is itself."""
    if not isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return function
    if function in TABLE:
        return function
    packet = function.overloadpacket if isinstance(function, torch._ops.OpOverload) else function
    namespace, name = packet._qualified_op_name.split("::")
    known = (found for found in _functions(name) if found in TABLE) if namespace == "aten" else ()
    return next(iter(known), function)


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
