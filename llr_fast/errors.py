"""The errors of networks that are refused, and of packages that are missing."""

from pathlib import Path


class NotPiecewiseLinearError(ValueError):
    """The model applies a function that is not piecewise linear, or that has no rule, to a tensor that depends on x."""


class MixedSamplesError(ValueError):
    """An operation drops the batch axis or mixes the samples of a batch, so there is no network of one sample."""


def missing(what: str, extra: str) -> ImportError:
    """The error of `what` needs an extra, with the command that installs it: from a checkout, or where it is installed.

    >>> str(missing("the demo needs scikit-learn", "demo")).partition(":")[0]
    'the demo needs scikit-learn'
    """
    package = "." if Path(__file__).parents[1].joinpath("pyproject.toml").exists() else "llr-fast"
    return ImportError(f'{what}: pip install "{package}[{extra}]"')
