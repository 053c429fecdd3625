"""The operators' references against the oracle, their gradients, and what they refuse."""

import operators as ops
import pytest
import torch
from ops import operator_cases as oc
from torch.autograd import forward_ad

from llr_fast.dispatch import backend

LOW = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def reference():
    torch.manual_seed(0)
    with backend("reference"):
        yield


@pytest.mark.parametrize("op,shape,extra,transposed", [*oc.cases()])
def test_values_and_gradients(op, shape, extra, transposed):
    tensors = oc.DIFFERENTIABLE[op][1](shape, torch.float32, transposed)
    found = oc.computed(op, tensors, extra, "reference")
    oc.assert_close(found, oc.expected(op, tensors, extra), torch.float32)
    assert all(t.is_contiguous() for t in found)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
def test_low_precision(op, dtype):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    tensors = inputs(shapes[0], dtype)
    for extra in further:
        found = oc.computed(op, tensors, extra, "reference")
        oc.assert_close(found, oc.expected(op, tensors, extra), dtype)
        assert (found[0].dtype, found[1].dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("op,shape,extra,transposed", [c for c in oc.cases() if min(c[1]) and max(c[1]) < 10])
def test_derivatives_of_first_and_second_order(op, shape, extra, transposed):
    def function(*tensors):
        # Only symmetric Gram matrices are in gram_linear's domain.
        first = tensors[0] + tensors[0].mT if op == "gram_linear" else tensors[0]
        return [t for t in getattr(ops, op)(first, *tensors[1:], *extra) if t.numel()]

    first, slope, *weight = oc.DIFFERENTIABLE[op][1](shape, torch.float64, transposed)
    # Behind dead units |out| has its kink at the very point.
    tensors = [t.contiguous().requires_grad_() for t in (first, slope + 0.5, *weight)]
    torch.autograd.gradcheck(function, tensors)
    torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("op", oc.DIFFERENTIABLE)
@pytest.mark.parametrize("shape", [0, 1])
def test_opcheck(op, shape):
    shapes, inputs, further, _ = oc.DIFFERENTIABLE[op]
    for extra in further:
        tensors = [t.requires_grad_() for t in inputs(shapes[shape])]
        torch.library.opcheck(getattr(torch.ops.llr_fast, op).default, (*tensors, *extra))


def test_opcheck_of_backward_operators():
    t, slope, weight = oc.linear_inputs((3, 4, 4, 5, 7))
    out, stat = ops.tangent_activation(t, slope, "max_abs")
    torch.library.opcheck(
        torch.ops.llr_fast.tangent_activation_backward.default, (out, None, t, slope, stat, "max_abs", True)
    )
    out, stat = ops.masked_linear(t, slope, weight, "sum_abs")
    torch.library.opcheck(
        torch.ops.llr_fast.masked_linear_backward.default, (None, stat, out, t, slope, weight, "sum_abs", False, True)
    )
    gram, slope, weight = oc.gram_inputs((3, 1, 5, 7))
    out, diagonal = ops.gram_linear(gram, slope, weight)
    torch.library.opcheck(
        torch.ops.llr_fast.gram_linear_backward.default, (out, diagonal, gram, slope, weight, True, False, True)
    )


@pytest.mark.parametrize("op", [*oc.DIFFERENTIABLE, "margin_reduce"])
def test_forward_mode_is_refused(op):
    if op == "margin_reduce":
        (x,), norms = oc.layer_inputs((2, (3,)))
        further = (norms,)
    else:
        shapes, inputs, (extra, *_), _ = oc.DIFFERENTIABLE[op]
        x, *others = inputs(shapes[0])
        further = (*others, *extra)

    def call(x):
        return getattr(ops, op)([x] if op == "margin_reduce" else x, *further)

    with pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        torch.func.jvp(call, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        call(forward_ad.make_dual(x, x))


def test_an_expanded_batch_axis_is_like_a_full_one():
    t, slope = oc.tangent_inputs((3, 4, 1, 5))
    for extra in oc.STATISTICS:
        found = oc.computed("tangent_activation", (t.expand(3, 4, 5), slope), (extra,), "reference")
        oc.assert_close(found, oc.expected("tangent_activation", (t.expand(3, 4, 5), slope), (extra,)), torch.float32)


def test_the_first_of_equal_maxima_gets_the_gradient():
    t = torch.tensor([1.0, -2.0, 2.0]).reshape(3, 1, 1).requires_grad_()
    ops.tangent_activation(t, torch.ones(1, 1), "max_abs")[1].sum().backward()
    assert t.grad.flatten().tolist() == [0, -1, 0]


def test_margin_reduce():
    inf, nan = float("inf"), float("nan")
    distances = [[[4, 2], [1, 0], [1, nan], [0, 0]], [[3], [1], [2], [5]]]
    norms = [[[2, 1], [1, 0], [1, 1], [0, 0]], [[1.5], [1], [4], [0]]]
    distances, norms = ([torch.tensor(t, dtype=torch.float32) for t in ts] for ts in (distances, norms))
    value, layer, neuron = ops.margin_reduce(distances, norms)
    torch.testing.assert_close(value, torch.tensor([2.0, 1.0, nan, inf]), equal_nan=True)
    assert layer.tolist() == [0, 0, 0, -1] and neuron.tolist() == [0, 0, 1, -1]
    assert not ops.margin_reduce([d.requires_grad_() for d in distances], norms)[0].requires_grad


@pytest.mark.parametrize("shape", oc.LAYER_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_margins_by_a_loop(shape, dtype):
    distances, norms = oc.layer_inputs(shape, dtype)
    value, layer, neuron = ops.margin_reduce(distances, norms)
    bounds = ops.smallest_bounds(distances, norms, 4)
    assert value.dtype == bounds[0].dtype == dtype
    for b in range(shape[0]):
        ratios = [
            (d / n if n else float("inf"), l, j)
            for l, (ds, ns) in enumerate(zip(distances, norms, strict=True))
            for j, (d, n) in enumerate(zip(ds[b].double().tolist(), ns[b].double().tolist(), strict=True))
        ]
        wanted = [r if r[0] < float("inf") else (float("inf"), -1, -1) for r in sorted(ratios)[:4]]
        first = min(wanted, default=(float("inf"), -1, -1))
        assert (layer[b], neuron[b]) == first[1:] and value[b].item() == pytest.approx(first[0], rel=1e-2)
        found = list(zip(*(t[b].tolist() for t in bounds), strict=True))
        assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], rel=1e-2)
        assert [f[1:] for f in found] == [w[1:] for w in wanted]


@pytest.mark.parametrize("op", ["margin_reduce", "smallest_bounds"])
def test_opcheck_of_margins(op):
    count = (3,) if op == "smallest_bounds" else ()
    torch.library.opcheck(getattr(torch.ops.llr_fast, op).default, (*oc.layer_inputs((2, (3, 4))), *count))


T, S, W, G = torch.ones(3, 2, 4), torch.ones(2, 4), torch.ones(5, 4), torch.ones(2, 4, 4)


@pytest.mark.parametrize(
    "op,args,error,text",
    [
        ("tangent_activation", (T, torch.ones(4), "sum_abs"), ValueError, r"slope: expected shape \[B, n\], got \[4\]"),
        ("tangent_activation", (T[:, :, :3], S, "sum_abs"), ValueError, r"tangents: expected shape \[K, 2 or 1, 4\]"),
        ("tangent_activation", (T[:0], S, "sum_abs"), ValueError, "tangents: expected at least one direction"),
        ("tangent_activation", (T, S.double(), "sum_abs"), TypeError, "slope: expected torch.float32 as tangents has"),
        ("tangent_activation", (T.int(), S, "sum_abs"), TypeError, "tangents: expected float16, .*got torch.int32"),
        ("tangent_activation", (None, S, "sum_abs"), TypeError, "tangents: expected a tensor .*got NoneType"),
        ("tangent_activation", (T, S, "mean"), ValueError, "statistic: expected one of sum_squares, .*got 'mean'"),
        ("tangent_activation", (T.to("meta"), S, "sum_abs"), ValueError, "slope: expected device meta .*got cpu"),
        ("masked_linear", (T, S, W[:, :3], "sum_abs"), ValueError, r"weight: expected shape \[O, 4\], got \[5, 3\]"),
        ("masked_linear", (T, S, W.half(), "sum_abs"), TypeError, "weight: expected torch.float32"),
        ("masked_linear", (T[:0], S, W, "sum_abs"), ValueError, "tangents: expected at least one direction"),
        ("gram_linear", (G[:, :3], S, W), ValueError, r"gram: expected shape \[2 or 1, 4, 4\], got \[2, 3, 4\]"),
        ("gram_linear", (G, S, W.double()), TypeError, "weight: expected torch.float32 as gram has"),
        ("margin_reduce", ([], []), ValueError, "norms: expected one for each of at least one layer, got 0"),
        ("margin_reduce", ([S, S], [S]), ValueError, "norms: expected one for each .*got 1 for 2"),
        ("margin_reduce", ([S, W], [S, W]), ValueError, r"distances\[1\]: expected shape \[2, n_1\], got \[5, 4\]"),
        ("margin_reduce", ([S], [S[:, :3]]), ValueError, r"norms\[0\]: expected shape \[2, 4\], got \[2, 3\]"),
        ("margin_reduce", ([S, S.half()], [S, S]), TypeError, r"distances\[1\]: expected torch.float32"),
        ("smallest_bounds", ([S], [S], -1), ValueError, "count: expected at least 0, got -1"),
    ],
)
def test_wrong_arguments(op, args, error, text):
    with pytest.raises(error, match=text):
        getattr(ops, op)(*args)
