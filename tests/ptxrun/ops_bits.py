"""Logic, shifts, bit fields, comparison and selection."""

import numpy as np

from . import numeric
from .numeric import TYPES
from .operands import type_of, unsupported
from .ops_arith import elementwise, same_type
from .parse import Pair


def build_logic(instr, ops):
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[instr.parts[0]]
    return same_type(instr, ops, function, 2)


def build_not(instr, ops):
    return same_type(instr, ops, np.invert, 1)


def build_cnot(instr, ops):
    return same_type(instr, ops, lambda a: (a == 0).astype(a.dtype), 1)


def build_shift(instr, ops):
    t = type_of(instr)
    left, top = instr.parts[0] == "shl", t.bits - 1

    def function(a, count):
        inside = np.minimum(count, top).astype(a.dtype)
        out = a << inside if left else a >> inside
        if t.kind == "s" and not left:
            return out
        return np.where(count > top, a.dtype.type(0), out)

    return elementwise(instr, ops, function, [t, TYPES["u32"]], t)


def build_funnel_shift(instr, ops):
    left, wrap = "l" in instr.parts, "wrap" in instr.parts
    u32 = TYPES["u32"]

    def function(low, high, count):
        n = (count & np.uint32(31) if wrap else np.minimum(count, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        out = (both << n) >> np.uint64(32) if left else both >> n
        if left:  # n == 32 must not lose the low word
            out = np.where(n == 32, low, out)
        return (out & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    return elementwise(instr, ops, function, [u32] * 3, u32)


def build_bit_field(instr, ops):
    """bfe and bfi on 32-bit values."""
    t = type_of(instr)
    u32 = TYPES["u32"]
    if t.bits != 32:
        raise unsupported(instr)
    if instr.parts[0] == "bfe":

        def extract(a, start, length):
            wide = a.astype(np.int64) >> np.minimum(start & np.uint32(255), 63).astype(np.int64)
            length = np.minimum(length & np.uint32(255), 32).astype(np.int64)
            gap = 64 - np.maximum(length, 1)
            wide = (wide << gap) >> gap if t.kind == "s" else wide & ((1 << length) - 1)
            return np.where(length == 0, 0, wide).astype(t.dtype)

        return elementwise(instr, ops, extract, [t, u32, u32], t)
    a, b, start, length = (ops.reader(o, u32) for o in instr.operands[1:])
    write = ops.writer(instr.operands[0], t)

    def insert(cta, mask):
        regs = cta.regs
        first = np.minimum(start(regs) & np.uint32(255), 32).astype(np.int64)
        count = np.minimum(length(regs) & np.uint32(255), 32).astype(np.int64)
        field = (((np.int64(1) << count) - 1) << first) & 0xFFFFFFFF
        out = ((a(regs).astype(np.int64) << first) & field) | (b(regs).astype(np.int64) & ~field)
        write(regs, mask, (out & 0xFFFFFFFF).astype(np.uint32))

    return insert


def build_bit_count(instr, ops):
    """popc, clz, brev and bfind."""
    t, name = type_of(instr), instr.parts[0]
    if t.kind == "s":
        raise unsupported(instr)

    def spread(a):
        return np.unpackbits(a.astype(a.dtype.newbyteorder(">")).view(np.uint8).reshape(a.size, -1), axis=1)

    def leading(a):
        bits = spread(a)
        return np.where(a == 0, t.bits, bits.argmax(axis=1))

    def reverse(a):
        packed = np.packbits(spread(a)[:, ::-1], axis=1)
        return packed.view(a.dtype.newbyteorder(">")).reshape(-1).astype(a.dtype)

    if name == "brev":
        return same_type(instr, ops, reverse, 1)
    function = {
        "popc": lambda a: spread(a).sum(axis=1),
        "clz": leading,
        "bfind": lambda a: np.where(a == 0, 0xFFFFFFFF, t.bits - 1 - leading(a)),
    }[name]
    return elementwise(instr, ops, lambda a: function(a).astype(np.uint32), [t], TYPES["u32"])


def build_prmt(instr, ops):
    if len(instr.parts) != 2:
        raise unsupported(instr, "only the default mode")
    u32 = TYPES["u32"]

    def permute(a, b, selector):
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        out = np.zeros(a.size, np.uint32)
        for i in range(4):
            control = selector >> np.uint32(4 * i)
            byte = (both >> ((control & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(0xFF)
            sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            byte = np.where(control & np.uint32(8), sign, byte)
            out |= byte.astype(np.uint32) << np.uint32(8 * i)
        return out

    return elementwise(instr, ops, permute, [u32] * 3, u32)


def build_lop3(instr, ops):
    if len(instr.operands) != 5:
        raise unsupported(instr)
    table = instr.operands[4].value

    def function(a, b, c):
        out = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return out

    return same_type(instr, ops, function, 3)


COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name, t):
    if not t.is_float:
        return COMPARE[name]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name in COMPARE:
        return COMPARE[name]
    ordered = COMPARE[name[:-1]]  # equ, neu, ltu, ...: also true when unordered
    return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)


def build_setp(instr, ops):
    t, pred = type_of(instr), TYPES["pred"]
    if t.name in ("f16x2", "bf16x2") or ("ftz" in instr.parts and t.name != "f32"):
        raise unsupported(instr)
    compare = _comparison(instr.parts[1], t)
    combine = next((BOOLEAN[p] for p in instr.parts[2:-1] if p in BOOLEAN), None)
    flush = numeric.flush_subnormal if "ftz" in instr.parts else lambda v: v
    a, b = (ops.reader(o, t) for o in instr.operands[1:3])
    extra = ops.reader(instr.operands[3], pred) if combine else None
    target = instr.operands[0]
    pair = isinstance(target, Pair)
    write = ops.writer(target.first if pair else target, pred)
    write_not = ops.writer(target.second, pred) if pair else None

    def step(cta, mask):
        regs = cta.regs
        result = compare(flush(a(regs)), flush(b(regs)))
        opposite = ~result
        if combine:
            other = extra(regs)
            result, opposite = combine(result, other), combine(opposite, other)
        write(regs, mask, result)
        if write_not:
            write_not(regs, mask, opposite)

    return step


def build_selp(instr, ops):
    t = type_of(instr)
    t = TYPES[f"b{t.bits}"]  # a selection moves bits
    a, b = (ops.reader(o, t) for o in instr.operands[1:3])
    choose = ops.reader(instr.operands[3], TYPES["pred"])
    write = ops.writer(instr.operands[0], t)

    def step(cta, mask):
        regs = cta.regs
        write(regs, mask, np.where(choose(regs), a(regs), b(regs)))

    return step


BUILDERS = {
    "and": build_logic,
    "or": build_logic,
    "xor": build_logic,
    "not": build_not,
    "cnot": build_cnot,
    "shl": build_shift,
    "shr": build_shift,
    "shf": build_funnel_shift,
    "bfe": build_bit_field,
    "bfi": build_bit_field,
    "popc": build_bit_count,
    "clz": build_bit_count,
    "brev": build_bit_count,
    "bfind": build_bit_count,
    "prmt": build_prmt,
    "lop3": build_lop3,
    "setp": build_setp,
    "selp": build_selp,
}
