"""Turns parsed operands into functions that read and write the register file."""

import numpy as np

from . import numeric
from .errors import UnsupportedInstruction
from .parse import Imm, Mem, Reg, Sink, Special, Symbol, Vec

WARP = 32


def unsupported(instr, why=""):
    return UnsupportedInstruction(f"unsupported instruction {instr.opcode}{': ' + why if why else ''}")


class Operands:
    """Builds readers and writers for one kernel and one CTA size.

    A reader maps the register list to an array with one value per thread. Arrays are
    never changed in place, so constants and registers may be shared freely.
    """

    def __init__(self, kernel, threads, symbols):
        self.kernel, self.threads, self.symbols = kernel, threads, symbols

    def constant(self, value, dtype):
        array = np.full(self.threads, value, dtype)
        array.flags.writeable = False
        return lambda regs: array

    def reader(self, operand, ptx_type):
        """Value of the operand in the numpy form of ptx_type."""
        if isinstance(operand, Reg):
            return self._register(operand, ptx_type)
        if isinstance(operand, Special):
            return self._special(operand, ptx_type)
        if isinstance(operand, Imm):
            bits = self._literal_bits(operand, ptx_type)
            value = numeric.decode(np.full(self.threads, bits, numeric.UNSIGNED[ptx_type.bits]), ptx_type)
        elif isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise UnsupportedInstruction(f"unknown symbol {operand.name}")
            value = np.full(self.threads, self.symbols[operand.name], ptx_type.dtype)
        else:
            raise UnsupportedInstruction(f"operand {operand} cannot be read as {ptx_type.name}")
        value.flags.writeable = False
        return lambda regs: value

    def _literal_bits(self, imm, ptx_type):
        if ptx_type.kind == "p":
            return bool(imm.value)
        if ptx_type.is_float and imm.float_bits and imm.float_bits != ptx_type.bits:
            wide = np.array([imm.value], f"u{imm.float_bits // 8}").view(f"f{imm.float_bits // 8}")
            return numeric.encode(wide.astype(np.float64), ptx_type)[0]
        return imm.value & ((1 << ptx_type.bits) - 1)

    def _register(self, reg, ptx_type):
        slot = reg.slot
        if ptx_type.kind == "p" or (
            reg.bits == ptx_type.bits and ptx_type.dtype == numeric.UNSIGNED[reg.bits] and not ptx_type.is_float
        ):
            return lambda regs: regs[slot]
        if reg.bits == ptx_type.bits and ptx_type.name not in ("f16", "bf16", "f16x2", "bf16x2"):
            dtype = ptx_type.dtype
            return lambda regs: regs[slot].view(dtype)
        width = ptx_type.bits
        return lambda regs: numeric.decode(numeric.resize(regs[slot], width), ptx_type)

    def _special(self, operand, ptx_type):
        name, dtype = operand.name, ptx_type.dtype
        thread = np.arange(self.threads)
        fixed = {
            "%tid.x": thread,
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
            "%tid.y": 0 * thread,
            "%tid.z": 0 * thread,
            "%ntid.x": 0 * thread + self.threads,
            "%ntid.y": 0 * thread + 1,
            "%ntid.z": 0 * thread + 1,
        }
        if name in fixed:
            value = fixed[name].astype(dtype)
            return lambda regs: value
        if name.startswith("%lanemask_"):
            value = _lane_masks(name[10:], thread % WARP).astype(dtype)
            return lambda regs: value
        for prefix, field in (("%ctaid.", "ctaid"), ("%nctaid.", "grid")):
            if name.startswith(prefix):
                axis, count = "xyz".index(name[-1]), self.threads
                return lambda regs: np.full(count, getattr(regs, field)[axis], dtype)
        raise UnsupportedInstruction(f"unsupported special register {name}")

    def writer(self, operand, ptx_type):
        """Function (regs, mask, value) storing a value of ptx_type, extended to the register."""
        if isinstance(operand, Sink):
            return lambda regs, mask, value: None
        if not isinstance(operand, Reg):
            raise UnsupportedInstruction(f"operand {operand} cannot be written")
        slot, width, signed = operand.slot, operand.bits, ptx_type.kind == "s"
        same = width == ptx_type.bits
        storage = numeric.UNSIGNED[width]
        plain = same and ptx_type.name not in ("f16", "bf16", "f16x2", "bf16x2", "pred")
        wanted = ptx_type.dtype

        def write(regs, mask, value):
            if plain and value.dtype == wanted:
                bits = value.view(storage)
            else:
                bits = numeric.encode(value, ptx_type)
                if not same:
                    bits = numeric.resize(bits, width, signed)
            regs[slot] = bits if mask is None else np.where(mask, bits, regs[slot])

        return write

    def address(self, operand):
        """Reader of [base + offset] as int64 addresses."""
        if not isinstance(operand, Mem):
            raise UnsupportedInstruction(f"operand {operand} is not a memory operand")
        base, offset = operand.base, operand.offset
        if isinstance(base, Reg):
            slot = base.slot
            if base.bits == 64:
                if offset == 0:
                    return lambda regs: regs[slot].view(np.int64)
                return lambda regs: regs[slot].view(np.int64) + offset
            return lambda regs: regs[slot].astype(np.int64) + offset
        start = base.value if isinstance(base, Imm) else self.symbols.get(base.name)
        if start is None:
            raise UnsupportedInstruction(f"unknown symbol {base.name}")
        return self.constant(start + offset, np.int64)


def items(operand):
    """The elements of a vector operand, or the operand itself."""
    return operand.items if isinstance(operand, Vec) else (operand,)


def type_of(instr, position=-1):
    """The PtxType named by one of the opcode's parts."""
    name = instr.parts[position]
    if name not in numeric.TYPES:
        raise unsupported(instr)
    return numeric.TYPES[name]


def _lane_masks(kind, lane):
    below = (np.int64(1) << lane) - 1
    own = np.int64(1) << lane
    every = np.int64(0xFFFFFFFF)
    return {"lt": below, "le": below | own, "eq": own, "gt": every & ~(below | own), "ge": every & ~below}[kind]
