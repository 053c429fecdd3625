"""Modes that see where a number of a tensor is read."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llr_fast import dispatch


class Readings(TorchDispatchMode):
    """Counts where numbers would be read back from a GPU, or decide on shapes, within this package's operators too."""

    READING = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "masked_select",
        "bincount",
        "unique",
        "_unique2",
    )

    def __init__(self):
        super().__init__()
        self.seen = set()  # the operators that ran
        self.count = 0

    def read(self, name):
        """Called where one is read."""
        self.count += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        self.seen.add(name)
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.READING or any(i is not None and i.dtype == torch.bool for i in indices):
            self.read(name)
        if function.namespace == "llr_fast" and name in dispatch._implementations:
            with self:
                return dispatch._implementations[name](*args)
        return function(*args, **(kwargs or {}))


class NoReading(Readings):
    """Fails there."""

    def read(self, name):
        raise AssertionError(name)
