"""The rules: what each torch function does to a LinearizedTensor. Importing them fills the table."""

from llr_fast.linearized.rules import (
    affine,
    convolution,
    exported,
    fourier,
    order,
    piecewise,
    places,
    pooling,
    products,
    queries,
    recurrent,
    shape,
    steps,
    writing,
)

__all__ = [
    "affine",
    "convolution",
    "exported",
    "fourier",
    "order",
    "piecewise",
    "places",
    "pooling",
    "products",
    "queries",
    "recurrent",
    "shape",
    "steps",
    "writing",
]
