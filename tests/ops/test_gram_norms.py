"""gram_norms of every backend against the Jacobians themselves."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad

from llr_fast.dispatch import backend, backends
from llr_fast.ops.gram_norms import gram_norms, gram_norms_total

# B, D, widths: one layer, unit sizes, more than one tile and cache line, bottlenecks, an empty batch.
SHAPES = [
    (1, 3, (5,)), (1, 1, (1, 1)), (3, 2, (7, 4)), (5, 50, (33, 17, 40)), (4, 20, (64, 1, 64, 31, 16)),
    (2, 7, (130, 100, 150)), (0, 4, (3, 2)),
]  # fmt: skip
NATIVE = pytest.mark.skipif(backends()["native"] is not None, reason="the C++ extension is not built")


@pytest.fixture(autouse=True, params=["reference", pytest.param("native", marks=NATIVE)])
def implementation(request):
    torch.manual_seed(0)
    with backend(request.param):
        yield request.param


def chain(shape, slopes="relu", dtype=torch.float64, transposed=False):
    batch, *dims = shape[0], shape[1], *shape[2]
    weights = [torch.randn(o, i, dtype=dtype) / i**0.5 for i, o in itertools.pairwise(dims)]
    drawn = [torch.randn(batch, n, dtype=dtype) for n in dims[1:-1]]
    if slopes == "relu":
        drawn = [(s > 0).to(dtype) for s in drawn]
    elif slopes == "dead":  # samples without an active neuron, in the first layer or in the last
        drawn = [(s > 0).to(dtype) for s in drawn]
        for sample in range(0, batch, 2):
            drawn[-sample % 3 // 2][sample] = 0
    if transposed:
        weights, drawn = ([t.T.contiguous().T for t in tensors] for tensors in (weights, drawn))
    return weights, drawn


def by_jacobians(weights, slopes, total=False):
    jacobians = [weights[0].expand(len(slopes[0]) if slopes else 1, -1, -1)]
    for weight, slope in zip(weights[1:], slopes):
        jacobians.append(torch.einsum("oi,bi,bid->bod", weight, slope, jacobians[-1]))
    norms = [j.square().sum(2) for j in jacobians]
    return [torch.cat(norms, 1).sum()] if total else norms


def by_grams(weights, slopes, total):
    return [gram_norms_total(weights, slopes)] if total else gram_norms(weights, slopes)


def with_gradients(function, weights, slopes, total, upstream, by_slopes):
    tensors = [t.detach().requires_grad_(i < len(weights) or by_slopes) for i, t in enumerate((*weights, *slopes))]
    found = function(tensors[: len(weights)], tensors[len(weights) :], total)
    loss = sum((upstream(norms.shape).to(norms.dtype) * norms).sum() for norms in found)
    wanted = [t for t in tensors if t.requires_grad]
    return [*found, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


def upstream(kind):
    generator = torch.Generator().manual_seed(1)

    def draw(shape):
        numbers = torch.randn(shape, generator=generator)
        return numbers * (torch.rand(shape, generator=generator) < 0.25) if kind == "sparse" else numbers

    return draw


def assert_same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        scale = b.abs().max().item() if b.numel() else 0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("total,kind", [(False, "dense"), (False, "sparse"), (True, "dense")])
@pytest.mark.parametrize("slopes", ["relu", "leaky", "dead"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, slopes, total, kind):
    if slopes == "dead" and len(shape[2]) == 1:
        pytest.skip("one layer has no slopes")
    for dtype, tolerance, by_slopes in ((torch.float64, 1e-12, True), (torch.float32, 1e-5, False)):
        weights, drawn = chain(shape, slopes, dtype, transposed=by_slopes)
        wide = [[t.double() for t in part] for part in (weights, drawn)]
        expected = with_gradients(by_jacobians, *wide, total, upstream(kind), by_slopes)
        assert_same(with_gradients(by_grams, weights, drawn, total, upstream(kind), by_slopes), expected, tolerance)
        with torch.no_grad():
            assert_same(by_grams(weights, drawn, total), expected[: 1 if total else len(weights)], tolerance)


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, (2,)), (2, 2, (3, 4, 2))])
def test_derivatives_of_first_and_second_order(shape, total):
    weights, slopes = chain(shape, "leaky")
    tensors = [t.requires_grad_() for t in (*weights, *slopes)]

    def function(*t):
        return tuple(by_grams(t[: len(weights)], t[len(weights) :], total))

    torch.autograd.gradcheck(function, tensors)
    torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_batch(threads):
    """Sums over the batch do not depend on how it is divided; an uneven division covers every sample."""
    weights, slopes = chain((5, 9, (20, 30, 10)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = with_gradients(by_grams, weights, slopes, True, upstream("dense"), True)
    finally:
        torch.set_num_threads(before)
    assert_same(found, with_gradients(by_jacobians, weights, slopes, True, upstream("dense"), True), 1e-12)


def test_float32_stays_close_where_norms_cancel():
    """tr(W H W^T) = <H, W^T W> adds positive and negative terms."""
    weights, slopes = chain((4, 300, (300, 300, 300)), "leaky")
    found = by_grams([w.float() for w in weights], [s.float() for s in slopes], True)
    for a, b in zip(found, by_jacobians(weights, slopes, True), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


def test_low_precision_is_computed_in_float32():
    weights, slopes = chain((3, 6, (8, 5)), dtype=torch.bfloat16)
    norms = gram_norms([w.requires_grad_() for w in weights], slopes)
    assert all(n.dtype == torch.float32 for n in norms)
    assert_same(norms, by_jacobians([w.double() for w in weights], [s.double() for s in slopes]), 1e-5)
    norms[1].sum().backward()
    assert weights[0].grad.dtype == torch.bfloat16


def test_opcheck():
    weights, slopes = chain((3, 4, (5, 6, 2)), "leaky")
    tensors = [t.requires_grad_() for t in weights], [t.requires_grad_() for t in slopes]
    detached = [[t.detach() for t in part] for part in tensors]
    op = torch.ops.llr_fast
    for total in (False, True):
        torch.library.opcheck(op.gram_norms.default, (*tensors, total))
        torch.library.opcheck(
            op.gram_norms_backward.default, (torch.rand(3, 3 if total else 13).double(), *detached, total, True)
        )
    torch.library.opcheck(op.gram_norms_total.default, (*tensors, True))
    total, *gradients = op.gram_norms_total(*detached, True)
    torch.library.opcheck(op.gram_norms_total_backward.default, (total, *detached, *gradients))


@pytest.mark.parametrize("total", [False, True])
def test_compiled(total):
    weights, slopes = chain((3, 4, (5, 6, 2)))
    weights = [w.requires_grad_() for w in weights]

    def loss(*weights):
        return sum(norms.mean() for norms in by_grams(weights, slopes, total))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*weights), weights)
    assert_same(torch.autograd.grad(compiled(*weights), weights), expected, 1e-12)


def test_forward_mode_is_refused():
    weights, slopes = chain((3, 4, (5, 6)))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="gram_norms: forward-mode"):
        gram_norms([weights[0], forward_ad.make_dual(weights[1], weights[1])], slopes)


W, V, S = torch.ones(3, 2), torch.ones(4, 3), torch.ones(5, 3)


@pytest.mark.parametrize(
    "weights,slopes,error,text",
    [
        ([], [], ValueError, "slopes: expected one fewer than weights, got 0 for 0 weights"),
        ([W, V], [], ValueError, "slopes: expected one fewer than weights, got 0 for 2 weights"),
        ([W, V], [S[:, :2]], ValueError, r"slopes\[0\]: expected shape \[B, 3\], got \[5, 2\]"),
        ([W, V.T], [S], ValueError, r"weights\[1\]: expected shape \[n_2, 3\], got \[3, 4\]"),
        ([W, V, V.T], [S, torch.ones(6, 4)], ValueError, r"slopes\[1\]: expected shape \[5, 4\], got \[6, 4\]"),
        ([W, V.double()], [S], TypeError, r"weights\[1\]: expected torch.float32 as weights\[0\] has"),
        ([W.int()], [], TypeError, r"weights\[0\]: expected float16, .*got torch.int32"),
    ],
)
def test_wrong_arguments(weights, slopes, error, text):
    with pytest.raises(error, match=text):
        gram_norms(weights, slopes)
