"""Instructions in which the 32 lanes of a warp cooperate: shuffles, votes, matrices."""

import re

import numpy as np

from . import numeric
from .errors import UnsupportedInstruction
from .numeric import FP8_VALUES, TYPES
from .operands import WARP, items, type_of, unsupported
from .parse import Pair

LANE = np.arange(WARP)


def build_shuffle(instr, ops):
    mode = next((p for p in instr.parts if p in ("up", "down", "bfly", "idx")), None)
    if mode is None:
        raise unsupported(instr)
    u32 = TYPES["u32"]
    target = instr.operands[0]
    pair = isinstance(target, Pair)
    write = ops.writer(target.first if pair else target, u32)
    write_valid = ops.writer(target.second, TYPES["pred"]) if pair else None
    value, select, clamp = (ops.reader(o, u32) for o in instr.operands[1:4])
    thread = np.arange(ops.threads)
    lane, base = thread % WARP, thread - thread % WARP

    def step(cta, mask):
        regs = cta.regs
        b = (select(regs) & np.uint32(31)).astype(np.int64)
        c = clamp(regs).astype(np.int64)
        segment = (c >> 8) & 31
        highest = (lane & segment) | (c & 31 & ~segment)
        if mode == "up":
            source = lane - b
            valid = source >= highest
        else:
            source = {
                "down": lambda: lane + b,
                "bfly": lambda: lane ^ b,
                "idx": lambda: (lane & segment) | (b & ~segment),
            }[mode]()
            valid = source <= highest
        a = value(regs)
        write(regs, mask, a[base + np.where(valid, source, lane)])
        if write_valid:
            write_valid(regs, mask, valid)

    return step


def _by_warp(values, mask, neutral):
    values = values if mask is None else np.where(mask, values, neutral)
    return values.reshape(-1, WARP)


def build_vote(instr, ops):
    mode = next((p for p in instr.parts[1:] if p in ("all", "any", "uni", "ballot")), None)
    if mode is None:
        raise unsupported(instr)
    pred = TYPES["pred"]
    read = ops.reader(instr.operands[1], pred)
    write = ops.writer(instr.operands[0], TYPES["u32"] if mode == "ballot" else pred)

    def step(cta, mask):
        p = read(cta.regs)
        some = _by_warp(p, mask, False).any(axis=1)
        every = _by_warp(p, mask, True).all(axis=1)
        if mode == "ballot":
            bits = (_by_warp(p, mask, False).astype(np.uint64) << LANE.astype(np.uint64)).sum(axis=1)
            result = bits.astype(np.uint32)
        else:
            result = {"any": some, "all": every, "uni": every | ~some}[mode]
        write(cta.regs, mask, np.repeat(result, WARP))

    return step


def build_active_mask(instr, ops):
    write = ops.writer(instr.operands[0], TYPES["u32"])
    ones = np.ones(ops.threads, bool)

    def step(cta, mask):
        bits = _by_warp(ones, mask, False).astype(np.uint64) << LANE.astype(np.uint64)
        write(cta.regs, mask, np.repeat(bits.sum(axis=1).astype(np.uint32), WARP))

    return step


def build_warp_reduce(instr, ops):
    """redux.sync over whole warps."""
    t = type_of(instr)
    name = next((p for p in instr.parts[2:] if p in ("add", "min", "max", "and", "or", "xor")), None)
    if name is None or t.is_float:
        raise unsupported(instr)
    function = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name]
    neutral = {
        "add": 0,
        "or": 0,
        "xor": 0,
        "and": -1 % (1 << t.bits),
        "min": np.iinfo(t.dtype).max,
        "max": np.iinfo(t.dtype).min,
    }[name]
    read, write = ops.reader(instr.operands[1], t), ops.writer(instr.operands[0], t)

    def step(cta, mask):
        rows = _by_warp(read(cta.regs), mask, np.array(neutral, t.dtype))
        write(cta.regs, mask, np.repeat(function.reduce(rows, axis=1, dtype=t.dtype), WARP))

    return step


def build_warp_barrier(instr, ops):
    def step(cta, mask):
        cta.trace.warp_epoch += 1

    return step


class _Fragment:
    """Where each element of an mma operand sits: register, part of the register, lane.

    order lists, for the row-major matrix, the position in an array [register, lane, part].
    """

    def __init__(self, role, rows, columns, packed, registers):
        group, quad = LANE >> 2, LANE & 3
        self.shape, self.packed, self.registers = (rows, columns), packed, registers
        order = np.full((rows, columns), -1)
        row_blocks = max(1, rows // 8) if role != "b" else 1
        for r in range(registers):
            for part in range(packed):
                if role == "a":
                    row = group + 8 * (r % row_blocks)
                    column = packed * quad + part + (r // row_blocks) * 4 * packed
                elif role == "b":
                    row, column = packed * quad + part + r * 4 * packed, group
                else:
                    element = r * packed + part
                    row, column = group + 8 * (element // 2), 2 * quad + element % 2
                order[row, column] = (r * WARP + LANE) * packed + part
        if (order < 0).any():
            raise UnsupportedInstruction(f"mma operand of {rows}x{columns} in {registers} registers")
        self.order = order.reshape(-1)
        self.back = np.argsort(self.order)

    def matrices(self, registers, decode):
        """Register arrays [threads] -> float64 [warps, rows, columns]."""
        stack = np.stack(registers)
        warps = stack.shape[1] // WARP
        parts = decode(stack.view(f"u{stack.itemsize // self.packed}"))
        parts = parts.reshape(self.registers, warps, WARP * self.packed).transpose(1, 0, 2)
        return parts.reshape(warps, -1)[:, self.order].reshape(warps, *self.shape)

    def split(self, matrices, encode):
        """Inverse of matrices: one array [threads] per register."""
        warps = matrices.shape[0]
        words = encode(np.ascontiguousarray(matrices.reshape(warps, -1)[:, self.back]))
        words = words.reshape(warps, self.registers, WARP).transpose(1, 0, 2)
        return [r.reshape(-1) for r in words]


def _decode_tf32(bits):
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


MMA_DECODE = {
    "tf32": (32, _decode_tf32),
    "f16": (16, lambda b: numeric.decode(b, TYPES["f16"])),
    "bf16": (16, lambda b: numeric.decode(b, TYPES["bf16"])),
    "f32": (32, lambda b: b.view(np.float32).astype(np.float64)),
    "f64": (64, lambda b: b.view(np.float64)),
    "s8": (8, lambda b: b.view(np.int8).astype(np.float64)),
    "u8": (8, lambda b: b.astype(np.float64)),
    "s32": (32, lambda b: b.view(np.int32).astype(np.float64)),
    "e4m3": (8, lambda b: FP8_VALUES["e4m3"][b]),
    "e5m2": (8, lambda b: FP8_VALUES["e5m2"][b]),
}
MMA_ENCODE = {
    "f32": lambda v: v.astype(np.float32).view(np.uint32),
    "f64": lambda v: v.view(np.uint64),
    "f16": lambda v: numeric.encode(v, TYPES["f16"]).view(np.uint32),
    "s32": lambda v: v.astype(np.int64).astype(np.int32).view(np.uint32),
}


def build_mma(instr, ops):
    """mma.sync: products and sums in float64, rounded once to the accumulator type."""
    shape = re.search(r"\.m(\d+)n(\d+)k(\d+)\.row\.col\.", instr.opcode)
    d_name, a_name, b_name, c_name = instr.parts[-4:]
    saturate = "satfinite" in instr.parts
    if (
        not shape
        or d_name not in MMA_ENCODE
        or not {a_name, b_name, c_name} <= set(MMA_DECODE)
        or (saturate and d_name != "s32")
    ):
        raise unsupported(instr)
    m, n, k = map(int, shape.groups())
    if n != 8 or m not in (8, 16) or (m == 8 and a_name != "f64"):
        raise unsupported(instr)
    operands = [items(o) for o in instr.operands]
    width = 64 if a_name == "f64" else 32

    def fragment(role, rows, columns, name, registers):
        return _Fragment(role, rows, columns, width // MMA_DECODE[name][0], len(registers))

    a_part = fragment("a", m, k, a_name, operands[1])
    b_part = fragment("b", k, n, b_name, operands[2])
    c_part = fragment("c", m, n, c_name, operands[3])
    d_part = fragment("c", m, n, d_name, operands[0])
    raw = TYPES[f"b{width}"]
    a_regs, b_regs, c_regs = ([ops.reader(o, raw) for o in group] for group in operands[1:])
    writes = [ops.writer(o, raw) for o in operands[0]]
    decode_a, decode_b, decode_c = (MMA_DECODE[x][1] for x in (a_name, b_name, c_name))
    encode = MMA_ENCODE[d_name]

    def step(cta, mask):
        regs = cta.regs
        a = a_part.matrices([r(regs) for r in a_regs], decode_a)
        b = b_part.matrices([r(regs) for r in b_regs], decode_b)
        c = c_part.matrices([r(regs) for r in c_regs], decode_c)
        total = np.matmul(a, b) + c
        if saturate:
            total = np.clip(total, -(2.0**31), 2.0**31 - 1)
        for write, result in zip(writes, d_part.split(total, encode)):
            write(regs, mask, result)

    return step


def _matrix_count(instr):
    for count in (1, 2, 4):
        if f"x{count}" in instr.parts and "m8n8" in instr.parts and instr.parts[-1] == "b16":
            return count
    raise unsupported(instr)


class _MatrixMove:
    """What ldmatrix and stmatrix share: 8x8 matrices of 16-bit items in shared memory.

    Lane 8j+r holds the address of row r of matrix j. Lane l keeps, of each matrix, items
    2(l%4) and 2(l%4)+1 of row l//4, or of column l//4 if transposed.
    """

    def __init__(self, instr, ops, memory_operand):
        self.instr, self.count = instr, _matrix_count(instr)
        self.transposed = "trans" in instr.parts
        self.address = ops.address(memory_operand)
        self.gives_address = np.tile(8 * self.count > LANE, ops.threads // WARP)

    def rows(self, cta, mask, kind):
        """Checked row addresses [warps, matrices, 8], logged for the statistics."""
        address = self.address(cta.regs)
        lanes = self.gives_address if mask is None else self.gives_address & mask
        segment = cta.spaces["shared"].check(address, lanes, 16)
        every = None if lanes.all() else lanes
        cta.trace.count_access("shared", kind, self.instr, address, 16, every, segment)
        rows = np.where(lanes, address, segment.start)
        return rows.reshape(-1, WARP)[:, : 8 * self.count].reshape(-1, self.count, 8), segment

    def log(self, cta, mask, kind, rows, segment, values=None):
        """Tell the race check which bytes each lane really holds."""
        group, quad = LANE >> 2, LANE & 3
        for j in range(self.count):
            if self.transposed:
                for e in (0, 1):
                    where = (rows[:, j, :][:, 2 * quad + e] + 2 * group).reshape(-1)
                    half = None if values is None else [(values[j] >> np.uint32(16 * e)).astype(np.uint16)]
                    cta.trace.race_access("shared", kind, self.instr, where, 2, mask, segment, half)
            else:
                where = (rows[:, j, :][:, group] + 4 * quad).reshape(-1)
                word = None if values is None else [values[j]]
                cta.trace.race_access("shared", kind, self.instr, where, 4, mask, segment, word)


def build_load_matrix(instr, ops):
    move = _MatrixMove(instr, ops, instr.operands[1])
    writes = [ops.writer(o, TYPES["b32"]) for o in items(instr.operands[0])]

    def step(cta, mask):
        rows, segment = move.rows(cta, mask, "read")
        data = segment.views[2][((rows - segment.origin) >> 1)[..., None] + np.arange(8)]
        if move.transposed:
            data = data.swapaxes(2, 3)
        words = np.ascontiguousarray(data).view(np.uint32).reshape(-1, move.count, WARP)
        for j, write in enumerate(writes):
            write(cta.regs, mask, words[:, j].reshape(-1))
        move.log(cta, mask, "read", rows, segment)

    return step


def build_store_matrix(instr, ops):
    move = _MatrixMove(instr, ops, instr.operands[0])
    reads = [ops.reader(o, TYPES["b32"]) for o in items(instr.operands[1])]

    def step(cta, mask):
        rows, segment = move.rows(cta, mask, "write")
        values = [read(cta.regs) for read in reads]
        words = np.stack([v.reshape(-1, WARP) for v in values], axis=1)
        data = words.view(np.uint16).reshape(-1, move.count, 8, 8)
        if move.transposed:
            data = data.swapaxes(2, 3)
        index = ((rows - segment.origin) >> 1)[..., None] + np.arange(8)
        live = slice(None) if mask is None else mask.reshape(-1, WARP).any(axis=1)
        segment.views[2][index[live]] = data[live]
        move.log(cta, mask, "write", rows, segment, values)

    return step


def _build_bar(instr, ops):
    if instr.parts[:3] == ("bar", "warp", "sync"):
        return build_warp_barrier(instr, ops)
    raise unsupported(instr)


BUILDERS = {
    "shfl": build_shuffle,
    "vote": build_vote,
    "activemask": build_active_mask,
    "redux": build_warp_reduce,
    "mma": build_mma,
    "ldmatrix": build_load_matrix,
    "stmatrix": build_store_matrix,
    "bar": _build_bar,
}
