"""The rules: what each torch function does to a LinearizedTensor. Importing them fills the table."""

from llr_fast.linearized.rules import affine, convolution, order, piecewise, places, pooling, queries, recurrent, shape, steps

__all__ = ["affine", "convolution", "order", "piecewise", "places", "pooling", "queries", "recurrent", "shape", "steps"]
