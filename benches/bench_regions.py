"""All linear regions of dense networks on a square, against other tools.

regioncam computes in float32; relucent asks a solver for the neighbours of each region: of the smallest network only.
"""

import importlib.util

import pytest
import torch
from torch import nn

import llr_fast
from benches import networks
from benches.providers import OURS, check_agreement

pytestmark = pytest.mark.timeout(600)

SQUARE = (-1, 1, -1, 1)


@pytest.mark.parametrize("width", [16, 64, 128])
def test_regions_on_plane(width, device, interleaved):
    regioncam = pytest.importorskip("regioncam")
    if device != "cpu":
        pytest.skip("regions are cut on the CPU")
    model = networks.mlp(2, width, width, width, 1)
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.normal_(layer.bias, 0, 0.3)
    layers = [
        (module.weight.detach().t().contiguous().numpy(), module.bias.detach().numpy())
        if isinstance(module, nn.Linear)
        else None
        for module in model
    ]

    def count_by_regioncam():
        camera = regioncam.Regioncam(size=1)
        for layer in layers:
            camera.relu() if layer is None else camera.linear(*layer)
        return [torch.tensor([float(camera.num_faces)])]

    def find():
        return llr_fast.regions_on_plane(model, SQUARE, like=torch.zeros(1), progress=False)

    def count_by_relucent():
        import relucent

        regions = relucent.Complex(model)
        regions.bfs(cube_radius=1.0, cube_mode="clipped", nworkers=1, verify=False, verbose=0)
        return [torch.tensor([float(len(regions))])]

    counts = {"regioncam": count_by_regioncam, OURS: lambda: [torch.tensor([float(len(find()))])]}
    if width == 16 and importlib.util.find_spec("relucent"):
        counts["relucent"] = count_by_relucent
    check_agreement(counts, rtol=1e-3)  # float32 merges vertices that are as good as one
    interleaved(
        counts | {OURS: find}, table="regions", network=f"2-{width}-{width}-{width}-1", shape=[1, 2], dtype="float64"
    )
