"""The fused operators that tests call by name."""

from llr_fast.ops.gram_linear import gram_linear
from llr_fast.ops.margin_reduce import margin_reduce, smallest_bounds
from llr_fast.ops.masked_linear import masked_linear
from llr_fast.ops.roll_activation import roll_activation
from llr_fast.ops.roll_max_pool import roll_max_pool
from llr_fast.ops.tangent_activation import tangent_activation

__all__ = [
    "gram_linear",
    "margin_reduce",
    "masked_linear",
    "roll_activation",
    "roll_max_pool",
    "smallest_bounds",
    "tangent_activation",
]
