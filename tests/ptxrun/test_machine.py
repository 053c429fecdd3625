"""Hand-written PTX: control flow, synchronisation, single instructions, numbers, speed."""

import random
import time
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch

from ptxrun import PtxError, SyncError, UnsupportedInstruction, execute, numeric
from ptxrun.memory import GlobalMemory

# -- numbers -----------------------------------------------------------------------------


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(3000).astype(np.float32) for _ in range(2))
    c = (rng.standard_normal(3000) * 2.0 ** rng.integers(-40, 40, 3000)).astype(np.float32)
    # Sums that sit just beside the midpoint of two floats, where rounding twice goes wrong.
    a[:4], b[:4] = 2.0**-30, [2.0**-31, -(2.0**-31), 2.0**-31, -(2.0**-31)]
    c[:4] = 1.0
    a[4:6], b[4:6], c[4:6] = 1 + 2.0**-12, [1 + 2.0**-12, 1 + 2.0**-12], [2.0**-80, -(2.0**-80)]
    got = numeric.fused_multiply_add_f32(a, b, c)
    for x, y, z, r in zip(a, b, c, got):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(r)) - exact)
        for neighbour in (np.nextafter(r, np.float32(-np.inf)), np.nextafter(r, np.float32(np.inf))):
            assert error <= abs(Fraction(float(neighbour)) - exact)


def test_bf16_rounding_matches_torch():
    x = torch.randn(20000) * torch.exp(torch.randn(20000) * 20)
    x[:4] = torch.tensor([float("inf"), -float("inf"), 1e-40, -3e-39])
    got = numeric.float_to_bf16(x.numpy())
    assert np.array_equal(got, x.bfloat16().view(torch.int16).numpy().view(np.uint16))


# -- hand-written PTX: divergence, barriers, warp-wide instructions ------------------------

HEADER = (
    ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p0)\n{\n"
    ".reg .pred %p<9>;\n.reg .b32 %r<20>;\n.reg .b64 %rd<9>;\n.shared .align 4 .b8 buf[512];\n"
    "ld.param.b64 %rd1, [p0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, 4;\n"
    "add.s64 %rd3, %rd1, %rd2;\n"
)
FOOTER = "st.global.b32 [%rd3], %r2;\nret;\n}\n"


def run_ptx(body, threads=64, footer=FOOTER):
    out = np.zeros(threads, np.int32)
    memory = GlobalMemory()
    address = memory.register("out", out)
    stats = execute(HEADER + body + footer, (1, 1, 1), [address], memory, shared_bytes=512, threads=threads)
    return out, stats


def test_divergent_branch_with_loop():
    out, stats = run_ptx("""
        mov.b32 %r2, 0;
        and.b32 %r3, %r1, 7;
        setp.lt.u32 %p1, %r3, 3;
        @%p1 bra $small;
        $loop:
        add.s32 %r2, %r2, %r3;
        add.s32 %r3, %r3, -1;
        setp.gt.s32 %p2, %r3, 0;
        @%p2 bra $loop;
        bra.uni $join;
        $small:
        mov.b32 %r2, -1;
        $join:
        shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;
        add.s32 %r2, %r2, %r4;
    """)
    one = np.array([-1 if t % 8 < 3 else sum(range(t % 8 + 1)) for t in range(64)])
    assert np.array_equal(out, one + one[np.arange(64) ^ 1])
    assert stats.instructions["shfl.sync.bfly.b32"] == 2  # all threads met again before it


def test_early_exit_of_some_threads():
    out, _ = run_ptx("mov.b32 %r2, 5;\nsetp.gt.u32 %p1, %r1, 40;\n@%p1 ret;\nbar.sync 0;\n")
    assert out.tolist() == [5] * 41 + [0] * 23


def test_barrier_orders_shared_memory():
    exchange = """
        shl.b32 %r3, %r1, 2;
        mov.b32 %r4, buf;
        add.s32 %r5, %r4, %r3;
        st.shared.b32 [%r5], %r1;
        {barrier}
        sub.s32 %r6, 252, %r3;
        add.s32 %r6, %r6, %r4;
        ld.shared.b32 %r2, [%r6];
    """
    out, stats = run_ptx(exchange.replace("{barrier}", "bar.sync 0;"))
    assert out.tolist() == list(range(63, -1, -1)) and stats.race_count == 0
    _, stats = run_ptx(exchange.replace("{barrier}", ""))
    assert stats.races[0].kind == "read/write" and stats.races[0].space == "shared"
    _, stats = run_ptx(exchange.replace("{barrier}", "bar.warp.sync -1;"))
    assert stats.race_count > 0  # the exchange crosses warps
    within = exchange.replace("sub.s32 %r6, 252, %r3;", "xor.b32 %r6, %r3, 4;")
    _, stats = run_ptx(within.replace("{barrier}", "bar.warp.sync -1;"))
    assert stats.race_count == 0
    _, stats = run_ptx(within.replace("{barrier}", ""))
    assert stats.race_count > 0


def test_barrier_reached_by_half_the_threads_is_reported():
    with pytest.raises(SyncError):
        run_ptx("""
            setp.lt.u32 %p1, %r1, 32;
            @%p1 bra $first;
            bar.sync 1;
            bra $join;
            $first:
            bar.sync 2;
            $join:
            mov.b32 %r2, 1;
        """)


def test_shuffle_by_part_of_a_warp_is_reported():
    with pytest.raises(SyncError, match="part of a warp"):
        run_ptx(
            "mov.b32 %r2, 3;\nsetp.lt.u32 %p1, %r1, 16;\n@%p1 bra $skip;\n"
            "shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;\nbar.sync 1;\nret;\n$skip:\nbar.sync 2;\n"
        )


def test_asynchronous_copy_needs_its_wait():
    body = """
        shl.b32 %r3, %r1, 2;
        mov.b32 %r4, buf;
        add.s32 %r5, %r4, %r3;
        st.global.b32 [%rd3], 7;
        cp.async.ca.shared.global [%r5], [%rd3], 4;
        cp.async.commit_group;
        {wait}
        bar.sync 0;
        ld.shared.b32 %r2, [%r5];
    """
    out, _ = run_ptx(body.replace("{wait}", "cp.async.wait_group 0;"))
    assert (out == 7).all()
    out, _ = run_ptx(body.replace("{wait}", ""))
    assert (out == 0).all()
    other = body.replace("ld.shared.b32 %r2, [%r5];", "xor.b32 %r6, %r5, 128;\nld.shared.b32 %r2, [%r6];")
    _, stats = run_ptx(other.replace("{wait}", "cp.async.wait_group 0;"))
    assert stats.race_count == 0
    _, stats = run_ptx(other.replace("{wait}", ""))
    assert stats.race_count > 0


@pytest.mark.parametrize("stride,degree", [(4, 1), (8, 2), (16, 4), (128, 32)])
def test_bank_conflicts(stride, degree):
    body = f"mul.lo.s32 %r3, %r1, {stride};\nmov.b32 %r4, buf;\nadd.s32 %r3, %r3, %r4;\nld.shared.b32 %r2, [%r3];\n"
    out = np.zeros(32, np.int32)
    memory = GlobalMemory()
    address = memory.register("out", out)
    text = (HEADER + body + FOOTER).replace("buf[512]", "buf[4096]")
    stats = execute(text, (1, 1, 1), [address], memory, shared_bytes=4096, threads=32)
    assert stats.shared["read"].worst_degree == degree
    assert stats.shared["read"].conflict_degree == degree


@pytest.mark.parametrize(
    "step,sectors,efficiency", [(0, 1, 0.125), (4, 4, 1.0), (8, 8, 0.5), (32, 32, 0.125), (64, 32, 0.125)]
)
def test_sectors_of_strided_loads(step, sectors, efficiency):
    data = np.zeros(32 * 64 // 4 + 64, np.int32)
    memory = GlobalMemory()
    address = -(-memory.register("data", data) // 64) * 64
    body = f"mul.wide.u32 %rd4, %r1, {step};\nadd.s64 %rd5, %rd1, %rd4;\nld.global.b32 %r2, [%rd5];\nret;\n}}\n"
    stats = execute(HEADER + body, (1, 1, 1), [address], memory, shared_bytes=512, threads=32)
    assert (stats.sectors_read, stats.coalescing_efficiency) == (sectors, efficiency)
    assert stats.loads.bytes_requested == 128 and stats.loads.requests == 1


@pytest.mark.parametrize("width,step,passes,degree", [(2, 8, 2, 1), (2, 16, 2, 2), (4, 16, 4, 1), (4, 32, 4, 2)])
def test_wide_shared_accesses_take_several_passes(width, step, passes, degree):
    items = ", ".join(f"%r{4 + i}" for i in range(width))
    body = f"mul.lo.s32 %r3, %r1, {step};\nst.shared.v{width}.b32 [%r3], {{{items}}};\nret;\n}}\n"
    text = (HEADER + body).replace("buf[512]", "buf[4096]")
    stats = execute(text, (1, 1, 1), [0], GlobalMemory(), shared_bytes=4096, threads=32)
    shared = stats.shared["write"]
    assert (shared.ideal_wavefronts, shared.conflict_degree) == (passes, degree)


@pytest.mark.parametrize("pitch,degree", [(16, 1), (32, 2), (128, 8)])
@pytest.mark.parametrize("suffix", ["", ".trans"])
def test_load_matrix(pitch, degree, suffix):
    """Items of 16 bits numbered by row and column; lane l gets row l//4, columns 2(l%4) and +1."""
    body = f"""
        mul.lo.s32 %r3, %r1, {pitch};
        shl.b32 %r4, %r1, 19;
        shl.b32 %r5, %r1, 3;
        or.b32 %r4, %r4, %r5;
        add.s32 %r5, %r4, 0x10000;
        add.s32 %r6, %r4, 0x30002;
        add.s32 %r7, %r4, 0x50004;
        add.s32 %r8, %r4, 0x70006;
        st.shared.v4.b32 [%r3], {{%r5, %r6, %r7, %r8}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{%r9, %r10, %r11, %r2}}, [%r3];
    """
    text = (HEADER + body + FOOTER).replace("buf[512]", "buf[4096]")
    out = np.zeros(32, np.uint32)
    memory = GlobalMemory()
    stats = execute(text, (1, 1, 1), [memory.register("out", out)], memory, shared_bytes=4096, threads=32)
    lane = np.arange(32)
    group, first = lane // 4, 2 * (lane % 4)

    def item(row, column):
        return 8 * (24 + row) + column  # the fourth matrix starts at row 24

    if suffix:
        low, high = item(first, group), item(first + 1, group)
    else:
        low, high = item(group, first), item(group, first + 1)
    assert np.array_equal(out, low + (high << 16))
    assert stats.shared["read"].conflict_degree == degree and stats.race_count == 0


def test_two_fragments_that_exit_apart():
    out, stats = run_ptx("""
        mov.b32 %r2, 1;
        and.b32 %r3, %r1, 1;
        setp.eq.b32 %p1, %r3, 0;
        @!%p1 bra $odd;
        mov.b32 %r2, 2;
        st.global.b32 [%rd3], %r2;
        ret;
        $odd:
        mov.b32 %r2, 3;
    """)
    assert out.tolist() == [2, 3] * 32
    assert stats.instructions["ret"] == 4  # both warps, in both halves


def test_bits_votes_and_permutes():
    out, _ = run_ptx("""
        setp.lt.u32 %p1, %r1, 5;
        vote.sync.ballot.b32 %r3, %p1, -1;
        popc.b32 %r4, %r3;
        clz.b32 %r5, %r3;
        bfe.u32 %r6, %r1, 1, 3;
        prmt.b32 %r7, %r1, 0, 0x4440;
        lop3.b32 %r8, %r1, %r6, %r7, 0x96;
        mul.hi.u32 %r9, %r1, -1;
        mad.lo.s32 %r2, %r4, 1000, %r5;
        add.s32 %r2, %r2, %r6;
        xor.b32 %r2, %r2, %r8;
        add.s32 %r2, %r2, %r9;
    """)
    for t in range(64):
        ballot, field = (0x1F if t < 32 else 0), (t >> 1) & 7
        leading = 32 - ballot.bit_length()
        high = (t * 0xFFFFFFFF) >> 32
        assert out[t] == ((bin(ballot).count("1") * 1000 + leading + field) ^ (t ^ field ^ t)) + high


def test_unsupported_instruction_is_named():
    with pytest.raises(UnsupportedInstruction, match=r"tex\.2d"):
        run_ptx("tex.2d.v4.f32.f32 %r2, %r3;\n")


def test_endless_loop_is_stopped():
    out = np.zeros(32, np.int32)
    memory = GlobalMemory()
    with pytest.raises(PtxError, match="endless loop"):
        execute(
            HEADER + "$x:\nadd.s32 %r2, %r2, 1;\nbra $x;\n" + FOOTER,
            (1, 1, 1),
            [memory.register("out", out)],
            memory,
            shared_bytes=512,
            threads=32,
            max_instructions=1000,
        )


# -- speed ---------------------------------------------------------------------------------


def test_speed():
    """2,000 dynamic instructions of a 128-thread CTA in well under a second of one core."""
    body = (
        "mov.b32 %r2, 0;\nmov.b32 %r3, 0;\n$loop:\n"
        + "add.s32 %r2, %r2, %r3;\nfma.rn.f32 %r5, %r2, %r3, %r5;\n" * 50
        + "add.s32 %r3, %r3, 1;\nsetp.lt.s32 %p1, %r3, 20;\n@%p1 bra $loop;\n"
    )
    start = time.process_time()
    _, stats = run_ptx(body, threads=128)
    assert stats.total_instructions >= 2000 * 4
    assert time.process_time() - start < 0.5


# -- single instructions against plain Python ---------------------------------------------

M32 = 2**32 - 1


def signed(v):
    return v - 2**32 if v >> 31 else v


def truncated_quotient(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def permuted(a, b, c):
    source = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        byte = source[c >> 4 * i & 7]
        out.append((255 if byte & 128 else 0) if c >> 4 * i & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def field(a, start, length, is_signed):
    start, length = start & 255, length & 255
    if not length:
        return 0
    value = signed(a) if is_signed else a
    value >>= start
    value &= (1 << min(length, 32)) - 1
    if is_signed and length < 32 and value >> (length - 1):
        value -= 1 << length
    return value


INTEGER_CASES = {
    "add.s32 %r2, %r3, %r4": lambda a, b, c: a + b,
    "sub.u32 %r2, %r3, %r4": lambda a, b, c: a - b,
    "mul.lo.s32 %r2, %r3, %r4": lambda a, b, c: a * b,
    "mul.hi.u32 %r2, %r3, %r4": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %r2, %r3, %r4": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mad.lo.u32 %r2, %r3, %r4, %r5": lambda a, b, c: a * b + c,
    "div.s32 %r2, %r3, %r4": lambda a, b, c: truncated_quotient(signed(a), signed(b)),
    "div.u32 %r2, %r3, %r4": lambda a, b, c: a // b,
    "rem.s32 %r2, %r3, %r4": lambda a, b, c: signed(a) - truncated_quotient(signed(a), signed(b)) * signed(b),
    "rem.u32 %r2, %r3, %r4": lambda a, b, c: a % b,
    "shl.b32 %r2, %r3, %r6": lambda a, b, c: a << (c & 63),
    "shr.u32 %r2, %r3, %r6": lambda a, b, c: a >> (c & 63),
    "shr.s32 %r2, %r3, %r6": lambda a, b, c: signed(a) >> (c & 63),
    "shf.l.wrap.b32 %r2, %r3, %r4, %r6": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.wrap.b32 %r2, %r3, %r4, %r6": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.l.clamp.b32 %r2, %r3, %r4, %r6": lambda a, b, c: (b << 32 | a) << min(c & 63, 32) >> 32,
    "shf.r.clamp.b32 %r2, %r3, %r4, %r6": lambda a, b, c: (b << 32 | a) >> min(c & 63, 32),
    "prmt.b32 %r2, %r3, %r4, %r5": permuted,
    "bfe.u32 %r2, %r3, %r6, %r7": lambda a, b, c: field(a, c & 63, c >> 8 & 63, False),
    "bfe.s32 %r2, %r3, %r6, %r7": lambda a, b, c: field(a, c & 63, c >> 8 & 63, True),
    "min.s32 %r2, %r3, %r4": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %r2, %r3, %r4": lambda a, b, c: max(a, b),
    "brev.b32 %r2, %r3": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "clz.b32 %r2, %r3": lambda a, b, c: 32 - a.bit_length(),
    "popc.b32 %r2, %r3": lambda a, b, c: a.bit_count(),
    "bfind.u32 %r2, %r3": lambda a, b, c: a.bit_length() - 1,
    "lop3.b32 %r2, %r3, %r4, %r5, 0xE8": lambda a, b, c: (a & b) | (a & c) | (b & c),
    "cvt.s32.s8 %r2, %r3": lambda a, b, c: (a & 255) - (a & 128) * 2,
    "cvt.u32.u16 %r2, %r3": lambda a, b, c: a & 0xFFFF,
    "add.cc.u32 %r2, %r3, %r4;\naddc.u32 %r2, %r5, 0": lambda a, b, c: c + (a + b >> 32),
    "mad.lo.cc.u32 %r2, %r3, %r4, %r5;\nmadc.hi.u32 %r2, %r3, %r4, %r5": lambda a, b, c: (
        (a * b >> 32) + c + ((a * b & M32) + c >> 32)
    ),
}


def run_on_inputs(code, inputs):
    """Run code with %r3, %r4, %r5 loaded from rows of inputs; the result is %r2."""
    threads = inputs.shape[1]
    data = np.vstack([inputs, np.zeros((1, threads), np.uint32)])
    memory = GlobalMemory()
    address = memory.register("data", data)
    loads = "".join(f"ld.global.b32 %r{3 + i}, [%rd3+{4 * threads * i}];\n" for i in range(3))
    parts = "and.b32 %r6, %r5, 63;\nshr.u32 %r7, %r5, 8;\nand.b32 %r7, %r7, 63;\n"
    text = HEADER + loads + parts + code + f";\nst.global.b32 [%rd3+{12 * threads}], %r2;\nret;\n}}\n"
    execute(text, (1, 1, 1), [address], memory, shared_bytes=512, threads=threads)
    return data[3]


@pytest.mark.parametrize("code", INTEGER_CASES, ids=lambda c: c.split()[0])
def test_integer_instruction(code):
    rng = np.random.default_rng(1)
    inputs = rng.integers(0, 2**32, (3, 512), dtype=np.uint64).astype(np.uint32)
    inputs[:2, :64] >>= rng.integers(0, 31, (2, 64)).astype(np.uint32)
    inputs[:, 100:104] = [[0, 1, M32, 2**31]] * 3
    inputs[1] = np.where(inputs[1] == 0, 3, inputs[1])
    got = run_on_inputs(code, inputs)
    for a, b, c, r in zip(*inputs.tolist(), got.tolist()):
        assert r == INTEGER_CASES[code](a, b, c) & M32, (a, b, c)


def float_to_int(low, high, rounding):
    def convert(a, b):
        if np.isnan(a):
            return 0
        return int(min(max(float(rounding(np.float64(a))), low), high))

    return convert


FLOAT_CASES = {
    "setp.lt.f32 %p1, %r3, %r4": lambda a, b: a < b,
    "setp.ltu.f32 %p1, %r3, %r4": lambda a, b: not a >= b,
    "setp.neu.f32 %p1, %r3, %r4": lambda a, b: a != b,
    "setp.ne.f32 %p1, %r3, %r4": lambda a, b: a < b or a > b,
    "setp.equ.f32 %p1, %r3, %r4": lambda a, b: not (a < b or a > b),
    "setp.num.f32 %p1, %r3, %r4": lambda a, b: a == a and b == b,
    "setp.nan.f32 %p1, %r3, %r4": lambda a, b: a != a or b != b,
    "cvt.rzi.s32.f32 %r2, %r3": float_to_int(-(2**31), 2**31 - 1, np.trunc),
    "cvt.rni.s32.f32 %r2, %r3": float_to_int(-(2**31), 2**31 - 1, np.rint),
    "cvt.rmi.u32.f32 %r2, %r3": float_to_int(0, 2**32 - 1, np.floor),
    "cvt.rpi.s16.f32 %r2, %r3": float_to_int(-(2**15), 2**15 - 1, np.ceil),
}


@pytest.mark.parametrize("code", FLOAT_CASES, ids=lambda c: c.split()[0])
def test_comparison_and_conversion(code):
    rng = np.random.default_rng(2)
    values = (rng.standard_normal((3, 128)) * 10.0 ** rng.integers(-3, 14, (3, 128))).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.5, -2.5], np.float32)
    values[0, :64], values[1, :64] = np.repeat(special, 8), np.tile(special, 8)
    full = code + ";\nselp.b32 %r2, 1, 0, %p1" if code.startswith("setp") else code
    got = run_on_inputs(full, values.view(np.uint32))
    for a, b, r in zip(values[0], values[1], got.tolist()):
        assert r == int(FLOAT_CASES[code](a, b)) & M32, (a, b)


@pytest.mark.parametrize(
    "mode,name",
    [
        ("rn", "f16"),
        ("rz", "f16"),
        ("rm", "f16"),
        ("rp", "f16"),
        ("rn", "bf16"),
        ("rz", "bf16"),
        ("rz", "f32"),
        ("rp", "f32"),
    ],
)
def test_rounding_modes_bracket_the_value(mode, name):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(5000) * 2.0 ** rng.integers(-26, 15, 5000)
    got = numeric.round_float(x, name, mode)
    nearest = numeric.round_float(x, name, "rn")
    assert np.array_equal(numeric.round_float(got, name, "rn"), got)  # representable
    assert (np.abs(got - x) >= np.abs(nearest - x)).all()
    if mode == "rz":
        assert (np.abs(got) <= np.abs(x)).all()
    elif mode != "rn":
        assert ((got <= x) if mode == "rm" else (got >= x)).all()


# -- random control flow against one thread at a time --------------------------------------


class RandomProgram:
    """Blocks of arithmetic with jumps anywhere; at most 40 blocks per thread, then a shuffle."""

    CODE: ClassVar = {
        "add": "add.s32 %r2, %r2, {};\n",
        "xor": "xor.b32 %r2, %r2, {};\n",
        "mul": "mul.lo.s32 %r2, %r2, {};\n",
    }

    def __init__(self, rng):
        count = rng.randrange(2, 9)
        self.blocks = []
        for _ in range(count):
            names = [rng.choice(["add", "xor", "mul"]) for _ in range(rng.randrange(1, 4))]
            operations = [(name, rng.randrange(1, 9999, 2)) for name in names]
            kind = rng.choice(["branch", "branch", "jump", "fall"])
            self.blocks.append((operations, kind, rng.randrange(count + 1), rng.randrange(5)))

    def text(self):
        lines, end = "mov.b32 %r2, %r1;\nmov.b32 %r9, 0;\n", len(self.blocks)
        for i, (operations, kind, target, bit) in enumerate(self.blocks):
            lines += f"$B{i}:\nadd.s32 %r9, %r9, 1;\nsetp.gt.s32 %p2, %r9, 40;\n@%p2 bra $B{end};\n"
            lines += "".join(self.CODE[name].format(value) for name, value in operations)
            if kind == "branch":
                lines += f"shr.u32 %r4, %r2, {bit};\nand.b32 %r4, %r4, 1;\nsetp.eq.b32 %p1, %r4, 0;\n"
                lines += f"@!%p1 bra $B{target};\n"
            elif kind == "jump":
                lines += f"bra.uni $B{target};\n"
        lines += f"$B{end}:\nbar.sync 0;\nshfl.sync.bfly.b32 %r5, %r2, 1, 31, -1;\n"
        return lines + "add.s32 %r2, %r2, %r5;\n"

    def one_thread(self, value):
        i = visits = 0
        while i < len(self.blocks):
            operations, kind, target, bit = self.blocks[i]
            visits += 1
            if visits > 40:
                break
            for name, operand in operations:
                value = {"add": value + operand, "xor": value ^ operand, "mul": value * operand}[name] & M32
            i = target if kind == "jump" or (kind == "branch" and value >> bit & 1) else i + 1
        return value


@pytest.mark.parametrize("seed", range(60))
def test_random_control_flow(seed):
    program = RandomProgram(random.Random(seed))
    out, _ = run_ptx(program.text())
    alone = np.array([program.one_thread(t) for t in range(64)], np.int64)
    assert np.array_equal(out.view(np.uint32), (alone + alone[np.arange(64) ^ 1]) & M32)
