"""PTX scalar types, their numpy form, and the roundings that numpy lacks.

Registers hold unsigned integers of their declared width. While an instruction works on
them, integers are numpy integers of the instruction's width, f32 and f64 are numpy floats,
and the 16-bit float types are widened to float64, where sums and products are exact.
"""

from dataclasses import dataclass

import numpy as np

UNSIGNED = {
    1: np.dtype(bool),
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}
SIGNED = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32), 64: np.dtype(np.int64)}


@dataclass(frozen=True)
class PtxType:
    name: str
    bits: int
    kind: str  # 's' signed, 'u' unsigned or untyped, 'f' float, 'p' predicate

    @property
    def dtype(self):
        """numpy type of the raw bits while in use."""
        if self.kind == "s":
            return SIGNED[self.bits]
        if self.kind == "f" and self.bits >= 32:
            return np.dtype(f"f{self.bits // 8}")
        return UNSIGNED[self.bits]

    @property
    def is_float(self):
        return self.kind == "f"


TYPES = {"pred": PtxType("pred", 1, "p")}
for _bits in (8, 16, 32, 64):
    TYPES[f"s{_bits}"] = PtxType(f"s{_bits}", _bits, "s")
    TYPES[f"u{_bits}"] = PtxType(f"u{_bits}", _bits, "u")
    TYPES[f"b{_bits}"] = PtxType(f"b{_bits}", _bits, "u")
for _name, _bits in (("f16", 16), ("bf16", 16), ("f32", 32), ("f64", 64), ("f16x2", 32), ("bf16x2", 32), ("tf32", 32)):
    TYPES[_name] = PtxType(_name, _bits, "f")


def decode(bits, ptx_type):
    """Unsigned bits of exactly the type's width -> the numpy form described above."""
    name = ptx_type.name
    if name == "f16":
        return bits.view(np.float16).astype(np.float64)
    if name == "bf16":
        return bf16_to_float(bits).astype(np.float64)
    if name in ("f16x2", "bf16x2"):
        half = TYPES[name[:-2]]
        low, high = bits.astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)
        return np.stack([decode(low, half), decode(high, half)])
    if ptx_type.kind == "p":
        return bits
    return bits.view(ptx_type.dtype)


def encode(value, ptx_type):
    """Inverse of decode, rounding floats to nearest even."""
    name = ptx_type.name
    if name == "f16":
        return value.astype(np.float16).view(np.uint16)
    if name == "bf16":
        return float_to_bf16(value)
    if name in ("f16x2", "bf16x2"):
        low, high = (encode(v, TYPES[name[:-2]]).astype(np.uint32) for v in value)
        return low | (high << np.uint32(16))
    if ptx_type.kind == "p":
        return value
    if value.dtype != ptx_type.dtype:
        value = value.astype(ptx_type.dtype)
    return value.view(UNSIGNED[ptx_type.bits])


def resize(bits, width, signed=False):
    """Truncate or extend unsigned bits to another register width."""
    have = bits.dtype.itemsize * 8
    if bits.dtype == bool:
        return bits.astype(UNSIGNED[width])
    if have == width:
        return bits
    if signed and width > have:
        return bits.view(SIGNED[have]).astype(SIGNED[width]).view(UNSIGNED[width])
    return bits.astype(UNSIGNED[width])


def bf16_to_float(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bf16(value):
    """Round float64 (or float32) to bf16 bits, to nearest even, in one rounding."""
    value = np.asarray(value, np.float64)
    bits = value.view(np.uint64)
    odd = (bits >> np.uint64(45)) & np.uint64(1)
    rounded = (bits + np.uint64((1 << 44) - 1) + odd) & ~np.uint64((1 << 45) - 1)
    result = rounded.view(np.float64)
    tiny = np.abs(value) < 2.0**-126
    if tiny.any():
        result = np.where(tiny, np.rint(value * 2.0**133) * 2.0**-133, result)
    out = (result.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(value)
    return np.where(nan, np.uint16(0x7FFF), out) if nan.any() else out


def fused_multiply_add_f32(a, b, c):
    """a*b+c rounded once to float32."""
    product = a.astype(np.float64) * b
    total = product + c
    result = total.astype(np.float32)
    bits = total.view(np.uint64)
    halfway = (bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    small = np.abs(result) < np.float32(2.0**-125)
    if halfway.any() or (small & (result != 0)).any():
        # The float64 sum may itself be rounded: make its last bit sticky (round to odd).
        wide = c.astype(np.float64)
        back = total - product
        error = (product - (total - back)) + (wide - back)
        fix = (error != 0) & np.isfinite(total) & ((bits & np.uint64(1)) == 0)
        toward = np.where((error > 0) == (total > 0), bits + np.uint64(1), bits - np.uint64(1))
        result = np.where(fix, toward, bits).view(np.float64).astype(np.float32)
    return result


def round_float(value64, name, mode):
    """Round float64 to the named narrower type in PTX mode rn, rz, rm or rp; returns float64."""
    if name == "f64":
        return value64
    if name == "f32":
        nearest = value64.astype(np.float32)
        step = np.nextafter
        wide, inf = nearest.astype(np.float64), np.float32(np.inf)
        down, up = step(nearest, -inf).astype(np.float64), step(nearest, inf).astype(np.float64)
    else:
        half = TYPES[name]
        bits = encode(value64, half)
        wide = decode(bits, half)
        next_up = decode((bits + np.uint16(1)), half)  # away from zero
        next_down = decode((bits - np.uint16(1)), half)  # towards zero
        positive = value64 > 0
        tiny = 2.0**-24 if name == "f16" else 2.0**-133
        down = np.where(wide == 0, -tiny, np.where(positive, next_down, next_up))
        up = np.where(wide == 0, tiny, np.where(positive, next_up, next_down))
    if mode == "rn":
        return wide
    above, below = wide > value64, wide < value64
    if mode == "rz":
        above, below = above & (value64 > 0), below & (value64 < 0)
    elif mode == "rm":
        below = False
    elif mode == "rp":
        above = False
    return np.where(above, down, np.where(below, up, wide))


def flush_subnormal(value):
    """Replace subnormal float32 values with zero of the same sign (.ftz)."""
    tiny = np.abs(value) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), value), value)


def _fp8_table(exponent_bits, mantissa_bits):
    """Value of each of the 256 codes of e4m3 (no infinities) or e5m2."""
    bias = (1 << (exponent_bits - 1)) - 1
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if exponent_bits == 4:
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    else:
        top = exponent == 31
        value = np.where(top & (fraction == 0), np.inf, np.where(top, np.nan, value))
    return sign * value


FP8_VALUES = {"e4m3": _fp8_table(4, 3), "e5m2": _fp8_table(5, 2)}


def float_to_fp8(value, name):
    """Round to the nearest fp8 code, ties to even, saturating to the largest finite value."""
    table = FP8_VALUES[name][:128]
    codes = np.flatnonzero(np.isfinite(table))
    grid = table[codes]
    size = np.minimum(np.abs(value), grid[-1])
    high = np.clip(np.searchsorted(grid, size), 1, len(grid) - 1)
    low = high - 1
    to_low, to_high = size - grid[low], grid[high] - size
    pick = np.where((to_low < to_high) | ((to_low == to_high) & (codes[low] % 2 == 0)), low, high)
    out = codes[pick] | np.where(np.signbit(value), 0x80, 0)
    return np.where(np.isnan(value), 0x7F, out).astype(np.uint8)
