"""Faulty kernels must be caught, repaired ones must not."""

import re

import pytest
import torch

from ptxrun import MemoryFault, compile_kernel, execute, run
from ptxrun import sample_kernels as K
from ptxrun import sample_matmul as MM
from ptxrun import sample_wrong as W
from ptxrun.memory import GlobalMemory

torch.set_num_threads(1)


def rand(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(n))


def test_missing_mask_is_caught():
    n = 1000
    x, y, out = rand(n), rand(n), torch.zeros(n)
    with pytest.raises(MemoryFault, match="out-of-bounds global access") as error:
        run(W.add_unmasked_kernel, (1,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=1024))
    assert "ld.global" in str(error.value) and "sample_wrong.py" in str(error.value)
    assert error.value.thread is not None


def test_store_one_past_the_end_is_caught():
    n = 1000
    x, y, out = rand(n), rand(n), torch.zeros(n)
    with pytest.raises(MemoryFault) as error:
        run(W.add_wrong_mask_kernel, (1,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=1024))
    assert "st.global" in str(error.value) and "out" in str(error.value)


def test_neighbouring_memory_is_not_touched():
    n = 1000
    whole = torch.zeros(n + 200)
    x, y, out = rand(n), rand(n), whole[100 : 100 + n]
    run(K.add_kernel, (2,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=512))
    assert torch.equal(whole[100:-100], x + y) and not whole[:100].any() and not whole[-100:].any()


def test_poison_shows_unwritten_elements():
    n = 1000
    x, y, out = rand(n), rand(n), torch.zeros(n)
    run(K.add_kernel, (1,), dict(x=x, y=y, out=out, n=n), dict(BLOCK=512), poison=("out",))
    assert torch.equal(out[:512], (x + y)[:512]) and out[512:].isnan().all()


def test_race_between_threads_is_caught():
    x, out = rand(256), torch.zeros(256)
    stats = run(W.scatter_race_kernel, (1,), dict(x=x, out=out, n=256), dict(BLOCK=256))
    assert {r.kind for r in stats.races} == {"write/write"} and stats.races[0].segment == "out"


def test_race_between_programs_is_caught():
    x, out = rand(512), torch.zeros(256)
    stats = run(W.cross_program_race_kernel, (2,), dict(x=x, out=out, n=256), dict(BLOCK=256))
    assert {r.kind for r in stats.races} == {"cross-CTA write/write"}
    stats = run(W.cross_program_race_kernel, (1,), dict(x=x, out=out, n=256), dict(BLOCK=256))
    assert stats.race_count == 0


def test_exchange_through_global_memory_needs_a_barrier():
    x, scratch, out = rand(256), torch.zeros(256), torch.zeros(256)
    args = dict(x=x, scratch=scratch, out=out)
    stats = run(W.barrier_free_exchange_kernel, (1,), args, dict(BLOCK=256))
    assert {r.kind for r in stats.races} == {"read/write"}
    stats = run(W.fenced_exchange_kernel, (1,), args, dict(BLOCK=256))
    assert stats.race_count == 0 and torch.equal(out, x.flip(0))


def without(pattern, which, fn, args, constexprs, **options):
    """Stats of a compiled kernel from which one matching PTX statement has been removed."""
    compiled, names = compile_kernel(fn, args, constexprs, **options)
    ptx = compiled.asm["ptx"]
    match = list(re.finditer(pattern, ptx))[which]
    memory = GlobalMemory()
    values = [memory.register(n, args[n]) if torch.is_tensor(args[n]) else args[n] for n in names]
    return execute(
        ptx[: match.start()] + ptx[match.end() :],
        (1, 1, 1),
        values + [0, 0],
        memory,
        shared_bytes=compiled.metadata.shared,
        threads=128,
    )


@pytest.mark.parametrize("which", [0, 1, -1])
def test_reduction_without_one_of_its_barriers(which):
    x, s, hi, lo = rand(777), torch.zeros(1), torch.zeros(1), torch.zeros(1)
    stats = without(
        r"bar\.sync\s+0;", which, K.row_reduce_kernel, dict(x=x, s=s, hi=hi, lo=lo, n=777, stride=777), dict(BLOCK=1024)
    )
    assert stats.races[0].space == "shared"


def test_transpose_without_its_barrier():
    x, out = rand(32 * 64), torch.zeros(64 * 32)
    stats = without(r"bar\.sync\s+0;", 0, K.transpose_kernel, dict(x=x, out=out, M=32, N=64), dict(BM=32, BN=64))
    assert stats.race_count > 0


def test_pipelined_matmul_without_its_wait():
    a, b, c = rand(64 * 128), rand(128 * 64), torch.zeros(64 * 64)
    args = dict(a=a, b=b, c=c, M=64, N=64, K=128, sa=128, sb=64, sc=64)
    stats = without(
        r"cp\.async\.wait_group\s+\d+;",
        0,
        MM.matmul_kernel,
        args,
        dict(BM=64, BN=64, BK=32, PREC="tf32x3"),
        num_stages=3,
    )
    assert stats.race_count > 0
    assert not torch.allclose(c.view(64, 64), a.view(64, 128) @ b.view(128, 64), atol=1e-2)
