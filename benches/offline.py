"""Compiles the launches that the operators make, or emulates the compiled code, without a GPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.int8: "*i8",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: arguments and compile-time constants by name, num_warps and num_stages in options."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: dict
    constants: dict
    options: dict

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def source(self) -> ASTSource:
        """What Triton would compile at this launch, with the same specialisation of its arguments."""
        signature, constants, attributes = {}, dict(self.constants), {}
        for position, name in enumerate(self.kernel.arg_names):
            value = self.args.get(name, constants.get(name))
            if name in constants or value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[position,] = [["tt.divisibility", 16]]
            else:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[position,] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=attributes)


@contextlib.contextmanager
def intercepted(package: str, act: Callable[[Launch], object]) -> Iterator[None]:
    """Within the block, hand every launch that a package's launchers make to `act` instead of to the device."""
    module = importlib.import_module(f"{package}.triton")
    kernels = {n: k for n, k in vars(module).items() if isinstance(k, JITFunction) and n.endswith("_kernel")}
    for name, kernel in kernels.items():
        setattr(module, name, _Stub(kernel, act))
    try:
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


@dataclass(frozen=True)
class _Stub:
    kernel: JITFunction
    act: Callable[[Launch], object]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        return functools.partial(self._launch, grid)

    def _launch(self, grid, *args, **named):
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | named
        constexpr = {p.name for p in self.kernel.params if p.is_constexpr}
        self.act(
            Launch(
                self.kernel,
                grid,
                {n: v for n, v in values.items() if n in self.kernel.arg_names and n not in constexpr},
                {n: v for n, v in values.items() if n in constexpr},
                {n: v for n, v in values.items() if n not in self.kernel.arg_names},
            )
        )


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs of a multiprocessor, and the instructions that move or multiply."""

    registers: int
    shared: int  # bytes
    stack: int  # bytes of spilled registers and local arrays, for each thread
    local: int  # bytes
    matrix: int  # instructions in the text of the program, not executed ones, as in the next line
    vector_loads: int  # of 16 bytes


def compile_launch(launch: Launch, target: str) -> Resources:
    compiled = triton.compile(launch.source(), target=TARGETS[target], options=launch.options)
    shared = compiled.metadata.shared
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        fields = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        registers, spills, scratch = (int(re.search(rf"\.{field}:\s+(\d+)", text)[1]) for field in fields)
        vectors = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
        return Resources(registers, shared, 4 * spills, scratch, text.count("v_mfma"), vectors)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
    registers, stack, local = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK", "LOCAL"))
    text = compiled.asm["ptx"]
    matrix = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.", text))
    vectors = len(re.findall(r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64)|cp\.async\.c[ag][.\w]* .*0x10,", text))
    return Resources(registers, shared, stack, local, matrix, vectors)


def emulator() -> ModuleType:
    """The package ptxrun of tests/, which executes compiled kernels on CPU tensors."""
    folder = os.fspath(Path(__file__).parents[1] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("ptxrun")


def emulate(launch: Launch, reachable: tuple[Tensor, ...] = ()):
    """Execute a launch as sm_80 code on its CPU tensors and return ptxrun's statistics.

    `reachable` names tensors that the kernel finds through addresses in memory.
    """
    ptxrun = emulator()
    memory = importlib.import_module("ptxrun.memory").GlobalMemory()
    warps, stages = launch.options["num_warps"], launch.options.get("num_stages", 3)
    compiled, names = ptxrun.compile_kernel(launch.kernel, launch.args, launch.constants, 80, warps, stages)
    arguments = [launch.args[name] for name in names]
    values = [memory.register(n, v) if isinstance(v, Tensor) else v for n, v in zip(names, arguments, strict=True)]
    for i, tensor in enumerate(reachable):
        memory.register(f"reachable[{i}]", tensor)
    hidden = [0, 0]  # scratch memory of the compiler and of its profiler, which these kernels do without
    grid = (*launch.grid, 1, 1)[:3]
    shared = compiled.metadata.shared
    return ptxrun.execute(compiled.asm["ptx"], grid, values + hidden, memory, shared_bytes=shared, threads=32 * warps)


def _tool(name: str, *args: str) -> str:
    return subprocess.run([os.fspath(TOOLS / name), *args], check=True, capture_output=True, text=True).stdout
