"""Fused operators: a plain-torch reference, C++ kernels for CPU and Triton kernels for CUDA behind one function."""

from .gram_linear import gram_linear
from .gram_norms import gram_norms
from .margin_reduce import margin_reduce, smallest_bounds
from .masked_linear import masked_linear
from .tangent_activation import tangent_activation

__all__ = ["gram_linear", "gram_norms", "margin_reduce", "masked_linear", "smallest_bounds", "tangent_activation"]
