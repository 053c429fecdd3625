"""One evaluation of a network: its settings, the neurons it meets, and what it leaves behind."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import swap_tensors
from torch.utils._pytree import tree_leaves, tree_map_only

from llr_fast.checks import WithDerivatives
from llr_fast.linearized.layers import Activation, Collector, FusedCollector, Ramp, Windows
from llr_fast.linearized.linearization import Linearization
from llr_fast.linearized.modules import RunningModule
from llr_fast.linearized.torch_modes import checkpoint, is_traced

T = TypeVar("T")
T_with = TypeVar("T_with", bound=WithDerivatives)


@dataclass(frozen=True)
class Settings:
    """What kind of evaluation it is.

    A certificate refuses layers in training mode and cuts parameters out of the graph. Values may have a precision of
    their own; to the model they keep the dtype `declared`, so that it makes its own constants as ever. `rounding`
    changes the linearization of every result that may be rounded. With `bounds` the linearization notes bounds of what
    rounding does to each result, and functions without such a bound are refused.
    """

    certificate: bool = False
    declared: torch.dtype | None = None
    rounding: Callable[[Tensor, Linearization], Linearization] | None = None
    bounds: bool = False

    @property
    def trains(self) -> bool:
        """Whether autograd keeps what functions take, for a backward pass."""
        return not self.certificate and torch.is_grad_enabled()

    def seen(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that a tensor of this one has to the model."""
        return self.declared if self.declared and dtype.is_floating_point else dtype

    def grad_mode(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad() if self.certificate else contextlib.nullcontext()

    def constant(self, tensor: Any, like: torch.dtype) -> Any:
        """A parameter, buffer or other tensor that does not depend on x, ready to meet values of dtype `like`.

        Where these are integers it has the precision of a certificate.
        """
        if not isinstance(tensor, Tensor) or isinstance(tensor, WithDerivatives):
            return tensor
        if not tensor.is_floating_point() and not tensor.is_complex():
            return tensor
        tensor = tensor.detach() if self.certificate else tensor
        if self.declared is None:
            return tensor
        precise = like if like.is_floating_point or like.is_complex else torch.float64
        return tensor.to(precise.to_complex() if tensor.is_complex() else precise.to_real())


class Evaluation(Generic[T]):
    """One evaluation of `model`, and what `collector` keeps of each activation in it, in `layers`.

    Once `finished`, what checkpointed parts of the model compute again in the backward pass is not collected and leaves
    running statistics alone.
    """

    def __init__(self, model: nn.Module, collector: Collector[T], settings: Settings | None = None) -> None:
        self.model, self.settings, self.module = model, settings or Settings(), RunningModule(model)
        self.layers: list[T] = []
        self.finished = self.checkpointed = False
        self.padded = False  # whether the network may have made entries of -inf, which are padding of max-poolings
        self._collector = collector
        self._calls: Counter[str] = Counter()  # of functions by module, in a certificate
        self._watched: list[tuple[Tensor, int]] = []
        self._made: list[weakref.ref[WithDerivatives]] = []
        self._backward = -1  # the backward pass behind which this evaluation will be finished again

    def collect(self, activation: Activation, linearization: Linearization) -> Linearization:
        """Takes in the neurons of an activation; returns the linearization of its result."""
        if not activation.z.numel():
            return linearization
        linearization, layer = self._collector(activation, linearization)
        self._keep(layer)
        return linearization

    def ramp(self, z: Tensor, ramp: Ramp, linearization: Linearization) -> tuple[Tensor, Linearization] | None:
        """The value and linearization of a ramp, where the collector computes both as it takes in the neurons.

        Not in a trace: a compiler fuses single operations with what is around them, and chooses their order in memory.
        """
        fused = self._collector
        if is_traced() or not isinstance(fused, FusedCollector):
            return None
        return self._kept(*fused.ramp(z, ramp, linearization))

    def pool(self, z: Tensor, windows: Windows, linearization: Linearization) -> tuple[Tensor, Linearization] | None:
        """The same of a max-pooling."""
        fused = self._collector
        return self._kept(*fused.pool(z, windows, linearization)) if isinstance(fused, FusedCollector) else None

    def _kept(self, value: Tensor, linearization: Linearization, layer: T) -> tuple[Tensor, Linearization]:
        self._keep(layer)
        return value, linearization

    def _keep(self, layer: T) -> None:
        if not self.finished:
            self.layers.append(layer)

    def name(self, function: str) -> str:
        """What the next layer of neurons is called."""
        if not self.settings.certificate:
            return function
        name = f"{self.module.path()}:{function}"
        self._calls[name] += 1
        return f"{name}#{self._calls[name]}" if self._calls[name] > 1 else name

    def owned(self, argument: Any) -> Any:
        """An argument of a torch function as it is now: the network may change its lists, arrays and tensors later.

        Trained leaves stay what they are, so that gradients reach them; `check_watched` finds those that were changed.
        """
        if isinstance(argument, WithDerivatives):
            return argument
        if isinstance(argument, Tensor):
            if self.settings.certificate:
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

    def check_watched(self) -> None:
        for tensor, version in self._watched:
            if tensor._version != version:
                names = (name for name, parameter in self.model.named_parameters() if parameter is tensor)
                raise ValueError(
                    f"model: expected parameters that stay the same while it runs, got {next(names, 'one')!r} "
                    "changed in place after it was used; use a clone() of it"
                )

    def remember(self, tensor: WithDerivatives) -> None:
        """Remembers a tensor of this evaluation, as long as somebody else holds it."""
        self._made.append(weakref.ref(tensor))
        if not self.settings.certificate:  # checkpoints set hooks
            self.checkpointed |= checkpoint() is not None
        if self.finished and self._backward != torch._C._current_graph_task_id():
            self._backward = torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)

    def put_into(self, target: Tensor, tensor: T_with) -> T_with:
        """Makes of a plain tensor, whoever holds it, the last one that was remembered."""
        self._made.pop()
        swap_tensors(target, tensor)
        self.remember(target)  # type: ignore[arg-type]
        return target  # type: ignore[return-value]

    def finish(self) -> None:
        """Turns what the model still holds of the evaluation into plain tensors, in the dtype that the model saw.

        Where parts of the model are checkpointed, their backward passes need what they took in as it is: there only
        what modules hold is replaced, and again what they then hold behind such a backward pass. So it is in a trace.
        """
        self.finished = True
        self._watched.clear()
        kept = [tensor for reference in self._made if (tensor := reference()) is not None]
        self._made.clear()
        if self.checkpointed or is_traced() or not all([_made_plain(tensor) for tensor in kept]):
            for attributes in map(vars, self.model.modules()):
                for name, held in attributes.items():
                    if any(isinstance(leaf, WithDerivatives) for leaf in _leaves(held)):
                        attributes[name] = tree_map_only(WithDerivatives, lambda t: t.plain(), held)


def _leaves(held: Any) -> list[Any]:
    """What is in containers; none where these are in themselves, which torch does not follow."""
    try:
        return tree_leaves(held)
    except RecursionError:
        return []


def _made_plain(tensor: WithDerivatives) -> bool:
    """Makes a plain tensor of it, wherever it is held; False where autograd, a transform or a weak reference has it."""
    with torch._C.DisableTorchFunctionSubclass():
        holders: int = tensor._use_count()  # type: ignore[attr-defined]
        if holders > 1 or weakref.getweakrefs(tensor):
            return False
        swap_tensors(tensor, tensor.plain())
    return True
