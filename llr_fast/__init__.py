"""Locally linear regions of piecewise-linear networks: certificates and losses."""

from llr_fast.certificates.margin import Margin, margin
from llr_fast.certificates.neurons import Neurons, activation_pattern, directional_margin, gradient_norms
from llr_fast.dispatch import backend, backends, set_backend
from llr_fast.errors import MixedSamplesError, NotPiecewiseLinearError
from llr_fast.losses.distance import MarginLoss
from llr_fast.losses.roll import ROLLLoss
from llr_fast.regions.count import RegionCount, count_linear_regions
from llr_fast.regions.density import region_density
from llr_fast.regions.distortion import Distortion, gradient_distortion
from llr_fast.regions.plane import regions_on_plane
from llr_fast.regions.region import Region, region
from llr_fast.regions.robustness import Robustness, robustness
from llr_fast.regions.segment import Crossings, regions_along
from llr_fast.reports.diagnosis import Diagnosis, diagnose
from llr_fast.reports.report import Report, evaluate

__version__ = "0.2.0"

__all__ = [
    "Crossings",
    "Diagnosis",
    "Distortion",
    "Margin",
    "MarginLoss",
    "MixedSamplesError",
    "Neurons",
    "NotPiecewiseLinearError",
    "ROLLLoss",
    "Region",
    "RegionCount",
    "Report",
    "Robustness",
    "activation_pattern",
    "backend",
    "backends",
    "count_linear_regions",
    "diagnose",
    "directional_margin",
    "evaluate",
    "gradient_distortion",
    "gradient_norms",
    "margin",
    "region",
    "region_density",
    "regions_along",
    "regions_on_plane",
    "robustness",
    "set_backend",
]
