"""Functional PTX emulator for kernels compiled by Triton: run them without a GPU."""

from .errors import MemoryFault, PtxError, PtxSyntaxError, SyncError, UnsupportedInstruction
from .run import compile_kernel, execute, run
from .stats import Stats

__all__ = [
    "run",
    "execute",
    "compile_kernel",
    "Stats",
    "PtxError",
    "PtxSyntaxError",
    "MemoryFault",
    "SyncError",
    "UnsupportedInstruction",
]
