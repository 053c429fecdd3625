"""run(): compile a triton.jit function offline, execute it on CPU tensors, return statistics."""

import itertools
import numbers
import os

import numpy as np

from .errors import PtxError
from .machine import Cta, Program
from .memory import GlobalMemory
from .parse import parse
from .races import RaceCheck
from .stats import Stats
from .trace import Trace

POINTER_TYPES = {
    "float32": "fp32",
    "float64": "fp64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
    "bool": "i1",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
}


def run(
    fn,
    grid,
    args,
    constexprs,
    *,
    arch=80,
    num_warps=4,
    num_stages=2,
    specialize=True,
    poison=(),
    check_races=True,
    ctas=None,
    max_instructions=10_000_000,
):
    """Run a triton.jit function over grid on CPU tensors, in place, and return a Stats.

    grid is a tuple, or a function of all arguments as for Triton's launcher. args maps parameter
    names to tensors, numpy arrays, scalars or None; constexprs maps the rest.
    specialize treats aligned pointers, integers divisible by 16 and integers equal to 1 the way
    Triton's own launcher does. poison names tensors to fill with 0xff bytes first. ctas limits
    the run to some (x, y, z) positions of the grid, for measuring large grids.
    """
    compiled, names = compile_kernel(fn, args, constexprs, arch, num_warps, num_stages, specialize)
    scratch = compiled.metadata.global_scratch_size or 0
    if callable(grid):
        grid = grid({**args, **constexprs})
    grid = tuple(int(g) for g in grid) + (1,) * (3 - len(grid))
    memory = GlobalMemory()
    values = []
    for name in names:
        value = args[name]
        is_memory = _is_memory(value)
        values.append(memory.register(name, value, name in poison) if is_memory else value)
    total = grid[0] * grid[1] * grid[2]
    # The two hidden parameters: scratch memory of the compiler and of its profiler.
    values += [memory.register("scratch", np.zeros(scratch * total, np.uint8)) if scratch else 0, 0]
    return execute(
        compiled.asm["ptx"],
        grid,
        values,
        memory,
        shared_bytes=compiled.metadata.shared,
        threads=32 * num_warps,
        check_races=check_races,
        ctas=ctas,
        max_instructions=max_instructions,
    )


def execute(
    ptx, grid, values, memory, *, shared_bytes, threads, check_races=True, ctas=None, max_instructions=10_000_000
):
    """Run PTX text on registered memory. values holds one scalar or address per parameter."""
    kernel = parse(ptx)
    if len(values) != len(kernel.params):
        raise PtxError(f"{kernel.name} takes {len(kernel.params)} parameters, {len(values)} given")
    symbols = {name: _bits(value, kind) for (name, kind), value in zip(kernel.params, values)}
    shared_bytes = _place_variables(kernel, symbols, memory, shared_bytes)
    program = Program(kernel, threads, symbols)
    stats = Stats(kernel=kernel.name, grid=grid, threads_per_cta=threads, shared_bytes=shared_bytes, ptx=ptx)
    races = RaceCheck() if check_races else None
    positions = itertools.product(*(range(g) for g in reversed(grid)))
    with np.errstate(all="ignore"):
        for number, (z, y, x) in enumerate(positions):
            if ctas is not None and (x, y, z) not in ctas:
                continue
            cta = Cta(program, number, (x, y, z), grid, shared_bytes, memory, Trace(stats, races))
            cta.run(max_instructions)
            for (first, last), (warps, active) in cta.executed.items():
                stats.count_block(program.instrs[first:last], warps, active)
    if races:
        stats.races, stats.race_count = races.races, races.count
    return stats


def _place_variables(kernel, symbols, memory, shared_bytes):
    """Give every declared array an address; returns the shared memory needed."""
    next_free = {"shared": 0, "local": 0}
    for variable in sorted(kernel.variables.values(), key=lambda v: v.space == "shared" and v.size == 0):
        if variable.space in ("global", "const"):
            data = np.frombuffer(bytearray(variable.data or bytes(variable.size)), np.uint8)
            symbols[variable.name] = memory.register(variable.name, data)
        else:
            at = -(-next_free[variable.space] // variable.align) * variable.align
            symbols[variable.name] = at
            next_free[variable.space] = at + variable.size
    return max(shared_bytes, next_free["shared"])


def _bits(value, kind):
    """A scalar argument as the integer that its parameter holds."""
    width = int(kind[1:])
    if isinstance(value, (float, np.floating)):
        return int(np.array([value], f"f{width // 8}").view(f"u{width // 8}")[0])
    return int(value) & ((1 << width) - 1)


def _is_memory(value):
    return isinstance(value, np.ndarray) or hasattr(value, "data_ptr")


def compile_kernel(fn, args, constexprs, arch=80, num_warps=4, num_stages=2, specialize=True):
    """Compile offline; returns (compiled kernel, names of the arguments it takes, in order)."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise PtxError("TRITON_INTERPRET is set: unset it before importing triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    constexprs = dict(constexprs)
    missing = [n for n in fn.arg_names if n not in args and n not in constexprs]
    extra = [n for n in [*args, *constexprs] if n not in fn.arg_names]
    if missing or extra:
        raise PtxError(f"missing arguments {missing}, unknown arguments {extra}")
    signature, attributes = {}, {}
    for position, name in enumerate(fn.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
            continue
        value = args[name]
        is_one = isinstance(value, numbers.Integral) and not isinstance(value, bool) and value == 1
        if value is None or (specialize and is_one):
            signature[name], constexprs[name] = "constexpr", value
            continue
        signature[name] = argument_type(value)
        if specialize and _divisible(value):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton_compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled, [n for n in fn.arg_names if n not in constexprs]


def argument_type(value):
    """Triton's name for the type of a launch argument."""
    if _is_memory(value):
        return "*" + POINTER_TYPES[str(value.dtype).replace("torch.", "")]
    if isinstance(value, (bool, np.bool_)):
        return "u1"
    if isinstance(value, numbers.Integral):
        if -(2**31) <= value < 2**31:
            return "i32"
        return "i64" if value < 2**63 else "u64"
    if isinstance(value, (float, np.floating)):
        return "fp32"
    raise PtxError(f"argument of type {type(value).__name__}")


def _divisible(value):
    if isinstance(value, np.ndarray):
        return value.ctypes.data % 16 == 0
    if hasattr(value, "data_ptr"):
        return value.data_ptr() % 16 == 0
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value % 16 == 0
