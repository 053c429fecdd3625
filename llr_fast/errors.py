"""The errors of networks that are refused."""


class NotPiecewiseLinearError(ValueError):
    """The model applies a function that is not piecewise linear, or that has no rule, to a tensor that depends on x."""


class MixedSamplesError(ValueError):
    """An operation drops the batch axis or mixes the samples of a batch, so there is no network of one sample."""
