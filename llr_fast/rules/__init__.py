"""The rules: what each torch function does to a LinearizedTensor."""

from llr_fast.rules import affine, convolution, piecewise, pooling, queries, shape  # fill the table
from llr_fast.rules.table import apply

__all__ = ["affine", "apply", "convolution", "piecewise", "pooling", "queries", "shape"]
