"""count_linear_regions, region_density and regions_along, against enumeration."""

import itertools
import math
from fractions import Fraction
from itertools import pairwise
from operator import mul

import networks
import oracle
import pytest
import torch
from scipy.stats import chi2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import llr_fast
from llr_fast.certificates import evaluation, sketch
from llr_fast.certificates.bounds import Probe
from llr_fast.certificates.frozen import freeze
from llr_fast.regions import density
from llr_fast.regions.count import Counter, _distinct, _fingerprints, pattern_hashes

DTYPE = torch.float64
KINDS = ["relu", "relu6", "maximum", "conv2d", "residual", "recurrent_time_first", "frames", "decoder", "max_pool2d"]


def quiet(function, *args, **options):
    return function(*args, progress=False, **options)


def plain(*sizes: int, seed: int = 0) -> nn.Sequential:
    """The paper's kind of network: fully connected, ReLU."""
    torch.manual_seed(seed)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def distinct_jacobians(model: nn.Module, x: torch.Tensor) -> int:
    """By back-propagation of every output, compared pair by pair."""
    found = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t[None])[0].flatten(), sample)
        if not any(torch.allclose(jacobian, other, rtol=1e-9, atol=1e-13) for other in found):
            found.append(jacobian)
    return len(found)


@pytest.mark.parametrize("name", KINDS)
def test_count_equals_enumeration(name):
    model, x = networks.build(name, batch=25)
    x = torch.cat([x, 1.01 * x])
    count = quiet(llr_fast.count_linear_regions, model, x.split(7))
    assert count.points == 50
    assert count.upper == len(llr_fast.activation_pattern(model, x).unique(dim=0))
    assert count.lower == distinct_jacobians(model, x) <= count.upper


def test_bounds_coincide_for_dense_relu_networks():
    model, x = plain(2, 30, 30, 30, 4), 3 * torch.randn(400, 2, dtype=DTYPE)
    count = quiet(llr_fast.count_linear_regions, model, [x])
    assert 100 < count.lower == count.upper < 400


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scale_does_not_decide(scale):
    model, x = plain(2, 30, 30, 30, 4), 3 * torch.randn(200, 2, dtype=DTYPE)
    expected = quiet(llr_fast.count_linear_regions, model, [x])
    scaled = nn.Sequential(networks.Apply(lambda t: t / scale), model, networks.Apply(lambda t: scale * t))
    assert quiet(llr_fast.count_linear_regions, scaled, [x * scale]) == expected
    model[-1].weight.data *= scale
    assert quiet(llr_fast.count_linear_regions, model, [x]) == expected


def test_rounding_does_not_decide():
    model, x = plain(50, 100, 100, 100, 10), torch.randn(64, 50, dtype=DTYPE)
    once = quiet(llr_fast.count_linear_regions, model, [x])
    # Other sizes of batches round differently.
    assert quiet(llr_fast.count_linear_regions, model, [x, *x.split(1), *x.flip(0).split(11)]).lower == once.lower == 64


def test_close_jacobians_count_as_distinct():
    model = nn.Sequential(nn.Identity(), nn.LeakyReLU(1 - 1e-6))
    x = torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=DTYPE)
    assert quiet(llr_fast.count_linear_regions, model, [x]).lower == 2


def test_patterns_without_influence_count_in_the_upper_bound_only():
    model = plain(2, 8, 1)
    model[2].weight.data[:, 4:] = 0
    count = quiet(llr_fast.count_linear_regions, model, [3 * torch.randn(300, 2, dtype=DTYPE)])
    assert count.lower < count.upper


def test_zero_jacobians_are_one():
    model = nn.Sequential(nn.ReLU(), networks.Apply(lambda t: t[:, :1]))
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    count = quiet(llr_fast.count_linear_regions, model, [x])
    assert (count.lower, count.upper) == (2, 3)


def test_output_in_parts_counts_whole():
    model = nn.Sequential(nn.ReLU(), networks.Apply(lambda t: {"a": t[:, :1], "b": (t[:, 1:], None)}))
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    assert quiet(llr_fast.count_linear_regions, model, [x]).lower == 3


def test_complex_outputs_count():
    model, x = plain(3, 10, 10, 4), torch.randn(40, 3, dtype=DTYPE)
    transformed = nn.Sequential(model, networks.Apply(torch.fft.rfft))
    assert quiet(llr_fast.count_linear_regions, transformed, [x]) == quiet(llr_fast.count_linear_regions, model, [x])


def test_count_reads_a_loader_with_labels():
    model, x = plain(2, 10, 3).float(), torch.randn(50, 2)
    loader = DataLoader(TensorDataset(x, torch.zeros(50).long()), batch_size=8)
    assert quiet(llr_fast.count_linear_regions, model, loader) == quiet(llr_fast.count_linear_regions, model, [x])


@pytest.mark.parametrize(
    "batches, error, message",
    [
        ([], ValueError, "batches: expected at least one batch"),
        (torch.zeros(3, 2), TypeError, "batches: expected an iterable of batches, got one tensor"),
        ([{"x": torch.zeros(3, 2)}], TypeError, "batches: expected tensors.*dict"),
        ([torch.full((1, 2), math.nan)], ValueError, "x: expected finite values"),
    ],
)
def test_count_refuses(batches, error, message):
    with pytest.raises(error, match=message):
        llr_fast.count_linear_regions(plain(2, 3, 1).float(), batches)


def test_long_work_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("llr_fast.data.PATIENCE", 0)
    model, x = plain(2, 3, 1), torch.zeros(4, 2, dtype=DTYPE)
    llr_fast.count_linear_regions(model, [x])
    assert "linear regions" in capsys.readouterr().err
    quiet(llr_fast.count_linear_regions, model, [x])
    assert not capsys.readouterr().err


def within(layers, radius: float, p: float) -> int:
    return sum(int((layer.margin(p) <= radius).sum()) for layer in layers)


@pytest.mark.parametrize("method", ["exact", "search", "auto"])
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("name", KINDS)
def test_density_equals_oracle(case, name, p, method):
    model, x, layers = case(name)
    for radius in (0.0, 0.1, 1.0):
        found = quiet(llr_fast.region_density, model, x, radius, p, method=method)
        assert found.tolist() == [within(sample, radius, p) for sample in layers]


def test_density_is_zero_within_the_margin_only(case):
    model, x, _ = case("conv2d")
    for sample, margin in zip(x.split(1), llr_fast.margin(model, x).value.tolist()):
        assert llr_fast.region_density(model, sample, 0.999 * margin) == 0
        assert llr_fast.region_density(model, sample, 1.001 * margin) > 0


@pytest.mark.parametrize("p, deviation", [(2, 1 / math.sqrt(128)), (math.inf, math.pi / 16)])
def test_sketched_density_has_the_stated_error(p, deviation):
    model, x = plain(300, 200, 200, 5), torch.randn(4, 300, dtype=DTYPE)
    generator = torch.Generator().manual_seed(0)
    exact = [llr_fast.region_density(model, x, radius, p, method="exact") for radius in (0.0125, 0.025, 0.05)]
    found = llr_fast.region_density(model, x, 0.025, p, method="sketch", generator=generator)
    assert (exact[0] < exact[1]).all() and (exact[1] < exact[2]).all()
    assert (found - exact[1]).abs().max() < deviation * exact[1].max()
    # The radius carries the error: with 5 standard errors no neuron of 1600 is likely to be beyond.
    low, high = (
        llr_fast.region_density(model, x, 0.025 * math.exp(sign * 5 * deviation), p, method="exact") for sign in (-1, 1)
    )
    assert (low <= found).all() and (found <= high).all()


def test_sketched_norms_have_the_chi_distribution():
    model, x = nn.Sequential(nn.Linear(50, 2000), nn.ReLU()), torch.zeros(1, 50)
    (statistic,) = sketch.statistics(freeze(model, x, DTYPE), 2, 64, torch.Generator().manual_seed(0))
    ratio = statistic / model[0].weight.detach().double().square().sum(1)
    below = (ratio < chi2.ppf(0.25, 64)).double().mean()
    assert 0.15 < below < 0.35


@pytest.mark.parametrize("q", [1, 2])
def test_sketched_norms_have_no_bias(q):
    """Of 1000 orthonormal gradients, so that the estimates are independent: 64,000 draws for one number."""
    model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU()).double()
    model[0].weight.data.copy_(torch.eye(1000))
    frozen, generator = freeze(model, torch.zeros(1, 1000, dtype=DTYPE), DTYPE), torch.Generator().manual_seed(0)
    (norms,) = density._estimates(frozen, Probe.fixed(frozen), q, 64, generator)
    found = norms.log().mean() if q == 1 else norms.square().mean().log() / 2
    deviation = math.pi / 2 if q == 1 else 1 / math.sqrt(2)
    assert abs(found) < 4 * deviation / math.sqrt(64_000)


def test_density_ignores_dead_neurons_on_their_kink():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
    assert llr_fast.region_density(model, torch.ones(1, 2), 1.0) == 0
    assert llr_fast.region_density(nn.Linear(2, 3), torch.ones(1, 2), 1.0) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"radius": -1.0}, "radius: expected a number from 0"),
        ({"radius": 1.0, "p": 3}, "p: expected one of"),
        ({"radius": 1.0, "p": 1, "method": "sketch"}, "method: expected 'exact' or 'search' for p = 1"),
        ({"radius": 1.0, "method": "guess"}, "method: expected one of"),
    ],
)
def test_density_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        llr_fast.region_density(nn.ReLU(), torch.ones(1, 2), **options)


@pytest.mark.parametrize("name", networks.NAMES)
def test_segment_equals_dense_sampling(name):
    model, x = networks.build(name, batch=2)
    (crossings,) = quiet(llr_fast.regions_along, model, x[:1], 3 * x[1:])
    t = torch.linspace(0, 1, 2001, dtype=DTYPE)
    patterns = llr_fast.activation_pattern(model, torch.lerp(x[0], 3 * x[1], t.view(-1, *[1] * x[0].dim())))
    region = torch.searchsorted(crossings.t[1:-1].contiguous(), t)
    assert torch.equal(llr_fast.activation_pattern(model, crossings.midpoints)[region], patterns)
    changes = (patterns.diff(dim=0) != 0).any(1).sum() + 1
    assert changes == len(region.unique()) <= len(crossings)
    assert len(llr_fast.activation_pattern(model, crossings.midpoints).unique(dim=0)) == len(crossings)


@pytest.mark.parametrize("name", ["relu", "conv2d", "max_pool2d"])
def test_segment_crosses_where_a_neuron_has_its_kink(name):
    model, x = networks.build(name, batch=2)
    (crossings,) = quiet(llr_fast.regions_along, model, x[:1], x[1:])
    assert len(crossings) > 2
    for point in crossings.points[1:-1]:
        distances = torch.cat([layer.distance for layer in oracle.neurons(model, point[None])])
        assert distances.min() < 1e-12


def test_segments_of_a_batch_are_independent():
    model, x = plain(5, 20, 20, 2), torch.randn(6, 5, dtype=DTYPE)
    together = quiet(llr_fast.regions_along, model, x[:3], x[3:])
    for i, crossings in enumerate(together):
        (alone,) = quiet(llr_fast.regions_along, model, x[i : i + 1], x[i + 3 : i + 4])
        torch.testing.assert_close(alone.t, crossings.t, rtol=0, atol=1e-12)
        assert torch.equal(crossings.start, x[i]) and torch.equal(crossings.end, x[i + 3])
        assert crossings.points.shape == (len(crossings) + 1, 5)


def test_one_tangent_for_each_region(monkeypatch):
    model, x = plain(5, 40, 40, 2), torch.randn(2, 5, dtype=DTYPE)
    layers_of, points = llr_fast.certificates.evaluation.layers_of, []

    def counting(model, x, *args, **options):
        points.append(len(x))
        return layers_of(model, x, *args, **options)

    monkeypatch.setattr(llr_fast.certificates.evaluation, "layers_of", counting)
    (crossings,) = quiet(llr_fast.regions_along, model, x[:1], x[1:])
    assert len(crossings) > 20 and sum(points) == len(crossings) > 2 * len(points)


def test_symmetric_segment_through_a_vertex():
    model = plain(2, 10, 2)
    nn.init.zeros_(model[0].bias)
    x = torch.tensor([[1.0, 2.0]], dtype=DTYPE)
    (crossings,) = quiet(llr_fast.regions_along, model, -x, x)
    torch.testing.assert_close(crossings.t, torch.tensor([0, 0.5, 1], dtype=DTYPE))


def test_segment_without_length_or_kinks():
    x = torch.ones(1, 2)
    assert len(llr_fast.regions_along(nn.ReLU(), x, x)[0]) == 1
    assert llr_fast.regions_along(nn.Linear(2, 1), x, -x)[0].t.tolist() == [0, 1]


def test_integrated_gradients_are_complete():
    model, x = networks.build("max_pool2d_of_relu", batch=2)
    (crossings,) = quiet(llr_fast.regions_along, model, x[:1], x[1:])
    inside = crossings.midpoints.requires_grad_()
    (gradients,) = torch.autograd.grad(model(inside)[:, 0].sum(), inside)
    attribution = (x[1] - x[0]) * torch.einsum("r,r...->...", crossings.lengths, gradients)
    torch.testing.assert_close(attribution.sum(), (model(x[1:]) - model(x[:1]))[0, 0], rtol=1e-10, atol=1e-12)


def test_segment_refuses_ends_of_different_shapes():
    with pytest.raises(ValueError, match=r"end: expected the shape and device of start, \(1, 2\).*\(2, 2\)"):
        llr_fast.regions_along(nn.ReLU(), torch.ones(1, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="end: expected finite"):
        llr_fast.regions_along(nn.ReLU(), torch.ones(1, 2), torch.full((1, 2), math.inf))


def exact_jacobian(model: nn.Sequential, x: torch.Tensor) -> tuple:
    """That of a network of dense layers and ReLUs in fractions; only the pattern comes from floating-point numbers."""
    rows = None
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
            rows = weight if rows is None else [[sum(map(mul, row, c)) for c in zip(*rows)] for row in weight]
        else:
            rows = [row if on else [Fraction()] * len(row) for row, on in zip(rows, (x > 0).tolist())]
        x = layer(x)
    return tuple(map(tuple, rows))


def cancelling(seed: int, scale: float, outputs: int) -> nn.Sequential:
    """Units that occur twice, and cancel in the output but for one: `scale` times as large as what remains."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, outputs)
    with torch.no_grad():
        for layer in (first, second):
            half, order = len(layer.bias) // 2, torch.randperm(len(layer.bias))
            for parameter in (layer.weight, layer.bias):
                parameter[half:] = parameter[:half].clone()
                parameter[:] = parameter[order].clone()
        places = order.argsort()
        big = scale * torch.randn(outputs, 4)
        last.weight[:, places[:4]], last.weight[:, places[4:]] = big, -big
        last.weight[:, places[0]], last.weight[:, places[4]] = torch.randn(outputs), 0.0
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).double()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e7, 1e10])
@pytest.mark.parametrize("seed", range(8))
def test_terms_that_cancel_make_no_jacobians(seed, scale, outputs):
    model, x = cancelling(seed, scale, outputs), 3 * torch.randn(60, 3, dtype=DTYPE)
    with torch.no_grad():
        truth = len({exact_jacobian(model, sample) for sample in x})
    count = quiet(llr_fast.count_linear_regions, model, x.split(7))
    assert count.lower <= truth <= count.upper == len(llr_fast.activation_pattern(model, x).unique(dim=0))
    assert count.lower == truth or scale > 1e7


def test_terms_that_cancel_to_nothing():
    model = cancelling(0, 1e12, 2)
    model[-1].weight.data[:] = torch.where(model[-1].weight.abs() < 1e6, 0.0, model[-1].weight)
    count = quiet(llr_fast.count_linear_regions, model, [3 * torch.randn(300, 3, dtype=DTYPE)])
    assert count.lower == 1 < count.upper


@pytest.mark.parametrize("sizes", [1, 7, 64])
def test_lower_is_never_above_upper(sizes):
    """One affine piece, computed with errors that depend on the size of the batch."""
    model = nn.Sequential(nn.Linear(50, 100), nn.Linear(100, 1), nn.ReLU()).double()
    model[1].weight.data[:, 50:] = -1e9 * model[1].weight[:, :50]
    model[1].weight.data[:, :50] *= 1e9
    model[0].weight.data[50:] = model[0].weight[:50]
    model[1].bias.data.fill_(1e12)
    x = torch.randn(64, 50, dtype=DTYPE)
    count = quiet(llr_fast.count_linear_regions, model, [*x.split(sizes), *x.split(1)])
    assert (count.lower, count.upper, count.points) == (1, 1, 128)


SMALL = [(1e-24,) * 3, (1e-110,) * 3, (1e-170, 1e-150, 1.0), (1e-160, 1e100, 1e-100), (1e-200, 1e-110, 1e200)]
LARGE = [(1e6,) * 3, (1e30,) * 3, (1e100,) * 3, (1e160, 1.0, 1e-30), (1e150, 1e150, 1.0), (1.0, 1e300, 1e-300)]


@pytest.mark.parametrize("scales", [(1.0,) * 3, *SMALL, *LARGE])
@pytest.mark.parametrize("seed", range(4))
def test_scales_of_weights_make_no_jacobians(seed, scales):
    model, x = cancelling(seed, 1.0, 2), 3 * torch.randn(60, 3, dtype=DTYPE)
    with torch.no_grad():
        for layer, scale, size in zip(model[::2], scales, itertools.accumulate(scales, mul)):
            layer.weight *= scale
            layer.bias *= size
        truth = len({exact_jacobian(model, sample) for sample in x})
    count = quiet(llr_fast.count_linear_regions, model, x.split(7))
    assert 1 <= count.lower <= truth <= count.upper
    resolved = all(1e-270 < size < 1e280 for size in itertools.accumulate(scales, mul))
    assert count.lower == truth or not resolved


@pytest.mark.parametrize("scale", [1e-24, 1e-30])
def test_kinks_that_absorb_all_that_moves_make_no_jacobians(scale):
    """Values of 0.5 + 1e-25 are on neither side of 0.5; autograd and this library put them on different ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Hardtanh(-0.5, 0.5), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[2].weight *= scale
        model[2].bias.fill_(0.5)
    count = quiet(llr_fast.count_linear_regions, model, [3 * torch.randn(50, 3, dtype=DTYPE)])
    assert count.lower == 1 < count.upper


def test_values_that_are_exactly_on_a_kink_count():
    """At the origin all neurons are on their kinks, and on both sides of it some are on."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)).double()
    model[0].weight.data[:, 0] = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=DTYPE)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=DTYPE)
    assert quiet(llr_fast.count_linear_regions, model, [x]).lower == 3


@pytest.mark.parametrize("certain", [[0, 1, 2], [0], []])
def test_jacobians_beyond_float64_do_not_count(certain):
    counter, numbers = Counter(nn.ReLU()), torch.tensor([[1.0], [2.0], [3.0]], dtype=DTYPE)
    tangents = torch.stack([numbers, 0 * numbers, 0 * numbers])
    beyond = [i for i in range(3) if i not in certain]
    for number in (math.inf, -math.inf, math.nan):
        tangents[0, beyond] = number
        for i, fingerprint in enumerate(_fingerprints(tangents, torch.zeros(3, dtype=torch.bool))):
            counter._keep(bytes([i]), fingerprint)
        assert counter.result().lower == max(1, len(certain))


def test_counts_of_several_processes_are_one(monkeypatch):
    model, x = plain(2, 20, 20, 2), 3 * torch.randn(90, 2, dtype=DTYPE)
    whole = quiet(llr_fast.count_linear_regions, model, [x])
    counters = [Counter(model) for _ in range(3)]
    for counter, part in zip(counters, x.split(30)):
        counter.add(part)
    sent = []
    monkeypatch.setattr("llr_fast.regions.count.gathered", lambda part, group: sent.append(part) or [part])
    for counter in counters:
        counter.merge(None)
    monkeypatch.setattr("llr_fast.regions.count.gathered", lambda part, group: sent)
    for counter in counters:
        counter.merge(None)
        assert counter.result() == whole


def test_groups_within_errors():
    numbers = torch.tensor([[0.0, 0], [1, 0], [2.5, 0], [2.6, 9], [10, 0], [10.01, 0], [9, 0]], dtype=DTYPE)
    error = torch.tensor([[0.4], [0.7], [0.3], [0.3], [1.5], [0.001], [0.001]], dtype=DTYPE)
    # 0 and 1 overlap; 2.5 and 2.6 differ in the second number; the wide one holds both of its neighbours.
    order = torch.randperm(7)
    assert _distinct(numbers[order], error[order]) == 4


def test_patterns_are_told_apart_by_128_bits():
    model, x = plain(2, 8, 2), torch.randn(3, 2, dtype=DTYPE)
    hashes = pattern_hashes(evaluation.values_of(model, x, DTYPE), 3)
    assert [len(found) for found in hashes] == 3 * [16]
