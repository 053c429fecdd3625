"""The baselines of the benches compute what the oracle does, and a page shows the results that lie with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import PIL.Image
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(os.fspath(ROOT))  # for the package benches

from benches import baselines, growth, memory, networks, providers, rigorous, table  # noqa: E402

BASELINES = ["paper_passes", "layer_by_layer", "per_neuron_backprop", "functorch_jacobian"]
NETWORKS = {  # more neurons than inputs, fewer, one of each, and no dense chain
    "5-7-6-3": (lambda: networks.mlp(5, 7, 6, 3), (4, 5)),
    "9-3-2-3": (lambda: networks.mlp(9, 3, 2, 3), (2, 9)),
    "1-1-1": (lambda: networks.mlp(1, 1, 1), (1, 1)),
    "convolutional": (lambda: networks.convnet(2, 3, width=2), (3, 2, 3, 3)),
}
CASES = [
    (baseline, name)
    for baseline in BASELINES
    for name in NETWORKS
    if baseline != "layer_by_layer" or name != "convolutional"
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    baseline, name = request.param
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    return getattr(baselines, baseline), build().double(), torch.randn(shape, dtype=torch.float64)


def test_norms_and_values(case):
    baseline, model, x = case
    squares, values = baseline(model, x)
    layers = [oracle.neurons(model, sample) for sample in x.split(1)]
    expected = torch.stack([torch.cat([layer.norm(2).square() for layer in sample]) for sample in layers])
    torch.testing.assert_close(squares, expected)
    torch.testing.assert_close(values, torch.stack([torch.cat([layer.z for layer in sample]) for sample in layers]))
    torch.testing.assert_close(baselines.margin(squares, values), oracle.margin(model, x, 2))


@pytest.mark.parametrize("gamma", [100, 40, 0])
def test_penalty_and_gradients(case, gamma):
    baseline, model, x = case
    losses = {
        "oracle": lambda: oracle.roll_penalty(model, x, C=0.5, gamma=gamma),
        "baseline": lambda: baselines.penalty(*baseline(model, x), C=0.5, gamma=gamma),
    }
    providers.check_agreement({name: providers.step(model, loss) for name, loss in losses.items()}, rtol=1e-12)


def test_gradients_are_not_tracked_when_switched_off(case):
    baseline, model, x = case
    with torch.no_grad():
        assert not any(result.requires_grad for result in baseline(model, x))


def test_disagreement_is_an_error():
    results = {"a": lambda: [torch.ones(2)], "b": lambda: [torch.tensor([1.0, 1.1])]}
    with pytest.raises(AssertionError, match="b, result 0"):
        providers.check_agreement(results, rtol=1e-2)
    results["b"] = lambda: [torch.tensor([1.0, float("nan")])]
    with pytest.raises(AssertionError, match="b, result 0"):
        providers.check_agreement(results, rtol=1e-2)


def test_resnet18_is_seen_whole():
    torch.manual_seed(0)
    model, x = networks.resnet18(8, width=1)
    squares, _ = baselines.per_neuron_backprop(model.double(), x.double())
    expected = torch.cat([layer.norm(2).square() for layer in oracle.neurons(model, x.double())])
    torch.testing.assert_close(squares, expected[None])
    assert sum(p.numel() for p in networks.resnet18(8)[0].parameters()) == 11_181_642  # with 10 classes


@pytest.mark.skipif(not memory.PROCESS.exists(), reason="the peak is read from /proc")
def test_peak_sees_what_a_call_holds():
    """Two tensors of 40 MB at a time; in a process of its own, whose heap has no free memory to give them."""
    code = "import torch; from benches import memory; print(memory.peak(lambda: torch.ones(10_000_000).add(1), 'cpu'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert 75e6 < int(found.stdout) < 100e6


def test_the_page_shows_the_results():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for results in (ROOT / "benches" / "results").glob("*.json"):
        assert table.render(json.loads(results.read_text())) in page


def test_the_page_of_enclosures_shows_the_results():
    assert rigorous.RESULTS.read_text() in rigorous.PAGE.read_text()


def test_the_picture_of_growth_shows_the_results():
    with PIL.Image.open(growth.PICTURE) as picture:
        assert picture.text["Source"] == growth.source(json.loads(growth.RESULTS.read_text()))
