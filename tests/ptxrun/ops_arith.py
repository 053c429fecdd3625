"""Arithmetic: one value per thread, no memory."""

import numpy as np

from . import numeric
from .numeric import TYPES
from .operands import type_of, unsupported

ROUNDING = ("rn", "rz", "rm", "rp")


def elementwise(instr, ops, function, in_types, out_type):
    """Step that applies function to all source operands."""
    sources = [ops.reader(o, t) for o, t in zip(instr.operands[1:], in_types)]
    write = ops.writer(instr.operands[0], out_type)
    if "ftz" in instr.parts and out_type.name == "f32":
        inner = function

        def function(*v):
            return numeric.flush_subnormal(inner(*map(numeric.flush_subnormal, v)))

    if "sat" in instr.parts and out_type.is_float:
        unclamped = function

        def function(*v):
            return np.nan_to_num(np.clip(unclamped(*v), 0, 1), nan=0.0)

    if len(sources) == 1:
        (a,) = sources
        return lambda cta, mask: write(cta.regs, mask, function(a(cta.regs)))
    if len(sources) == 2:
        a, b = sources
        return lambda cta, mask: write(cta.regs, mask, function(a(cta.regs), b(cta.regs)))
    a, b, c = sources
    return lambda cta, mask: write(cta.regs, mask, function(a(cta.regs), b(cta.regs), c(cta.regs)))


def same_type(instr, ops, function, count):
    t = type_of(instr)
    return elementwise(instr, ops, function, [t] * count, t)


def _rounding(instr):
    modes = [p for p in instr.parts[1:-1] if p in ROUNDING]
    return modes[0] if modes else "rn"


def build_add_sub_mul(instr, ops):
    name, t = instr.parts[0], type_of(instr)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    if name == "mul" and not t.is_float:
        return _build_integer_multiply(instr, ops, t)
    if "cc" in instr.parts:
        return build_carry(instr, ops)
    mode = _rounding(instr)
    if mode != "rn":
        if t.name != "f32":
            raise unsupported(instr, f"rounding {mode}")
        plain = function

        def function(a, b):
            return numeric.round_float(plain(a.astype(np.float64), b.astype(np.float64)), "f32", mode).astype(
                np.float32
            )

    return elementwise(instr, ops, function, [t, t], t)


def _wide(t):
    return TYPES[f"{t.name[0]}{t.bits * 2}"]


def _high_product(a, b, t):
    if t.bits < 64:
        wide = _wide(t).dtype
        return ((a.astype(wide) * b.astype(wide)) >> t.bits).astype(t.dtype)
    product = a.astype(object) * b.astype(object)
    top = [(int(p) >> 64) & (2**64 - 1) for p in product]
    return np.array(top, np.uint64).view(t.dtype)


def _build_integer_multiply(instr, ops, t):
    if "wide" in instr.parts:
        wide = _wide(t)
        return elementwise(instr, ops, lambda a, b: a.astype(wide.dtype) * b.astype(wide.dtype), [t, t], wide)
    if "hi" in instr.parts:
        return elementwise(instr, ops, lambda a, b: _high_product(a, b, t), [t, t], t)
    return elementwise(instr, ops, np.multiply, [t, t], t)


def build_mad(instr, ops):
    t = type_of(instr)
    if t.is_float:
        return build_fma(instr, ops)
    if instr.parts[0] == "madc" or "cc" in instr.parts:
        return build_carry(instr, ops)
    if "wide" in instr.parts:
        wide = _wide(t)
        return elementwise(
            instr, ops, lambda a, b, c: a.astype(wide.dtype) * b.astype(wide.dtype) + c, [t, t, wide], wide
        )
    if "hi" in instr.parts:
        return elementwise(instr, ops, lambda a, b, c: _high_product(a, b, t) + c, [t] * 3, t)
    return elementwise(instr, ops, lambda a, b, c: a * b + c, [t] * 3, t)


def build_carry(instr, ops):
    """add, sub, mad with .cc and addc, subc, madc: 32-bit only, through a carry per thread."""
    name, t = instr.parts[0], type_of(instr)
    if t.bits != 32:
        raise unsupported(instr, "carry chains are 32-bit only")
    sources = [ops.reader(o, TYPES["u32"]) for o in instr.operands[1:]]
    write = ops.writer(instr.operands[0], TYPES["u32"])
    uses, sets, high = name.endswith("c"), "cc" in instr.parts, "hi" in instr.parts
    if high and t.kind == "s":
        raise unsupported(instr)

    def step(cta, mask):
        a, b, *c = (s(cta.regs).astype(np.int64) for s in sources)
        carry = cta.carry if uses else 0
        if name.startswith("mad"):
            product = a.view(np.uint64) * b.view(np.uint64)
            half = (product >> np.uint64(32)) if high else product & np.uint64(0xFFFFFFFF)
            total = half.astype(np.int64) + c[0] + carry
        elif name.startswith("add"):
            total = a + b + carry
        else:
            total = a - b - carry
        if sets:
            out = (total >> 32) & 1
            cta.carry = out if mask is None else np.where(mask, out, cta.carry)
        write(cta.regs, mask, (total & 0xFFFFFFFF).astype(np.uint32))

    return step


def build_fma(instr, ops):
    t, mode = type_of(instr), _rounding(instr)
    if mode != "rn":
        raise unsupported(instr, f"rounding {mode}")
    if t.name == "f32":
        function = numeric.fused_multiply_add_f32
    elif t.name == "f64":
        function = _fma_f64
    else:

        def function(a, b, c):
            return a * b + c

    if "relu" in instr.parts:
        inner = function

        def function(a, b, c):
            return np.maximum(inner(a, b, c), 0)

    return elementwise(instr, ops, function, [t] * 3, t)


def _fma_f64(a, b, c):
    """Through extended precision where the host has it: last-bit differences are possible."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float64)


def _truncating_divide(a, b):
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "i":
        rest = a - quotient * b
        quotient = quotient + ((rest != 0) & ((a ^ b) < 0))
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient)


def build_div_rem(instr, ops):
    t = type_of(instr)
    if instr.parts[0] == "rem":
        return same_type(instr, ops, lambda a, b: np.where(b == 0, a, a - _truncating_divide(a, b) * b), 2)
    return same_type(instr, ops, np.divide if t.is_float else _truncating_divide, 2)


def build_min_max(instr, ops):
    name = instr.parts[0]
    propagate = "NaN" in instr.parts
    function = {("min", False): np.fmin, ("max", False): np.fmax, ("min", True): np.minimum, ("max", True): np.maximum}[
        name, propagate
    ]
    if "xorsign" in instr.parts or len(instr.operands) != 3:
        raise unsupported(instr)
    if "abs" in instr.parts:
        return same_type(instr, ops, lambda a, b: function(np.abs(a), np.abs(b)), 2)
    return same_type(instr, ops, function, 2)


def build_neg_abs(instr, ops):
    return same_type(instr, ops, {"neg": np.negative, "abs": np.abs}[instr.parts[0]], 1)


def _in_float64(function):
    return lambda a: function(a.astype(np.float64))


UNARY_FLOAT = {
    "ex2": _in_float64(np.exp2),
    "lg2": _in_float64(np.log2),
    "sqrt": _in_float64(np.sqrt),
    "rsqrt": _in_float64(lambda a: 1.0 / np.sqrt(a)),
    "rcp": _in_float64(lambda a: 1.0 / a),
    "sin": _in_float64(np.sin),
    "cos": _in_float64(np.cos),
    "tanh": _in_float64(np.tanh),
}


def build_unary_float(instr, ops):
    if _rounding(instr) != "rn":
        raise unsupported(instr, "only rounding to nearest")
    return same_type(instr, ops, UNARY_FLOAT[instr.parts[0]], 1)


BUILDERS = {
    "add": build_add_sub_mul,
    "sub": build_add_sub_mul,
    "mul": build_add_sub_mul,
    "addc": build_carry,
    "subc": build_carry,
    "mad": build_mad,
    "madc": build_mad,
    "fma": build_fma,
    "div": build_div_rem,
    "rem": build_div_rem,
    "min": build_min_max,
    "max": build_min_max,
    "neg": build_neg_abs,
    "abs": build_neg_abs,
    **{name: build_unary_float for name in UNARY_FLOAT},
}
