"""Fused operators: a plain-torch reference, C++ kernels for CPU and Triton kernels for CUDA behind one function."""

from .gram_linear import gram_linear
from .masked_linear import masked_linear
from .tangent_activation import tangent_activation

__all__ = ["gram_linear", "masked_linear", "tangent_activation"]
