"""Locally linear regions of piecewise-linear networks: certificates and losses."""

from llr_fast.backend import backend, backends, set_backend
from llr_fast.density import region_density
from llr_fast.distortion import Distortion, gradient_distortion
from llr_fast.linearize import MixedSamplesError, NotPiecewiseLinearError
from llr_fast.loss import MarginLoss, ROLLLoss
from llr_fast.margin import Margin, margin
from llr_fast.neurons import Neurons, activation_pattern, directional_margin, gradient_norms
from llr_fast.regions import RegionCount, count_linear_regions
from llr_fast.report import Report, evaluate
from llr_fast.segment import Crossings, regions_along

__version__ = "0.1.0"

__all__ = [
    "Crossings",
    "Distortion",
    "Margin",
    "MarginLoss",
    "MixedSamplesError",
    "Neurons",
    "NotPiecewiseLinearError",
    "ROLLLoss",
    "RegionCount",
    "Report",
    "activation_pattern",
    "backend",
    "backends",
    "count_linear_regions",
    "directional_margin",
    "evaluate",
    "gradient_distortion",
    "gradient_norms",
    "margin",
    "region_density",
    "regions_along",
    "set_backend",
]
