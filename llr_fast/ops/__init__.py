"""Fused operators: a plain-torch reference, C++ kernels for CPU and Triton kernels for CUDA behind one function."""
