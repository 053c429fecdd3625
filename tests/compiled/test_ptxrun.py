"""The compiled kernels, executed as sm_80 code by an emulator that counts memory traffic and finds races.

Sizes that are no multiple of 16 make Triton compile another variant, with narrower loads.
"""

import math

import pytest
import torch
from ops import operator_cases as oc
from ops import roll_activation_cases as rc
from ops import roll_cases as pools

pytest.importorskip("triton")
import triton

from benches import offline
from llr_fast.ops.gram_linear import reference as gram_reference
from llr_fast.ops.gram_linear import triton as gram
from llr_fast.ops.margin_reduce import reference as margin_reference
from llr_fast.ops.margin_reduce import triton as margin
from llr_fast.ops.masked_linear import reference as linear_reference
from llr_fast.ops.masked_linear import triton as linear
from llr_fast.ops.roll_activation import reference as roll_reference
from llr_fast.ops.roll_activation import triton as roll
from llr_fast.ops.roll_max_pool import reference as pool_reference
from llr_fast.ops.roll_max_pool import triton as pool
from llr_fast.ops.tangent_activation import reference as tangent_reference
from llr_fast.ops.tangent_activation import triton as tangent

pytestmark = pytest.mark.triton

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def aligned_and_odd(aligned, odd):
    """Pairs of a shape and a type: every type for the first shape, no float64 for other aligned ones, then in turn."""
    pairs = [(shape, dtype) for i, shape in enumerate(aligned) for dtype in (DTYPES[:2] if i else DTYPES)]
    return pairs + [(shape, DTYPES[i % 3]) for i, shape in enumerate(odd)]


def with_statistics(pairs):
    """The statistics in turn."""
    return [(shape, oc.STATISTICS[(i + i // 3) % 3], dtype) for i, (shape, dtype) in enumerate(pairs)]


def of_aligned(cases, sizes):
    """Those of shapes whose sizes, as `sizes(shape)`, are multiples of 64, for which the traffic is known."""
    return [case for case in cases if not any(size % 64 for size in sizes(case[0]))]


def of_odd(cases, sizes):
    return [case for case in cases if case not in of_aligned(cases, sizes)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run(launcher, *args, reachable=()):
    """What a launcher returns, and the statistics of each kernel that it launched."""
    package, found = launcher.__module__.removesuffix(".triton"), []

    def act(launch):
        stats = offline.emulate(launch, reachable)
        assert not stats.races, stats.report()
        found.append(stats)

    with offline.intercepted(package, act), oc.poisoned_memory():
        return launcher(*args), found


def check(launcher, reference, args, dtype):
    found, stats = run(launcher, *args)
    oc.assert_close(list(found), [t.double() for t in reference(*args)], dtype)
    return found, stats


def cotangent(tensor, dtype=None):
    return torch.randn(tensor.shape, dtype=torch.float64).to(dtype or tensor.dtype)


def size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def assert_moves(stats, must_move):
    """The distinct sectors that each kernel touches against the bytes that the operator must move."""
    moved = 32 * sum(t.unique_sectors for s in stats for t in s.traffic.values())
    assert moved <= 1.05 * must_move, "\n".join(s.report() for s in stats)


# Triton 3.6 passes tiles between layouts through shared memory in ways that later versions do not.
CONFLICTS = 2.0 if tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6) else math.inf


def assert_coalesced(stats, *names):
    """Loads and stores of the large arguments ask for whole sectors; shared memory serves them without conflicts."""
    for s in stats:
        for (_, name), traffic in s.traffic.items():
            assert name not in names or traffic.efficiency >= 0.9, s.report()
        assert all(t.conflict_degree <= CONFLICTS for t in s.shared.values()), s.report()


TANGENTS = aligned_and_odd(
    [(5, 4, 4, 64), (20, 3, 1, 128), (1, 64, 64, 64)], [(3, 5, 5, 7), (19, 3, 1, 37), (1, 1, 1, 1)]
)


def run_tangents(shape, statistic, dtype):
    """The arguments and the results of both launches, whose values are checked, with their statistics."""
    tangents, slope = oc.tangent_inputs(shape, dtype)
    (out, stat), stats = check(
        tangent.launch_tangent_activation, tangent_reference.tangent_activation, (tangents, slope, statistic), dtype
    )
    args = (cotangent(out), cotangent(stat), tangents, slope, stat, statistic, True)
    gradients, backward = check(
        tangent.launch_tangent_activation_backward, tangent_reference.tangent_activation_backward, args, dtype
    )
    return args, out, stat, gradients, stats, backward


def last(shape):
    return shape[-1:]


@pytest.mark.parametrize("shape,statistic,dtype", of_odd(with_statistics(TANGENTS), last))
def test_tangent_activation_of_odd_sizes(shape, statistic, dtype):
    run_tangents(shape, statistic, dtype)


@pytest.mark.parametrize("shape,statistic,dtype", of_aligned(with_statistics(TANGENTS), last))
def test_tangent_activation(shape, statistic, dtype):
    args, out, stat, gradients, stats, backward = run_tangents(shape, statistic, dtype)
    tangents, slope = args[2:4]
    assert_coalesced([*stats, *backward], "p_tangents", "p_out", "p_d_out", "p_d_tangents")
    is_shared = shape[2] < shape[1]
    assert_moves(stats, size(tangents, slope, out, stat))
    if not is_shared:  # each tangent is asked for once; a batch's are read again for other samples, from the cache
        large = [stats[0].traffic["read", "p_tangents"], stats[0].traffic["write", "p_out"]]
        assert 32 * sum(t.sectors for t in large) == size(tangents, out)
    if is_shared:  # two kernels, of which the second serves the gradient by slope
        backward = backward[:1]
    first_index = size(stat.long()) / len(stat) if is_shared and statistic == "max_abs" else 0
    assert_moves(backward, size(*args[:5], *gradients) + first_index)


PRODUCTS = aligned_and_odd(
    [(4, 32, 32, 64, 64), (1, 64, 64, 64, 64), (66, 2, 1, 64, 128)], [(3, 5, 5, 7, 9), (21, 4, 1, 33, 18)]
)


def run_products(shape, statistic, dtype):
    """The arguments and the results of all launches, whose values are checked, with their statistics."""
    tangents, slope, weight = oc.linear_inputs(shape, dtype)
    args = (tangents, slope, weight, statistic)
    (out, stat), stats = check(linear.launch_masked_linear, linear_reference.masked_linear, (*args, True), dtype)
    (empty, same), diagonal_stats = check(
        linear.launch_masked_linear, linear_reference.masked_linear, (*args, False), dtype
    )
    assert empty.numel() == 0 and torch.equal(stat, same)
    backward_args = (cotangent(out), cotangent(stat), out, tangents, slope, weight, statistic, True, True)
    gradients, backward = check(
        linear.launch_masked_linear_backward, linear_reference.masked_linear_backward, backward_args, dtype
    )
    return backward_args, out, stat, gradients, stats, diagonal_stats, backward


def widths(shape):
    return shape[3:]


@pytest.mark.parametrize("shape,statistic,dtype", of_odd(with_statistics(PRODUCTS), widths))
def test_masked_linear_of_odd_sizes(shape, statistic, dtype):
    run_products(shape, statistic, dtype)


@pytest.mark.parametrize("shape,statistic,dtype", of_aligned(with_statistics(PRODUCTS), widths))
def test_masked_linear(shape, statistic, dtype):
    backward_args, out, stat, gradients, stats, diagonal_stats, backward = run_products(shape, statistic, dtype)
    tangents, slope, weight = backward_args[3:6]
    # Not the statistic's gradient in float32 beside halves: a thread's eight take two loads, each of half its sectors.
    large = ("p_tangents", "p_out", "p_d_out", "p_d_tangents", "p_weight", "p_d_weight")
    assert_coalesced([*stats, *backward], *large)
    # Where a sample's directions fall into several tiles of rows, each writes a statistic of its own.
    slots = linear.slots(shape[0], linear.blocks(dtype)["BLOCK_R"])
    read = size(tangents, slope, weight) + slots * size(stat)
    assert_moves(stats, read + size(out))
    assert_moves(diagonal_stats, read)
    # One launch reads what arrives once. What remains to be summed, over a sample's tiles or over the batch that shares
    # the tangents, it writes as float32 parts; a weight of so few rows is summed at once.
    assert len(backward) == 1
    arriving = size(*backward_args[:6]) + (statistic == "max_abs") * size(stat)
    slots = linear.slots(shape[0], linear.backward_blocks(dtype)["BLOCK"])
    d_slope = slots * stat.element_size() * slope.numel() if slots > 1 else size(gradients[1])
    is_shared = shape[2] < shape[1]
    d_tangents = stat.element_size() * shape[0] * slope.numel() if is_shared else size(gradients[0])
    assert_moves(backward, arriving + d_tangents + d_slope + size(gradients[2]))


def test_parts_of_the_rows():
    """A weight's gradient that is summed in parts, the last of them shorter, with samples that lie in two of them."""
    args = oc.linear_inputs((10, 130, 130, 16, 16), torch.float32)
    out, stat = linear_reference.masked_linear(*args, "max_abs", True)
    backward_args = (cotangent(out), cotangent(stat), out, *args, "max_abs", True, True)
    gradients, (stats,) = check(
        linear.launch_masked_linear_backward, linear_reference.masked_linear_backward, backward_args, torch.float32
    )
    assert stats.traffic["write", "p_d_weight"].unique_sectors * 32 == 2 * size(gradients[2])


@pytest.mark.parametrize("setting,tolerance", [("highest", 2e-6), ("high", 2e-3)])
def test_products_follow_torchs_setting(setting, tolerance):
    """TF32 has 10 bits of mantissa, and instructions for products of matrices."""
    args = (*oc.linear_inputs((4, 8, 8, 64, 128), torch.float32), "sum_squares", True)
    torch.set_float32_matmul_precision(setting)
    try:
        (out, _), (stats,) = run(linear.launch_masked_linear, *args)
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = linear_reference.masked_linear(*(t.double() for t in args[:3]), *args[3:])[0]
    assert (out - exact).abs().max() <= tolerance * exact.abs().max()
    assert stats.mma_count == {"highest": 0, "high": 512}[setting]


GRAMS = aligned_and_odd([(2, 2, 128, 64), (3, 1, 64, 128)], [(2, 2, 37, 70), (1, 1, 5, 3)])


def run_grams(shape, dtype, store):
    """The arguments and the results of both launches, whose values are checked, with their statistics."""
    matrix, slope, weight = oc.gram_inputs(shape, dtype)
    args = (matrix, slope, weight, store)
    (out, diagonal), stats = check(gram.launch_gram_linear, gram_reference.gram_linear, args, dtype)
    assert not store or torch.equal(out, out.mT)
    d_out = cotangent(out) if store else None
    backward_args = (d_out, cotangent(diagonal), matrix, slope, weight, True, True, True)
    gradients, backward = check(
        gram.launch_gram_linear_backward, gram_reference.gram_linear_backward, backward_args, dtype
    )
    assert torch.equal(gradients[0], gradients[0].mT)
    return backward_args, out, diagonal, gradients, stats, backward


def rows_and_columns(shape):
    return shape[2:]


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("shape,dtype", of_odd(GRAMS, rows_and_columns))
def test_gram_linear_of_odd_sizes(shape, dtype, store):
    run_grams(shape, dtype, store)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("shape,dtype", of_aligned(GRAMS, rows_and_columns))
def test_gram_linear(shape, dtype, store):
    backward_args, out, diagonal, gradients, stats, backward = run_grams(shape, dtype, store)
    d_out, _, matrix, slope, weight = backward_args[:5]
    large = ("p_gram", "p_out", "p_left", "p_d_out", "p_d_gram", "p_weight", "p_transposed", "p_d_weight")
    assert_coalesced([*stats, *backward], *large)
    tiles = -(-shape[2] // gram.blocks(dtype)["BLOCK"])
    # W D G D goes through scratch memory, or the second product could not be halved by symmetry.
    left = len(slope) * size(weight)
    if store:
        assert_moves(stats[:1], size(matrix, slope, weight) + left)
        assert_moves(stats[1:], left + size(weight, out, diagonal))
    else:
        assert_moves(stats, size(matrix, slope, weight) + tiles * size(diagonal))
    # So does (H + H^T) W D, which is read for the gradients by the Gram matrix and by slope and weight, or computed by
    # both from the diagonal, if that is all that arrives. Their sums over the batch and over tiles of outputs are of
    # float32 parts.
    arriving = left if store else size(diagonal)
    if store:
        assert_moves(backward[:1], size(d_out, diagonal, slope, weight) + left)
    tiles = -(-shape[3] // gram.blocks(dtype)["BLOCK"])
    parts = diagonal.element_size() * len(slope) * (tiles * shape[2] + weight.numel())
    d_gram = diagonal.element_size() * len(slope) * matrix[0].numel() if len(matrix) == 1 else size(gradients[0])
    by_gram, by_weight = backward[-2:]
    # From the diagonal alone the first needs the weight in both of its forms.
    assert_moves([by_gram], arriving + size(slope, weight) + d_gram + (0 if store else size(weight)))
    assert_moves([by_weight], arriving + size(slope, weight, matrix) + parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_linear_moves_each_matrix_once(dtype, monkeypatch):
    """Scratch memory is of one size for any batch, which a cache holds; of the rest, only the weight is read again."""
    matrix, slope, weight = oc.gram_inputs((4, 4, 64, 64), dtype)
    monkeypatch.setattr(gram, "SCRATCH", 2 * size(weight))
    (out, diagonal), stats = check(
        gram.launch_gram_linear, gram_reference.gram_linear, (matrix, slope, weight, True), dtype
    )
    backward_args = (cotangent(out), cotangent(diagonal), matrix, slope, weight, True, False, False)
    gradients, backward = check(
        gram.launch_gram_linear_backward, gram_reference.gram_linear_backward, backward_args, dtype
    )
    assert len(stats) == len(backward) == 4  # two kernels for each of two groups
    for launches, tensors in ((stats, (matrix, out)), (backward, (backward_args[0], gradients[0]))):
        scratch = [t for s in launches for (_, name), t in s.traffic.items() if name == "p_left"]
        assert len(scratch) == 4 and all(32 * t.unique_sectors == gram.SCRATCH for t in scratch)
        moved = sum(t.unique_sectors for s in launches for (_, name), t in s.traffic.items() if name != "p_left")
        weights = 2 * (3 if launches is backward else 2) * size(weight)
        assert 32 * moved <= 1.05 * (size(*tensors, diagonal, slope) + weights), "\n".join(s.report() for s in launches)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float64, torch.float32)])
@pytest.mark.parametrize("shape", [(2, (1024, 2048)), (2, (5, 2048, 1)), (1, (1,)), (2, (0, 7, 0, 3))])
def test_margin_reduce(shape, dtypes):
    distances, norms = oc.layer_inputs(shape, *dtypes)
    found, stats = run(margin.launch_margin_reduce, distances, norms, reachable=(*distances, *norms))
    for a, b in zip(found, margin_reference.margin_reduce(distances, norms), strict=True):
        assert torch.equal(a, b)
    if shape[1][0] >= 64:
        layers = [t for (_, name), t in stats[0].traffic.items() if name.startswith("reachable")]
        assert 32 * sum(t.sectors for t in layers) <= 1.05 * size(*distances, *norms)
    found, _ = run(margin.launch_smallest_bounds, distances, norms, 3, reachable=(*distances, *norms))
    for a, b in zip(found, margin_reference.smallest_bounds(distances, norms, 3), strict=True):
        assert torch.equal(a, b)


def run_rolls(name, shape, directions, dtypes, store):
    """The arguments and the results of both launches, whose values are checked, with their statistics."""
    args = rc.arguments(name, *rc.inputs(name, shape, directions, dtypes), store=store)
    coarser = max(dtypes, key=oc.TOLERANCE.__getitem__)
    found, stats = check(roll.launch_roll_activation, roll_reference.roll_activation, args, coarser)
    assert torch.equal(found[3], roll_reference.roll_activation(*args)[3])
    given = rc.backward_arguments(args, *map(cotangent, found[:3]), found[3])
    gradients, backward = check(
        roll.launch_roll_activation_backward, roll_reference.roll_activation_backward, given, coarser
    )
    assert len(stats) == len(backward) == 1
    return args, found, given, gradients, stats, backward


@pytest.mark.parametrize(
    "name,directions,dtypes,store",
    [
        ("relu", 1, (torch.float32, torch.float32), True),
        ("relu", 1, (torch.bfloat16, torch.bfloat16), True),
        ("relu6", 1, (torch.float32, torch.bfloat16), True),
        ("leaky_relu", 3, (torch.bfloat16, torch.float32), True),
        ("hardtanh, kinks at 0.1 and 0.7", 1, (torch.float64, torch.float64), True),
        ("clamp from above", 3, (torch.float16, torch.float16), False),
        ("prelu of channels", 3, (torch.bfloat16, torch.bfloat16), True),
    ],
)
def test_roll_activation(name, directions, dtypes, store):
    shape = (4, 8, 16, 16)
    args, found, given, gradients, stats, backward = run_rolls(name, shape, directions, dtypes, store)
    large = ("p_z", "p_tangents", "p_out", "p_masked", "p_code", "p_d_out", "p_d_masked", "p_d_z", "p_d_tangents")
    assert_coalesced([*stats, *backward], *large)
    assert_moves(stats, size(*args[:3], *found))
    assert_moves(backward, size(*given[:6], *gradients))
    # No byte of them is asked for twice.
    for s, tensors in ((stats, (*args[:2], *found[:2], found[3])), (backward, (*given[:2], *given[3:5], *gradients))):
        assert 32 * sum(t.sectors for (_, name), t in s[0].traffic.items() if name in large) == size(*tensors)


@pytest.mark.parametrize(
    "name,shape,directions,dtype",
    [
        ("relu", (1, 1), 1, torch.float32),
        ("bent", (3, 7, 5, 23), 3, torch.bfloat16),
        ("prelu of channels, kink at 0.5", (3, 601), 2, torch.float64),
        ("prelu of channels", (1, 2, 35, 37), 1, torch.bfloat16),
    ],
)
def test_roll_activation_of_odd_sizes(name, shape, directions, dtype):
    run_rolls(name, shape, directions, (dtype, dtype), True)


@pytest.mark.parametrize("value,below", [(-torch.inf, 0.0), (torch.inf, 0.5), (torch.nan, 0.0), (torch.nan, 0.5)])
def test_roll_activation_of_special_values(value, below):
    """One at a time, for the emulator takes NaN of different bits for different values."""
    z = torch.cat([rc.SPECIAL[rc.SPECIAL.isfinite()], torch.tensor([value])])
    tangents = torch.ones(1, len(z))
    args = (z, tangents, None, None, below, 0.0, 1.0, 1, True)
    given = (torch.ones_like(z), tangents, torch.ones(2), tangents, None, None, below, 1)
    for launcher, reference in (
        (roll.launch_roll_activation, roll_reference.roll_activation),
        (roll.launch_roll_activation_backward, roll_reference.roll_activation_backward),
    ):
        found, wanted = run(launcher, *args)[0], reference(*args)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        args = (*given[:4], wanted[-1], *given[4:])


def run_pools(windows, inner, directions, dtypes, samples=4):
    """The arguments and the results of both launches, whose values are checked, with their statistics."""
    args = pools.arguments(windows, inner, directions, *dtypes, samples)
    coarser = max(dtypes, key=oc.TOLERANCE.__getitem__)
    found, stats = check(pool.launch_roll_max_pool, pool_reference.roll_max_pool, args, coarser)
    assert torch.equal(found[3], pool_reference.roll_max_pool(*args)[3])
    given = pools.backward_arguments(args, *map(cotangent, found[:3]), found[3])
    gradients, backward = check(
        pool.launch_roll_max_pool_backward, pool_reference.roll_max_pool_backward, given, coarser
    )
    return args, found, given, gradients, stats, backward


SIDE_BY_SIDE = ((16, 16), (2, 2), (2, 2), (0, 0), (1, 1))
BEFORE_RESNET = ((16, 16), (3, 3), (2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize(
    "windows,inner,directions,dtypes",
    [
        (SIDE_BY_SIDE, 1, 1, (torch.float32, torch.float32)),
        (SIDE_BY_SIDE, 32, 3, (torch.float32, torch.bfloat16)),
        (BEFORE_RESNET, 1, 3, (torch.bfloat16, torch.float32)),
        (BEFORE_RESNET, 32, 1, (torch.float32, torch.float32)),
        (BEFORE_RESNET, 32, 1, (torch.bfloat16, torch.bfloat16)),
    ],
)
def test_roll_max_pool(windows, inner, directions, dtypes):
    """Each kernel moves a value once, if a cache holds those that windows share."""
    args, found, given, gradients, stats, backward = run_pools(windows, inner, directions, dtypes, 32 // inner)
    assert len(stats) == 1
    assert_moves(stats, size(*args[:2], *found))
    to_winners = size(given[2]) // 2 * (1 + directions) * found[3].numel()
    for kernel, others in zip(backward, (given[:2], gradients), strict=True):  # of windows, and of their entries
        assert_moves([kernel], size(*given[2:6], *others) + to_winners)
    if inner > 1:  # else neighbours lie `stride` apart
        large = ("p_out", "p_winning", "p_index", "p_d_out", "p_d_winning", "p_d_z", "p_d_tangents")
        assert_coalesced([*stats, *backward], *large)
        written = [
            s.traffic[key] for s in (*stats, *backward) for key in s.traffic if key in [("write", n) for n in large]
        ]
        assert all(t.sectors == t.unique_sectors for t in written)


@pytest.mark.parametrize(
    "windows,inner,directions,dtype",
    [
        (((5, 6), (3, 2), (2, 2), (1, 0), (1, 1)), 1, 1, torch.float32),
        (((6, 7), (2, 3), (1, 2), (0, 1), (2, 1)), 5, 3, torch.bfloat16),
        (((5, 5), (3, 3), (1, 1), (1, 1), (1, 1)), 3, 2, torch.float16),
        (((7, 9), (5, 5), (1, 1), (2, 2), (1, 1)), 3, 2, torch.float64),  # winners first, and then entries
        (((7, 7), (7, 7), (7, 7), (0, 0), (1, 1)), 1, 2, torch.float32),
        (((4, 3, 5), (2, 2, 3), (2, 1, 2), (1, 0, 1), (1, 1, 1)), 1, 2, torch.float32),
        (((7,), (3,), (5,), (1,), (1,)), 1, 1, torch.float32),
    ],
)
def test_roll_max_pool_of_odd_sizes(windows, inner, directions, dtype):
    run_pools(windows, inner, directions, (dtype, dtype), 2)
