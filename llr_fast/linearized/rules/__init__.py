"""The rules: what each torch function does to a LinearizedTensor."""

from llr_fast.linearized.rules import affine, convolution, piecewise, pooling, queries, shape  # fill the table
from llr_fast.linearized.table import apply

__all__ = ["affine", "apply", "convolution", "piecewise", "pooling", "queries", "shape"]
