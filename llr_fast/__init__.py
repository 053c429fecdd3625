"""Locally linear regions of piecewise-linear networks: certificates and losses."""

from llr_fast.backend import backend, backends, set_backend
from llr_fast.linearize import MixedSamplesError, NotPiecewiseLinearError
from llr_fast.loss import MarginLoss, ROLLLoss
from llr_fast.margin import Margin, margin
from llr_fast.neurons import Neurons, activation_pattern, directional_margin, gradient_norms

__version__ = "0.1.0"

__all__ = [
    "Margin",
    "MarginLoss",
    "MixedSamplesError",
    "Neurons",
    "NotPiecewiseLinearError",
    "ROLLLoss",
    "activation_pattern",
    "backend",
    "backends",
    "directional_margin",
    "gradient_norms",
    "margin",
    "set_backend",
]
