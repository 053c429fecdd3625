"""mov, cvt and cvta."""

import numpy as np

from . import numeric
from .numeric import FP8_VALUES, TYPES, UNSIGNED
from .operands import type_of, unsupported
from .parse import Vec

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
FLOAT_ROUNDING = ("rn", "rz", "rm", "rp", "rna")


def build_mov(instr, ops):
    t = type_of(instr)
    target, source = instr.operands
    if isinstance(target, Vec):
        return _build_unpack(instr, ops, t, target, source)
    if isinstance(source, Vec):
        return _build_pack(instr, ops, t, target, source)
    t = t if t.kind == "p" else TYPES[f"b{t.bits}"]
    read, write = ops.reader(source, t), ops.writer(target, t)
    return lambda cta, mask: write(cta.regs, mask, read(cta.regs))


def _build_unpack(instr, ops, t, target, source):
    part = TYPES[f"b{t.bits // len(target.items)}"]
    read = ops.reader(source, TYPES[f"b{t.bits}"])
    writes = [ops.writer(o, part) for o in target.items]

    def step(cta, mask):
        value = read(cta.regs)
        for i, write in enumerate(writes):
            write(cta.regs, mask, (value >> value.dtype.type(i * part.bits)).astype(part.dtype))

    return step


def _build_pack(instr, ops, t, target, source):
    part, whole = TYPES[f"b{t.bits // len(source.items)}"], TYPES[f"b{t.bits}"]
    reads = [ops.reader(o, part) for o in source.items]
    write = ops.writer(target, whole)

    def step(cta, mask):
        value = 0
        for i, read in enumerate(reads):
            value = value | (read(cta.regs).astype(whole.dtype) << whole.dtype.type(i * part.bits))
        write(cta.regs, mask, value)

    return step


def build_cvta(instr, ops):
    """Address-space windows are not modelled: only global addresses are their own generic form."""
    if "global" not in instr.parts:
        raise unsupported(instr, "only global addresses have a generic form here")
    t = TYPES["b64"]
    read, write = ops.reader(instr.operands[1], t), ops.writer(instr.operands[0], t)
    return lambda cta, mask: write(cta.regs, mask, read(cta.regs))


def build_cvt(instr, ops):
    target, source = instr.parts[-2], instr.parts[-1]
    mods = instr.parts[1:-2]
    known = set(TO_INTEGER) | set(FLOAT_ROUNDING) | {"ftz", "sat", "satfinite", "relu"}
    if not known.issuperset(mods):
        raise unsupported(instr)
    if target in ("bf16x2", "f16x2") and source == "f32":
        return _build_narrow_pair(instr, ops, target[:-2], mods)
    if target in ("e4m3x2", "e5m2x2"):
        return _build_to_fp8(instr, ops, target[:-2], source, mods)
    if source in ("e4m3x2", "e5m2x2") and target == "f16x2":
        return _build_from_fp8(instr, ops, source[:-2])
    if target not in TYPES or source not in TYPES:
        raise unsupported(instr)
    target, source = TYPES[target], TYPES[source]
    read, write = ops.reader(instr.operands[1], source), ops.writer(instr.operands[0], target)
    convert = _scalar_conversion(instr, target, source, mods)
    return lambda cta, mask: write(cta.regs, mask, convert(read(cta.regs)))


def _scalar_conversion(instr, target, source, mods):
    if not source.is_float and not target.is_float:
        return _integer_conversion(target, "sat" in mods)
    if source.is_float and not target.is_float:
        return _float_to_integer(target, source, mods)
    mode = next((m for m in mods if m in FLOAT_ROUNDING), "rn")
    if target.name == "tf32":
        return _to_tf32(instr, mode)
    whole = next((TO_INTEGER[m] for m in mods if m in TO_INTEGER), None)

    def convert(value):
        if "ftz" in mods and source.name == "f32":
            value = numeric.flush_subnormal(value)
        if whole:
            value = whole(value)
        wide = value.astype(np.float64)
        if mode != "rn":
            wide = numeric.round_float(wide, target.name, mode)
        if "relu" in mods:
            wide = np.where(wide > 0, wide, np.where(np.isnan(wide), wide, 0.0))
        if "sat" in mods:
            wide = np.nan_to_num(np.clip(wide, 0, 1), nan=0.0)
        if target.bits == 16:
            return wide
        if value.dtype.kind in "iu" and mode == "rn":
            return value.astype(target.dtype)  # one rounding even from 64-bit integers
        out = wide.astype(target.dtype)
        return numeric.flush_subnormal(out) if "ftz" in mods and target.name == "f32" else out

    return convert


def _integer_conversion(target, saturate):
    limits = np.iinfo(target.dtype)

    def convert(value):
        if saturate:
            low = max(limits.min, np.iinfo(value.dtype).min)
            high = min(limits.max, np.iinfo(value.dtype).max)
            value = np.clip(value, low, high)
        return value.astype(target.dtype)

    return convert


def _float_to_integer(target, source, mods):
    """Saturating. NaN gives 0, or the top bit alone for 64-bit sources or results."""
    whole = next((TO_INTEGER[m] for m in mods if m in TO_INTEGER), np.trunc)
    limits = np.iinfo(target.dtype)
    nan_bits = 1 << 63 if 64 in (target.bits, source.bits) else 0
    nan_value = np.array([nan_bits], np.uint64).astype(UNSIGNED[target.bits]).view(target.dtype)[0]

    def convert(value):
        if "ftz" in mods:
            value = numeric.flush_subnormal(value)
        wide = whole(value.astype(np.float64))
        above, below = wide >= float(limits.max), wide <= float(limits.min)
        safe = np.where(np.isnan(wide) | above | below, 0, wide).astype(target.dtype)
        out = np.where(above, limits.max, np.where(below, limits.min, safe)).astype(target.dtype)
        return np.where(np.isnan(wide), nan_value, out)

    return convert


def _to_tf32(instr, mode):
    """Keep 10 mantissa bits: rna rounds halves away from zero, rn to even, rz truncates."""
    if mode not in ("rna", "rn", "rz"):
        raise unsupported(instr)

    def convert(value):
        bits = value.astype(np.float32).view(np.uint32)
        if mode == "rna":
            rounded = bits + np.uint32(0x1000)
        elif mode == "rn":
            rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
        else:
            rounded = bits
        out = (rounded & np.uint32(0xFFFFE000)).view(np.float32)
        return np.where(np.isfinite(value), out, value)

    return convert


def _build_narrow_pair(instr, ops, half, mods):
    """d = {high: a, low: b}."""
    mode = next((m for m in mods if m in FLOAT_ROUNDING), "rn")
    f32, pair = TYPES["f32"], TYPES[half + "x2"]
    high, low = (ops.reader(o, f32) for o in instr.operands[1:3])
    write = ops.writer(instr.operands[0], pair)

    def step(cta, mask):
        values = np.stack([low(cta.regs), high(cta.regs)]).astype(np.float64)
        if "relu" in mods:
            values = np.where(values < 0, 0.0, values)
        if mode != "rn":
            values = np.stack([numeric.round_float(v, half, mode) for v in values])
        write(cta.regs, mask, values)

    return step


def _build_to_fp8(instr, ops, name, source, mods):
    if "rn" not in mods or "relu" in mods:
        raise unsupported(instr)
    u16 = TYPES["u16"]
    write = ops.writer(instr.operands[0], u16)
    if source == "f32":
        high, low = (ops.reader(o, TYPES["f32"]) for o in instr.operands[1:3])

        def both(regs):
            return (low(regs), high(regs))
    elif source == "f16x2":
        both = ops.reader(instr.operands[1], TYPES["f16x2"])
    else:
        raise unsupported(instr)

    def step(cta, mask):
        low_code, high_code = (numeric.float_to_fp8(v, name).astype(np.uint16) for v in both(cta.regs))
        write(cta.regs, mask, low_code | (high_code << np.uint16(8)))

    return step


def _build_from_fp8(instr, ops, name):
    table = FP8_VALUES[name]
    read, write = ops.reader(instr.operands[1], TYPES["u16"]), ops.writer(instr.operands[0], TYPES["f16x2"])

    def step(cta, mask):
        codes = read(cta.regs)
        write(cta.regs, mask, np.stack([table[codes & 0xFF], table[codes >> 8]]))

    return step


BUILDERS = {"mov": build_mov, "cvt": build_cvt, "cvta": build_cvta}
