"""Emulated Triton kernels against torch."""

import functools
import operator

import pytest
import torch

from ptxrun import MemoryFault, UnsupportedInstruction, run
from ptxrun import sample_kernels as K
from ptxrun import sample_matmul as MM

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rand(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def close(got, want, tolerance):
    scale = want.double().abs().max().clamp(min=1e-30)
    error = ((got.double() - want.double()).abs().max() / scale).item()
    assert error <= tolerance, error


# -- elementwise ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("n", [1, 31, 1000, 2048, 3001])
@pytest.mark.parametrize("num_warps", [1, 4])
def test_add(n, arch, num_warps):
    x, y, out = rand(n), rand(n), torch.full((n,), 7.0)
    stats = run(
        K.add_kernel, (-(-n // 512),), dict(x=x, y=y, out=out, n=n), dict(BLOCK=512), arch=arch, num_warps=num_warps
    )
    assert torch.equal(out, x + y)
    assert stats.loads.bytes_requested == 8 * n and stats.stores.bytes_requested == 4 * n
    assert stats.race_count == 0


@pytest.mark.parametrize("specialize", [True, False])
def test_vector_width_follows_specialization(specialize):
    x, y, out = rand(4096), rand(4096), torch.zeros(4096)
    stats = run(K.add_kernel, (4,), dict(x=x, y=y, out=out, n=4096), dict(BLOCK=1024), specialize=specialize)
    assert torch.equal(out, x + y)
    assert (stats.count("ld.global.v4") > 0) == specialize
    assert stats.coalescing_efficiency == 1.0
    assert stats.loads.unique_sectors == 2 * 4096 // 8


def test_launch_conveniences():
    """A grid function, a parameter equal to 1, and a view with an unaligned start."""
    base = rand(1025)
    x, y, out = base[1:], rand(1024), torch.zeros(1024)
    stats = run(
        K.add_kernel, lambda meta: (-(-meta["n"] // meta["BLOCK"]),), dict(x=x, y=y, out=out, n=1024), dict(BLOCK=256)
    )
    assert stats.grid == (4, 1, 1) and torch.equal(out, x + y)
    run(K.add_kernel, (1,), dict(x=x, y=y, out=out, n=1), dict(BLOCK=256))
    assert out[0] == x[0] + y[0]


@pytest.mark.parametrize("ctas,filled", [([(0, 0, 0)], 512), ([(1, 0, 0)], 488)])
def test_part_of_a_grid(ctas, filled):
    x, y, out = rand(1000), rand(1000), torch.zeros(1000)
    run(K.add_kernel, (2,), dict(x=x, y=y, out=out, n=1000), dict(BLOCK=512), ctas=ctas)
    assert (out == x + y).sum() == filled


def test_math():
    n = 700
    x, y, out = rand(n) * 3, rand(n), torch.zeros(12, n)
    run(K.math_kernel, (3,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=256))
    a, b = x.double(), y.double()
    pos = b.abs() + 0.25
    want = [
        torch.where(a > b, a, -b),
        a.exp(),
        pos.sqrt(),
        a.abs(),
        a * b + pos,
        a / pos,
        pos.log(),
        a.sin(),
        pos.rsqrt(),
        a.floor(),
        torch.erf(a),
        a.exp2(),
    ]
    for got, reference in zip(out, want):
        close(got, reference, 1e-6)


def test_sine_of_large_angles_uses_local_memory():
    n = 256
    x, y, out = rand(n) * 1e6, rand(n), torch.zeros(12, n)
    stats = run(K.math_kernel, (1,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=256))
    close(out[7], x.double().sin(), 1e-6)
    assert stats.count("st.local") > 0


def test_exact_math():
    n = 513
    x, y, out = rand(n) * 3, rand(n), torch.zeros(5, n)
    run(K.exact_math_kernel, (3,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=256))
    b = y.abs() + 0.25
    want = torch.stack([b.double().sqrt().float(), x / b, x.ceil(), torch.minimum(x, b), torch.maximum(x, b)])
    assert torch.equal(out, want)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8])
def test_integer_math(dtype):
    n = 300
    low = 0 if dtype == torch.uint8 else -100
    x = torch.randint(low, 100, (n,)).to(dtype)
    y = torch.randint(1, 50, (n,)).to(dtype) * torch.tensor([1, 1 if low == 0 else -1], dtype=dtype).repeat(n // 2)
    out = torch.zeros(12, n, dtype=dtype)
    run(K.int_math_kernel, (2,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=256))
    quotient = torch.div(x, y, rounding_mode="trunc")
    want = [
        quotient,
        x - quotient * y,
        x & y,
        x | y,
        x ^ y,
        x << 3,
        x >> 3,
        torch.minimum(x, y),
        torch.maximum(x, y),
        -x,
        ~x,
        x * y + (x & 7),
    ]
    for row, (got, reference) in enumerate(zip(out, want)):
        assert torch.equal(got, reference), row


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int8])
@pytest.mark.parametrize(
    "target", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.int8, torch.float64]
)
def test_cast(source, target):
    n = 1000
    x = (torch.randn(n) * 20).to(source)
    out = torch.zeros(n, dtype=target)
    run(K.cast_kernel, (1,), dict(x=x, out=out, n=n), dict(BLOCK=1024))
    assert torch.equal(out, (x.float() * 1.5).to(target))


@pytest.mark.parametrize("target,arch", [(torch.float8_e5m2, 80), (torch.float8_e5m2, 90), (torch.float8_e4m3fn, 90)])
def test_fp8_round_trip(target, arch):
    n = 1000
    x, small, back = rand(n) * 4, torch.zeros(n, dtype=target), torch.zeros(n)
    run(K.cast_kernel, (1,), dict(x=x, out=small, n=n), dict(BLOCK=1024), arch=arch)
    assert torch.equal(small.float(), (x * 1.5).to(target).float())
    run(K.cast_kernel, (1,), dict(x=small, out=back, n=n), dict(BLOCK=1024), arch=arch)
    assert torch.equal(back, small.float() * 1.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("arch", [80, 90])
def test_half_arithmetic(dtype, arch):
    n = 1000
    x, y, out = rand(n, dtype=dtype), rand(n, dtype=dtype), torch.zeros(n, dtype=dtype)
    run(K.half_arith_kernel, (1,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=1024), arch=arch)
    assert torch.equal(out, torch.maximum(x * y, x + y))


def test_int64_offsets():
    x, out = rand(2000), torch.zeros(900)
    start = 2**33
    run(K.int64_offset_kernel, (2,), dict(x=x, out=out, start=1000, n=900), dict(BLOCK=512))
    assert torch.equal(out, x[1000:1900])
    with pytest.raises(MemoryFault, match="out-of-bounds"):
        run(K.int64_offset_kernel, (2,), dict(x=x, out=out, start=start, n=900), dict(BLOCK=512))


def test_gather():
    x, index = rand(5000), torch.randint(0, 5000, (700,))
    out = torch.zeros(700)
    stats = run(K.gather_kernel, (3,), dict(x=x, index=index, out=out, n=700), dict(BLOCK=256))
    assert torch.equal(out, x[index])
    assert stats.traffic["read", "x"].efficiency < 0.3


# -- reductions, scans, branches ---------------------------------------------------------


@pytest.mark.parametrize("n", [1, 100, 777, 1024])
@pytest.mark.parametrize("num_warps", [1, 4, 8])
def test_row_reductions(n, num_warps):
    x = rand(5, n + 3)
    s, hi, lo = (torch.zeros(5) for _ in range(3))
    run(
        K.row_reduce_kernel,
        (5,),
        dict(x=x, s=s, hi=hi, lo=lo, n=n, stride=n + 3),
        dict(BLOCK=1024),
        num_warps=num_warps,
    )
    close(s, x[:, :n].double().sum(1), 1e-6)
    assert torch.equal(hi, x[:, :n].amax(1)) and torch.equal(lo, x[:, :n].amin(1))


@pytest.mark.parametrize("n", [5, 777])
def test_argmin_takes_the_first_of_equals(n):
    x = torch.randint(0, 4, (6, n)).float()
    val, idx = torch.zeros(6), torch.zeros(6, dtype=torch.int32)
    run(K.argmin_kernel, (6,), dict(x=x, val=val, idx=idx, n=n, stride=n), dict(BLOCK=1024))
    assert torch.equal(val, x.amin(1))
    assert torch.equal(idx, torch.tensor(x.numpy().argmin(1), dtype=torch.int32))


def test_custom_combine():
    x = torch.randint(0, 5, (37, 50)).float()
    val, idx = torch.zeros(37), torch.zeros(37, dtype=torch.int32)
    stats = run(
        K.custom_argmin_kernel, (3,), dict(x=x, val=val, idx=idx, rows=37, n=50, stride=50), dict(ROWS=16, BLOCK=64)
    )
    assert torch.equal(val, x.amin(1))
    assert torch.equal(idx, torch.tensor(x.numpy().argmin(1), dtype=torch.int32))
    assert stats.race_count == 0


def test_softmax():
    x, out = rand(4, 900), torch.zeros(4, 900)
    run(K.softmax_kernel, (4,), dict(x=x, out=out, n=900, stride=900), dict(BLOCK=1024))
    close(out, x.double().softmax(1), 1e-6)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_column_sum(stages):
    x, out = rand(150, 100), torch.zeros(100)
    stats = run(K.column_sum_kernel, (2,), dict(x=x, out=out, M=150, N=100), dict(BM=32, BN=64, STAGES=stages))
    close(out, x.double().sum(0), 1e-6)
    assert (stats.count("cp.async") > 0) == (stages > 1) and stats.race_count == 0


def test_cumsum():
    x, out = rand(3, 1000), torch.zeros(3, 1000)
    run(K.cumsum_kernel, (3,), dict(x=x, out=out, n=1000), dict(BLOCK=1024))
    close(out, x.double().cumsum(1), 1e-6)


def test_histogram():
    x, out = torch.randint(0, 64, (1000,), dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    run(K.histogram_kernel, (1,), dict(x=x, out=out, n=1000), dict(BLOCK=1024, BINS=64))
    assert torch.equal(out, torch.bincount(x, minlength=64).int())


def test_sort():
    x, out = rand(2, 256), torch.zeros(2, 256)
    run(K.sort_kernel, (2,), dict(x=x, out=out), dict(BLOCK=256))
    assert torch.equal(out, x.sort(1).values)


def test_branches_and_while():
    n = 1000
    x, out = rand(n) * 20, torch.zeros(n)
    run(K.branch_kernel, (4,), dict(x=x, out=out, n=n), dict(BLOCK=256))
    rows = torch.nn.functional.pad(x, (0, 24)).view(4, 256)  # masked elements are loaded as 0
    rows = torch.where(torch.arange(4)[:, None] % 2 == 0, rows * 2, rows + 3)
    for row in rows:
        while row.max() > 1:
            row *= 0.5
    assert torch.equal(out, rows.flatten()[:n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", [80, 90])
def test_transpose(dtype, arch):
    x, out = rand(50, 100, dtype=dtype), torch.zeros(100, 50, dtype=dtype)
    stats = run(K.transpose_kernel, (2, 2), dict(x=x, out=out, M=50, N=100), dict(BM=32, BN=64), arch=arch)
    assert torch.equal(out, x.T) and stats.race_count == 0


# -- atomics -----------------------------------------------------------------------------


def test_integer_atomics():
    n = 1000
    x = torch.randint(-500, 500, (n,), dtype=torch.int32)
    total, low, high, count = torch.zeros(4), *(torch.zeros(1, dtype=torch.int32) for _ in range(3))
    stats = run(K.atomic_kernel, (4,), dict(x=x, total=total, low=low, high=high, count=count, n=n), dict(BLOCK=256))
    assert torch.equal(total, torch.stack([x[i::4].sum() for i in range(4)]).float())
    assert (low.item(), high.item(), count.item()) == (x.min().item(), x.max().item(), 4)
    assert stats.race_count == 0 and stats.atomics.requests > 0


def test_float_atomics():
    n = 300
    x = rand(n)
    low, high, old = torch.full((1,), 9.0), torch.full((1,), -9.0), torch.ones(2, n)
    run(K.atomic_float_kernel, (2,), dict(x=x, low=low, high=high, old=old, n=n), dict(BLOCK=256))
    assert low.item() == x.min().item() and high.item() == x.max().item()
    assert torch.equal(old[0], x + 1) and torch.equal(old[1], torch.ones(n))


def test_compare_and_swap():
    lock, order = torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    run(K.ticket_kernel, (3,), dict(lock=lock, order=order), {})
    assert lock.item() == 7 and order.tolist() == [0, 7, 7]


# -- matrix multiplication ---------------------------------------------------------------


def tf32_truncated(x):
    return (x.view(torch.int32) & -8192).view(torch.float32)


def matmul_args(m, n, k, dtype=torch.float32):
    a, b, c = rand(m, k, dtype=dtype), rand(k, n, dtype=dtype), torch.full((m, n), float("nan"))
    return dict(a=a, b=b, c=c, M=m, N=n, K=k, sa=k, sb=n, sc=n)


CASES = [
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
]


def reference(a, b, precision):
    if precision == "tf32":
        a, b = tf32_truncated(a), tf32_truncated(b)
    return a.double() @ b.double()


@pytest.mark.parametrize("dtype,precision", CASES)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(64, 64, 64), (50, 70, 90)])
def test_matmul(dtype, precision, stages, size):
    args = matmul_args(*size, dtype=dtype)
    stats = run(MM.matmul_kernel, (2, 2), args, dict(BM=32, BN=64, BK=32, PREC=precision), num_stages=stages)
    close(args["c"], reference(args["a"], args["b"], precision), 1e-6)
    assert stats.race_count == 0, stats.races
    used_mma = not (dtype == torch.float32 and precision == "ieee")
    assert (stats.mma_count > 0) == used_mma and (stats.fma_count > 0) == (not used_mma)


@pytest.mark.parametrize("num_warps", [1, 2, 8])
def test_matmul_warps(num_warps):
    args = matmul_args(40, 100, 64, torch.bfloat16)
    run(MM.matmul_kernel, (2, 2), args, dict(BM=32, BN=64, BK=32, PREC="ieee"), num_warps=num_warps)
    close(args["c"], reference(args["a"], args["b"], "ieee"), 1e-6)


def test_matmul_hopper_without_wgmma():
    args = matmul_args(30, 40, 70, torch.bfloat16)
    stats = run(MM.matmul_kernel, (2, 2), args, dict(BM=16, BN=32, BK=32, PREC="ieee"), arch=90)
    close(args["c"], reference(args["a"], args["b"], "ieee"), 1e-6)
    assert stats.mma_count > 0


@pytest.mark.parametrize("dtype,precision", CASES)
def test_matmul_transposed_operand(dtype, precision):
    m, n, k = 50, 40, 70
    a, b, c = rand(m, k, dtype=dtype), rand(n, k, dtype=dtype), torch.zeros(m, n, dtype=dtype)
    stats = run(
        MM.matmul_transposed_kernel,
        (1, 2),
        dict(a=a, b=b, c=c, M=m, N=n, K=k, sa=k, sb=k, sc=n),
        dict(BM=64, BN=32, BK=32, PREC=precision),
        num_stages=3,
    )
    close(c, reference(a, b.T, precision), 1e-6 if dtype == torch.float32 else 4e-3)
    assert stats.race_count == 0


def test_mma_count_is_the_arithmetic():
    args = matmul_args(64, 64, 64, torch.bfloat16)
    stats = run(MM.matmul_kernel, (1, 1), args, dict(BM=64, BN=64, BK=32, PREC="ieee"))
    assert stats.mma_count == (64 // 16) * (64 // 8) * (64 // 16)
    assert stats.stores.unique_sectors == 64 * 64 * 4 // 32


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_masked_matmul(precision):
    m, n, k = 70, 60, 100
    w, g, h = rand(m, k), rand(k, n), torch.zeros(m, n)
    mask = torch.randint(0, 2, (k,), dtype=torch.int8)
    stats = run(
        MM.masked_matmul_kernel,
        (2, 1),
        dict(w=w, mask=mask, g=g, h=h, M=m, N=n, K=k, sw=k, sg=n, sh=n),
        dict(BM=64, BN=64, BK=32, PREC=precision),
        num_stages=3,
    )
    close(h, reference(w * mask, g, precision), 1e-6)
    assert stats.race_count == 0


@pytest.mark.parametrize(
    "dtype,acc,arch,opcode",
    [
        (torch.int8, torch.int32, 80, "m16n8k32"),
        (torch.float64, torch.float64, 80, "m8n8k4"),
        (torch.float16, torch.float16, 80, "m16n8k16.row.col.f16"),
        (torch.float8_e5m2, torch.float32, 80, "m16n8k16"),
        (torch.float8_e4m3fn, torch.float32, 90, "m16n8k16"),
    ],
)
def test_other_operand_types(dtype, acc, arch, opcode):
    import triton.language as tl

    a, b = ((torch.randn(*s) * (30 if dtype == torch.int8 else 1)).to(dtype) for s in ((32, 64), (64, 16)))
    c = torch.zeros(32, 16, dtype=acc)
    accumulator = {
        torch.int32: tl.int32,
        torch.float64: tl.float64,
        torch.float16: tl.float16,
        torch.float32: tl.float32,
    }[acc]
    stats = run(
        MM.one_tile_matmul_kernel,
        (1,),
        dict(a=a, b=b, c=c),
        dict(BM=32, BN=16, BK=64, ACC=accumulator),
        arch=arch,
        num_warps=2,
    )
    close(c, a.double() @ b.double(), {torch.int32: 0, torch.float64: 1e-15, torch.float16: 2e-3}.get(acc, 1e-6))
    assert stats.count(f"mma.sync.aligned.{opcode}") > 0


def test_batched_matmul():
    a, b, c = rand(4, 32, 32, dtype=torch.float16), rand(4, 32, 32, dtype=torch.float16), torch.zeros(4, 32, 32)
    run(MM.batched_matmul_kernel, (1,), dict(a=a, b=b, c=c), dict(B=4, M=32))
    close(c, a.double() @ b.double(), 1e-6)


@pytest.mark.parametrize(
    "dtype,precision,tolerance",
    [
        (torch.float16, "ieee", 2e-3),
        (torch.bfloat16, "ieee", 1e-2),
        (torch.float32, "tf32x3", 2e-6),
        (torch.float32, "ieee", 2e-6),
    ],
)
@pytest.mark.parametrize("num_warps,stages", [(1, 1), (4, 3)])
@pytest.mark.parametrize("arch", [80, 90])
def test_attention(dtype, precision, tolerance, num_warps, stages, arch):
    n = 70
    q, k, v = (rand(n, 32, dtype=dtype) for _ in range(3))
    o = torch.zeros(n, 32, dtype=dtype)
    stats = run(
        MM.attention_matmul_kernel,
        (3,),
        dict(q=q, k=k, v=v, o=o, n=n),
        dict(D=32, BM=32, BN=32, PREC=precision),
        num_warps=num_warps,
        num_stages=stages,
        arch=arch,
    )
    close(o, (q.double() @ k.double().T).softmax(1) @ v.double(), tolerance)
    assert stats.race_count == 0


def test_wgmma_is_refused_by_name():
    args = matmul_args(64, 64, 64, torch.bfloat16)
    with pytest.raises(UnsupportedInstruction, match="wgmma"):
        run(MM.matmul_kernel, (1, 1), args, dict(BM=64, BN=64, BK=32, PREC="ieee"), arch=90)


# -- other parts of the language -----------------------------------------------------------


def test_random_numbers():
    out = torch.zeros(512)
    run(K.random_kernel, (2,), dict(out=out, key=5), dict(BLOCK=256))
    assert out.min() >= 0 and out.max() < 1 and len(out.unique()) > 500 and abs(out.mean() - 0.5) < 0.05


def test_associative_scan():
    x, out, want, total = rand(256), torch.zeros(256), [], 0.0
    run(K.scan_kernel, (1,), dict(x=x, out=out), dict(BLOCK=256))
    for value in x.tolist():
        total = total * 0.5 + value
        want.append(total)
    close(out, torch.tensor(want), 1e-6)


def test_cache_hints():
    x, out = rand(512), torch.zeros(512)
    stats = run(K.cache_hint_kernel, (1,), dict(x=x, out=out), dict(BLOCK=512))
    close(out, 4 * x, 1e-6)
    assert stats.count("ld.volatile") > 0 and stats.race_count == 0


def test_take_and_topk():
    x, index, out = rand(256), torch.randint(0, 256, (256,), dtype=torch.int32), torch.zeros(256)
    run(K.take_kernel, (1,), dict(x=x, index=index, out=out), dict(N=256))
    assert torch.equal(out, x[index.long()])
    best = torch.zeros(16)
    run(K.topk_kernel, (1,), dict(x=x, out=best), dict(N=256, K=16))
    assert torch.equal(best, x.topk(16).values)


def test_warp_wide_integer_reductions():
    x = torch.randint(-(2**31), 2**31 - 1, (256,), dtype=torch.int32)
    out = torch.zeros(2, 256, dtype=torch.int32)
    stats = run(K.bits_kernel, (1,), dict(x=x, out=out), dict(BLOCK=256))
    bits = [v % 2**32 for v in x.tolist()]
    mixed = functools.reduce(operator.xor, bits) ^ functools.reduce(operator.or_, bits)
    assert [v % 2**32 for v in out[0].tolist()] == [(v * v >> 32) ^ mixed for v in bits]
    assert torch.equal(out[1], (x + x.max() + x.min() + x.sum().int()))
    assert stats.count("redux.sync") > 0


@pytest.mark.parametrize("n", [5000, 100])
def test_persistent_programs(n):
    x, out = rand(n), torch.zeros(n)
    run(K.persistent_kernel, (3,), dict(x=x, out=out, n=n, programs=3), dict(BLOCK=256))
    assert torch.equal(out, 2 * x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("arch", [80, 90])
def test_atomic_scatter(dtype, arch):
    x, out = torch.ones(300), torch.zeros(8, dtype=dtype)
    run(K.atomic_scatter_kernel, (2,), dict(x=x, out=out, n=300), dict(BLOCK=256), arch=arch)
    assert out.tolist() == [38] * 4 + [37] * 4
