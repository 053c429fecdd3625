"""Which implementation of an operator runs: plain torch, the C++ kernels, or Triton."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = ("auto", "reference", "native", "triton")
NOT_BUILT = (
    "the C++ kernels were not built; they need a C++20 compiler, and PyTorch where the build finds it: "
    "LLR_FAST_BUILD_EXT=1 pip install --no-build-isolation . (with setuptools and ninja) builds them or says why not"
)
LIBRARY = torch.library.Library("llr_fast", "DEF")

_process_choice: str | None = None
_context_choice: contextvars.ContextVar[str | None] = contextvars.ContextVar("llr_fast_backend", default=None)
_packages: dict[str, str] = {}
_implementations: dict[str, Callable[..., Any]] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}
_by_library: dict[str, tuple[torch.dtype, ...]] = {}


def set_backend(name: str) -> None:
    """Choose the backend of this process.

    Args:
        name: "reference" (plain PyTorch), "native" (C++ on CPUs), "triton" (on GPUs), or "auto": for each tensor the
            fastest one that can run.

    Raises:
        ValueError: another name.
        RuntimeError: that backend cannot run here.

    Example:
        >>> import llr_fast
        >>> llr_fast.set_backend("auto")
    """
    global _process_choice
    _process_choice = _checked(name)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block, for this thread or task only.

    Args:
        name: as in `set_backend`, whose errors it raises.

    Example:
        >>> import torch, llr_fast
        >>> with llr_fast.backend("reference"):
        ...     llr_fast.margin(torch.nn.ReLU(), torch.tensor([[3.0, 1.0]])).value
        tensor([1.], dtype=torch.float64)
    """
    with _chosen(_checked(name)):
        yield


def selected() -> str:
    """The chosen name: the innermost `backend` block's, else `set_backend`'s, else that of LLR_FAST_BACKEND."""
    global _process_choice
    choice = _context_choice.get() or _process_choice
    if choice is None:
        choice = _process_choice = _checked(os.environ.get("LLR_FAST_BACKEND") or "auto", "LLR_FAST_BACKEND")
    return choice


def backends() -> dict[str, str | None]:
    """Every backend that computes, with None where it can run here and the reason where it cannot.

    Example:
        >>> import llr_fast
        >>> llr_fast.backends()["reference"] is None
        True
    """
    return {name: _obstacle(name) for name in NAMES[1:]}


def define(schema: str, package: str, fake: Callable[..., Any], by_library: Sequence[torch.dtype] = ()) -> None:
    """Define the operator llr_fast::<schema>.

    It is implemented by `<package>.reference.<op>`, by `<package>.triton.launch_<op>` and by the C++ operator
    llr_fast_native::<op>; which of them runs is decided at each call. `by_library` are the types for which "auto" takes
    the reference on GPUs, as the products of torch's libraries are faster there than those of the kernel.
    """
    op = schema.split("(")[0]
    _packages[op], _by_library[op] = package, tuple(by_library)

    def run(*args: Any) -> Any:
        tensor = next(_tensors(args))
        if torch.is_autocast_enabled(tensor.device.type):  # an operator's dtypes are those of its arguments
            with torch.autocast(tensor.device.type, enabled=False):
                return run(*args)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
            # Statistics are wider than what they are of.
            asked = by_library and tensor.is_cuda
            dtype = min((t.dtype for t in _tensors(args)), key=lambda dtype: dtype.itemsize) if asked else None
            return implementation(op, tensor.device, dtype)(*args)

    _implementations[op] = run
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llr_fast::{op}", fake, lib=LIBRARY)


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments, and in lists of them."""
    return (t for a in args for t in (a if isinstance(a, list | tuple) else (a,)) if isinstance(t, Tensor))


def differentiate(op: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register autograd for an operator.

    save(ctx, inputs, output) keeps what backward needs. backward(ctx, run, *gradients) calls
    run("<op>_backward", ...) for the fused gradient and returns one gradient, or None, per input.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Backward may run in another thread, which does not see this context's choice.
        ctx.backend = selected()
        ctx.set_materialize_grads(False)
        save(ctx, inputs, output)

    def formula(ctx: Any, *gradients: Tensor | None) -> Any:
        def run(name: str, *args: Any) -> Any:
            if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated once more
                return _function(name, "reference", name)(*args)
            with _chosen(ctx.backend):
                return (_operator(name) if _is_watched(args) else _implementations[name])(*args)

        return backward(ctx, run, *gradients)

    torch.library.register_autograd(f"llr_fast::{op}", formula, setup_context=setup_context, lib=LIBRARY)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = _implementations[op](*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            return formula(ctx, *gradients)

    _functions[op] = Function


def call(op: str, *args: Any) -> Any:
    """The operator llr_fast::<op> of tensors and numbers.

    Without torch's dispatcher, which takes longer than a small kernel, where nobody watches the call.
    """
    if _is_watched(args):
        return _operator(op)(*args)
    return _functions[op].apply(*args) if op in _functions else _implementations[op](*args)


def _operator(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(torch.ops.llr_fast, name)
    return found


def _is_watched(args: Sequence[Any]) -> bool:
    """Whether a compiler, a mode or a transform has to see the operator, or a tensor has behaviour of its own."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    plain = all(type(arg) in (Tensor, torch.nn.Parameter) for arg in args if isinstance(arg, Tensor))
    return not plain or torch._C._functorch.peek_interpreter_stack() is not None


def implementation(op: str, device: torch.device, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    """The function that computes an operator of tensors of a type on a device under the selected backend."""
    name = selected()
    if name in ("auto", "native") and device.type == "cpu":
        if (native := _native_op(op)) is not None:
            return native
        _warn_if_not_built()
    if name == "native":
        raise RuntimeError(f"{op}: backend 'native' has no kernel for it on {device.type}")
    if name == "triton" and device.type != "cuda" and not _interpreting():
        raise RuntimeError(f"{op}: backend 'triton' takes CUDA tensors, got {device.type}")
    fused = device.type == "cuda" and _has_triton(op) and dtype not in _by_library[op]
    if name == "triton" or (name == "auto" and fused):
        return _function(op, "triton", f"launch_{op}")
    return _function(op, "reference", op)


def _function(op: str, module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"{_packages[op]}.{module}"), name)
    return found


@contextlib.contextmanager
def _chosen(name: str) -> Iterator[None]:
    token = _context_choice.set(name)
    try:
        yield
    finally:
        _context_choice.reset(token)


def _checked(name: str, source: str = "backend") -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    reason = None if name == "auto" else _obstacle(name)
    if reason is not None:
        raise RuntimeError(f"{source} {name!r} cannot run: {reason}")
    return name


def _obstacle(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    if name == "native":
        try:
            return None if _load_native() else NOT_BUILT
        except RuntimeError as error:
            return str(error)
    if name == "triton" and not _has_triton():
        return "triton is not installed"
    if name == "triton" and not (_interpreting() or torch.cuda.is_available()):
        return "there is no CUDA device, and TRITON_INTERPRET is not set"
    return None


@functools.cache
def _load_native() -> bool:
    """Load the C++ extension. False where it was not built; a file that does not load is an error."""
    files = sorted(Path(__file__).parent.glob("_C*.so"), key=os.path.getmtime)
    for file in files[-1:]:  # one only: an older build beside it defines the same operators
        try:
            torch.ops.load_library(file)
        except OSError as error:
            raise RuntimeError(
                f"{file} does not load ({error}); rebuild it, or choose the backend 'reference'"
            ) from error
    return bool(files)


@functools.cache
def _warn_if_not_built() -> None:
    """Once in a process: an installation without the kernels succeeds, and tools that install show no word of it."""
    if not _load_native():
        warnings.warn(
            f"llr_fast: {NOT_BUILT}. On CPUs it computes the same, slower; LLR_FAST_BACKEND=reference asks for that",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.cache
def _native_op(op: str) -> Callable[..., Any] | None:
    return getattr(torch.ops.llr_fast_native, op, None) if _load_native() else None


@functools.cache
def _has_triton(op: str | None = None) -> bool:
    """Whether Triton is installed and, if an operator is named, whether there are kernels for it."""
    has_kernels = op is None or importlib.util.find_spec(f"{_packages[op]}.triton") is not None
    return has_kernels and importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")
