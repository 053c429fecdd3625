"""Questions about a tensor that do not depend on the network's input."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_map_only

from llr_fast.linearized.table import rule
from llr_fast.linearized.tensor import LinearizedTensor, refuse


@rule(
    *("shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "__len__", "is_same_size"),
    *("device", "get_device", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta"),
    *("layout", "stride", "is_contiguous", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "has_names"),
    *("is_complex", "is_conj", "is_neg", "is_inference", "__repr__", "__format__"),
    query=True,
)
def answer_by_value(function: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = tree_map_only(LinearizedTensor, lambda x: x.value, (args, kwargs))
    return function(*args, **kwargs)


@rule("requires_grad", query=True)
def _requires_grad(function: Any, x: LinearizedTensor) -> bool:
    """Checkpoints inside checkpoints detach what requires gradients, and the linearization has a graph of its own."""
    return False


@rule(
    *("dtype", "is_floating_point", "element_size", "itemsize", "nbytes"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    query=True,
)
def answer_by_declared_dtype(function: Any, *args: Any, **kwargs: Any) -> Any:
    """In the dtype that the tensor has to the model, in which it also makes its constants."""

    for argument in (*args[1:], *kwargs.values()):
        if isinstance(argument, LinearizedTensor):
            raise refuse(argument, function, "a constant made of its numbers would hide how it depends on the input")
    args, kwargs = tree_map_only(LinearizedTensor, LinearizedTensor.stand_in, (args, kwargs))
    return function(*args, **kwargs)
