"""Where the samples of a batch lie after a reshape, by the numbers of all entries."""

import itertools

import pytest
import torch

from llr_fast.linearized.batch_axis import MixedSamplesError, Samples


def shapes(size: int, axes: int):
    """All shapes of so many entries with up to so many axes."""
    if axes == 1:
        return [(size,)]
    parts = [n for n in range(1, size + 1) if size % n == 0]
    return [(size,), *((n, *rest) for n in parts for rest in shapes(size // n, axes - 1))]


def places(count: int, size: int):
    """Shapes with an axis that holds the samples."""
    for shape in set(shapes(size, 3)):
        for dim, n in enumerate(shape):
            for inner in range(1, n // count + 1):
                if n % (count * inner) == 0:
                    yield shape, Samples(count, dim, inner)


@pytest.mark.parametrize("count, size", [(2, 12), (3, 12), (2, 20), (2, 30)])
def test_reshapes_keep_the_samples_or_are_refused(count, size):
    """Right wherever it is accepted; refused exactly where no axis of the new shape holds the samples."""
    known = {}
    for shape, samples in places(count, size):
        owners = samples.owners(torch.empty(shape)).contiguous()
        known.setdefault((shape, tuple(owners.flatten().tolist())), samples)
    refused = 0
    for ((old, owners), samples), new in itertools.product(known.items(), set(shapes(size, 3))):
        try:
            found = samples.reshaped(old, new, "reshape")
        except MixedSamplesError:
            refused += 1
            assert (new, owners) not in known
        else:
            assert tuple(found.owners(torch.empty(new)).flatten().tolist()) == owners
    assert refused
