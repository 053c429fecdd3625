"""The rules: what each torch function does to a LinearizedTensor. Importing them fills the table."""

from llr_fast.linearized.rules import affine, convolution, piecewise, pooling, queries, shape

__all__ = ["affine", "convolution", "piecewise", "pooling", "queries", "shape"]
