"""Inputs of the fused operators and what they should give, by formulas that share no code with the library."""

import contextlib
from collections.abc import Callable, Iterator

import operators as ops
import torch
from torch import Tensor

from llr_fast.dispatch import backend

STATISTICS = ("sum_squares", "sum_abs", "max_abs")
# [K, B, B or 1 where the batch shares the tangents, n]: odd, unit and empty sizes, and more than one tile of each.
TANGENT_SHAPES = [(3, 4, 1, 5), (3, 4, 4, 5), (1, 1, 1, 1), (20, 3, 3, 70), (37, 9, 1, 33), (2, 0, 0, 3), (2, 2, 1, 0)]
# [K, B, B or 1, I, O]
LINEAR_SHAPES = [
    (3, 4, 1, 5, 7), (4, 20, 20, 9, 5), (1, 70, 70, 3, 2), (1, 1, 1, 1, 1), (70, 2, 1, 33, 70), (5, 30, 30, 9, 5),
    (100, 3, 3, 20, 17),
    (2, 0, 0, 3, 2), (2, 2, 2, 0, 3), (2, 2, 1, 3, 0),
]  # fmt: skip
# [B, B or 1 where the batch shares the Gram matrix, n, O]
GRAM_SHAPES = [
    (3, 1, 5, 7), (2, 2, 70, 5), (2, 2, 5, 70), (1, 1, 1, 1), (3, 1, 33, 66),
    (0, 0, 3, 2), (2, 2, 0, 3), (2, 1, 3, 0),
]  # fmt: skip
# B, and the neurons of each layer
LAYER_SHAPES = [(3, (5, 2000, 1)), (1, (1,)), (2, (0, 7, 0, 3)), (0, (3,)), (2, (0,)), (2, (1024, 1025))]


def random(*shape: int, dtype: torch.dtype = torch.float32, transposed: bool = False) -> Tensor:
    """Normal numbers, optionally in memory as the transpose of the last two axes is."""
    if transposed and len(shape) > 1:
        return random(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def slopes(batch: int, n: int, dtype: torch.dtype, transposed: bool = False) -> Tensor:
    """Slopes of a leaky activation with dead units, of which one sample has nothing else."""
    slope = torch.randn(n, batch).T if transposed else torch.randn(batch, n)
    slope = slope.sign().clamp(min=0) + 0.25 * (slope > 1)
    slope[: batch // 2] = slope[: batch // 2] * (torch.arange(n) % 3 > 0)
    slope[:1] = 0
    return slope.to(dtype)


def tangent_inputs(shape, dtype=torch.float32, transposed=False):
    K, B, shared, n = shape
    return random(K, shared, n, dtype=dtype, transposed=transposed), slopes(B, n, dtype, transposed)


def linear_inputs(shape, dtype=torch.float32, transposed=False):
    *sizes, I, O = shape
    return *tangent_inputs((*sizes, I), dtype, transposed), random(O, I, dtype=dtype, transposed=transposed) / 2


def gram_inputs(shape, dtype=torch.float32, transposed=False):
    B, shared, n, O = shape
    jacobian = random(shared, n, 3)
    weight = random(O, n, dtype=dtype, transposed=transposed) / 2
    return (jacobian @ jacobian.mT).to(dtype), slopes(B, n, dtype, transposed), weight


def layer_inputs(shape, dtype=torch.float32, norm_dtype=torch.float32, transposed=False):
    B, widths = shape
    distances = [random(B, n, dtype=dtype, transposed=transposed).abs() for n in widths]
    norms = [random(B, n, dtype=norm_dtype, transposed=transposed).abs() for n in widths]
    for norm in norms:
        norm[:, ::3] = 0
    return distances, norms


def statistic(tangents: Tensor, name: str) -> Tensor:
    if name == "sum_squares":
        return torch.einsum("kbn,kbn->bn", tangents, tangents)
    if name == "sum_abs":
        return torch.linalg.vector_norm(tangents, 1, dim=0)
    return tangents.take_along_dim(tangents.abs().argmax(0, keepdim=True), 0).abs()[0]  # the first of equals


def oracle_tangent_activation(tangents, slope, name):
    return torch.einsum("kbn,bn->kbn", tangents.expand(-1, len(slope), -1), slope), statistic(
        tangents.expand(-1, len(slope), -1), name
    )


def oracle_masked_linear(tangents, slope, weight, name, store):
    out = torch.einsum("kbi,bi,oi->kbo", tangents.expand(-1, len(slope), -1), slope, weight)
    return out if store else out.new_empty(0), statistic(out, name)


def oracle_gram_linear(gram, slope, weight, store):
    gram = (gram + gram.mT) / 2  # the gradient among symmetric matrices
    out = torch.einsum("oi,bi,bij,bj,pj->bop", weight, slope, gram.expand(len(slope), -1, -1), slope, weight)
    return out if store else out.new_empty(0), torch.einsum("boo->bo", out)


# operator name -> (shapes, inputs, further arguments, oracle)
DIFFERENTIABLE = {
    "tangent_activation": (TANGENT_SHAPES, tangent_inputs, [(s,) for s in STATISTICS], oracle_tangent_activation),
    "masked_linear": (
        LINEAR_SHAPES, linear_inputs, [(s, store) for s in STATISTICS for store in (True, False)], oracle_masked_linear
    ),
    "gram_linear": (GRAM_SHAPES, gram_inputs, [(True,), (False,)], oracle_gram_linear),
}  # fmt: skip
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def cases() -> Iterator[tuple]:
    """(operator, shape, further arguments, whether inputs are transposed in memory) over the whole table."""
    for op, (shapes, _, further, _) in DIFFERENTIABLE.items():
        for i, shape in enumerate(shapes):
            for extra in further:
                yield op, shape, extra, i % 2 == 1


def inputs(op: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, transposed=False, device="cpu"):
    """The tensors that an operator takes, drawn on the CPU: the same on every device."""
    return tuple(t.to(device) for t in DIFFERENTIABLE[op][1](shape, dtype, transposed))


def outputs_and_gradients(
    function: Callable, tensors: tuple[Tensor, ...], extra: tuple, wanted: tuple[bool, ...] = (True, True, True)
) -> list[Tensor]:
    """The outputs, and the gradients by the tensors wanted of their sum weighted by fixed random numbers."""
    tensors = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted)]
    found = function(*tensors, *extra)
    used = [t for t in found if t.requires_grad and t.numel()]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in used]
    by = [t for t in tensors if t.requires_grad]
    gradients = torch.autograd.grad(used, by, weights, allow_unused=True, materialize_grads=True) if used else []
    return [t.detach() for t in (*found, *gradients)]


def expected(op: str, tensors: tuple[Tensor, ...], extra: tuple) -> list[Tensor]:
    """As `outputs_and_gradients`, of the oracle in float64 on the CPU."""
    return outputs_and_gradients(DIFFERENTIABLE[op][3], tuple(t.double().cpu() for t in tensors), extra)


def computed(op: str, tensors: tuple[Tensor, ...], extra: tuple, name: str, *wanted: bool) -> list[Tensor]:
    with backend(name):
        return outputs_and_gradients(getattr(ops, op), tensors, extra, wanted or (True, True, True))


def assert_close(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """Errors are measured against the largest entry: entries of a sum cancel."""
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape, i
        scale = b.abs().amax().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double().cpu(), b.double().cpu(), rtol=0, atol=TOLERANCE[dtype] * max(scale, 1e-3))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the block new memory holds NaN, or -7 for integers, so that what no kernel wrote shows."""
    plain = torch.Tensor.new_empty

    def new_empty(self, *args, **named):
        tensor = plain(self, *args, **named)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)

    torch.Tensor.new_empty = new_empty
    try:
        yield
    finally:
        torch.Tensor.new_empty = plain
