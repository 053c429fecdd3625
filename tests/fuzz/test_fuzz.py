"""Some random networks; `make fuzz N=2000` runs more."""

import pytest

from . import checks, networks


@pytest.mark.parametrize("seed", range(20))
def test_network(seed):
    network = networks.build(seed)
    wrong = checks.failures(network)
    lines = [f"{name}: {error}" for name, error in wrong.items()]
    assert not wrong, "\n".join([f"make fuzz SEED={seed} shows this again", *lines, str(network)])
