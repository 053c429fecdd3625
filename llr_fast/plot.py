"""The pictures; apart from `import llr_fast`, because they need matplotlib."""

from llr_fast.reports.plot import COLOURS, plot_margins, plot_stability_bounds
from llr_fast.reports.plot_of_regions import plot_regions

__all__ = ["COLOURS", "plot_margins", "plot_regions", "plot_stability_bounds"]
