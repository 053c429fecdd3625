"""The pictures; apart from `import llr_fast`, because they need matplotlib."""

from llr_fast.reports.plot import plot_margins, plot_regions, plot_stability_bounds

__all__ = ["plot_margins", "plot_regions", "plot_stability_bounds"]
