"""Kinks that are none: arguments of a maximum that are the same neuron, and segments that lie in a kink."""

import itertools
import math

import networks
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.linearized import layers as collectors
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.evaluation import Evaluation
from llr_fast.linearized.linearize import linearize

DTYPE = torch.float64


class Nested(nn.Module):
    """A tree of maxima or minima over the entries of a layer, some of which occur more than once."""

    def __init__(self, seed: int, function, deep: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.function = function
        self.before = nn.Sequential(nn.Linear(5, 9), nn.LeakyReLU(0.3)) if deep else nn.Linear(5, 9)
        self.layer = nn.Linear(9, 4)
        self.leaves = torch.randint(4, (8,), generator=generator).tolist()

    def forward(self, x):
        entries = self.layer(self.before(x)).unbind(1)
        level = [entries[leaf] for leaf in self.leaves]
        while len(level) > 1:
            level = [self.function(a, b) for a, b in zip(level[::2], level[1::2])]
        return level[0]


def entries(model: Nested, x):
    return model.layer(model.before(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [torch.maximum, torch.minimum, torch.fmax, torch.fmin])
@pytest.mark.parametrize("seed", range(4))
def test_differences_of_equal_neurons_are_exactly_zero(seed, function, dtype):
    torch.manual_seed(seed)
    model, x = Nested(seed, function, deep=seed % 2 == 1).to(dtype), torch.randn(50, 5, dtype=dtype)
    direction = torch.randn(3, *x.shape, dtype=dtype, requires_grad=True)
    layers = linearize(x, Directions(direction), Evaluation(model, collectors.tangents))[1]
    pools = [layer for layer in layers if layer.name == function.__name__]
    assert len(pools) == 7
    equal = [layer.z[:, 0] == 0 for layer in pools]
    assert sum(int(e.sum()) for e in equal) > 50
    for layer, same in zip(pools, equal):
        tangents = layer.tangents[:, :, 0]
        assert (tangents[:, same] == 0).all()
        (gradient,) = torch.autograd.grad(tangents[:, same].sum(), direction, retain_graph=True)
        assert (gradient == 0).all()
        assert (tangents[:, ~same] != 0).all()


@pytest.mark.parametrize("method", ["exact", "search"])
@pytest.mark.parametrize("function", [torch.maximum, torch.minimum])
@pytest.mark.parametrize("seed", range(4))
def test_equal_arguments_bound_no_region(seed, function, method):
    torch.manual_seed(seed)
    model = Nested(seed, function, deep=False).double()
    x, v = torch.randn(40, 5, dtype=DTYPE), torch.randn(40, 5, dtype=DTYPE)
    assert llr_fast.margin(model, x, method=method).value.min() > 1e-6
    assert not llr_fast.region_density(model, x, 0.0, method=method).any()
    assert (llr_fast.directional_margin(model, x, v) > 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_windows_of_chained_pools(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, stride=1), nn.MaxPool2d(2, stride=1)).double()
    x = torch.randn(6, 1, 8, 8, dtype=DTYPE)
    for method in ("exact", "search"):
        assert llr_fast.margin(model, x, method=method).value.min() > 1e-6
        assert not llr_fast.region_density(model, x, 0.0, method=method).any()
    layers = linearize(x, Directions(torch.randn(1, *x.shape, dtype=DTYPE)), Evaluation(model, collectors.tangents))[1]
    same = layers[1].z == 0
    assert same.any() and (layers[1].tangents[0][same] == 0).all()
    assert (llr_fast.directional_margin(model, x, torch.randn_like(x)) > 1e-9).all()


def test_segment_in_a_tie_is_one_region():
    class SharedMaximum(nn.Module):
        def forward(self, x):
            a, b, c = x.unbind(1)
            return torch.maximum(torch.maximum(a, b), torch.maximum(b, c))

    start, end = torch.tensor([[0.1, 0.7, 0.3]], dtype=DTYPE), torch.tensor([[0.2, 0.9, -0.3]], dtype=DTYPE)
    (crossings,) = llr_fast.regions_along(SharedMaximum(), start, end)
    assert crossings.t.tolist() == [0, 1]


WEIGHTS = torch.tensor([0.1, 0.2, 0.3], dtype=DTYPE)


@pytest.mark.parametrize("along", [(2.0, -1.0, 0.0), (3.0, 0.0, -1.0), (0.0, 3.0, -2.0), (0.3, 0.6, -0.5)])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardtanh(0, 1), nn.ReLU6()])
def test_segment_orthogonal_to_the_weights(along, activation):
    model = nn.Sequential(nn.Linear(3, 1, bias=False), activation).double()
    model[0].weight.data[0] = WEIGHTS
    direction = torch.tensor([along], dtype=DTYPE)
    for at in (0.1, 0.7, 1 / 3, 1e6):
        for scale in (1.0, -1e-6, 1e9):
            x = at * direction
            assert llr_fast.directional_margin(model, x, scale * direction).tolist() == [math.inf]
            assert len(llr_fast.regions_along(model, x, x + scale * direction)[0]) == 1
    x = 0.7 * direction
    across = torch.tensor([[1.0, 1.0, 1.0]], dtype=DTYPE)
    assert len(llr_fast.regions_along(model, x - across / 9, x + across / 9)[0]) == 2


def on_kink(model: nn.Sequential, layer: int, x, v, neurons: list[int], kink: float = 0.0):
    """Changes neurons of a dense layer so that they stay on a kink at x along v, as far as rounding allows."""
    with torch.no_grad():
        h, ahead = model[:layer](x)[0], model[:layer](x + v)[0]
        rate = ahead - h
        weight, bias = model[layer].weight, model[layer].bias
        for i in neurons:
            weight[i] -= (weight[i] @ rate) / (rate @ rate) * rate
            bias[i] = kink - weight[i] @ h


@pytest.mark.parametrize("kind", ["relu", "hardtanh", "maximum", "max_pool"])
@pytest.mark.parametrize("seed", range(12))
def test_segment_in_kinks_of_a_deeper_layer(seed, kind):
    torch.manual_seed(seed)
    last = {
        "relu": nn.ReLU(),
        "hardtanh": nn.Hardtanh(-1.0, 1.0),
        "maximum": networks.Apply(lambda t: torch.maximum(t, t.new_zeros(()))),
        "max_pool": nn.Sequential(nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten()),
    }[kind]
    first = [layer for pair in itertools.pairwise((6, 20, 20)) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*first, nn.Linear(20, 8), last, nn.Linear(4 if kind == "max_pool" else 8, 2)).double()
    x, v = 10 ** (seed % 3) * torch.randn(1, 6, dtype=DTYPE), torch.randn(1, 6, dtype=DTYPE)
    v *= 0.45 * llr_fast.directional_margin(nn.Sequential(*model[:4]), x, v).clamp(max=1.0)
    on_kink(model, 4, x, v, [0, 1, 4], kink=1.0 if kind == "hardtanh" else 0.0)
    if kind == "max_pool":  # the first window's two entries tie along the segment, and so do the third's
        model[4].weight.data[5], model[4].bias.data[5] = model[4].weight.data[4], model[4].bias.data[4]
        others = [6, 7]
    else:
        others = [2, 3, 5, 6, 7]
    with torch.no_grad():
        z = model[:5](torch.lerp(x, x + v, torch.linspace(0, 1, 400, dtype=DTYPE)[:, None]))
    kinks = {"hardtanh": (-1.0, 1.0)}.get(kind, (0.0,))
    if kind == "max_pool":
        sides = torch.stack([z[:, 6] > z[:, 7], z[:, 2] > z[:, 3]], 1)
    else:
        sides = torch.cat([z[:, others] > kink for kink in kinks], 1)
    expected = 1 + int((sides.diff(dim=0) != 0).sum())
    (crossings,) = llr_fast.regions_along(model, x, x + v)
    assert len(crossings) == expected
    for t in (0.1, 0.5, 0.8):
        ahead = crossings.t[1:-1][crossings.t[1:-1] > t]
        want = ahead.min().item() - t if len(ahead) else math.inf
        got = llr_fast.directional_margin(model, x + t * v, v).item()
        assert got == pytest.approx(want, rel=1e-6) or (got >= 1 - t and want == math.inf)


@pytest.fixture
def points(monkeypatch):
    """How many points are evaluated."""
    layers_of, sizes = llr_fast.certificates.evaluation.layers_of, []

    def counting(model, x, *args, **options):
        sizes.append(len(x))
        return layers_of(model, x, *args, **options)

    monkeypatch.setattr(llr_fast.certificates.evaluation, "layers_of", counting)
    return sizes


def opposed(neurons: int, kink: nn.Module) -> nn.Sequential:
    """Of x [B, 2] pairs of neurons that move in opposite ways."""
    model = nn.Sequential(nn.Linear(2, neurons), kink).double()
    signs = torch.tensor([1.0, -1.0], dtype=DTYPE).repeat(neurons // 2)
    model[0].weight.data[:] = signs[:, None] * torch.rand(neurons, 2, dtype=DTYPE)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-24, 1e-20, 1e-17])
def test_kinks_that_absorb_all_that_moves_bound_nothing(points, scale, dtype):
    torch.manual_seed(0)
    model = opposed(30, nn.Hardtanh(-0.5, 0.5))
    model[0].weight.data *= scale
    model[0].bias.data.fill_(0.5)
    start, end = torch.tensor([[-1.0, -2.0]], dtype=dtype), torch.tensor([[3.0, 1.0]], dtype=dtype)
    (crossings,) = llr_fast.regions_along(model.to(dtype), start, end)
    assert crossings.t.tolist() == [0, 1] and sum(points) == 1


@pytest.mark.parametrize("angle", [1e-6, 1e-9, 1e-11, 1e-12, 1e-13, 1e-15])
@pytest.mark.parametrize("seed", range(3))
def test_segments_within_rounding_of_many_kinks_end(points, seed, angle):
    """Terms of 1e3 that cancel, but for a small rate in opposite directions about one point, which is the only kink."""
    torch.manual_seed(seed)
    model = opposed(20, nn.ReLU())
    weight = model[0].weight.data
    weight[:, 1] = -weight[:, 0] * (1 + angle * torch.rand(20, dtype=DTYPE))
    model[0].bias.data[:] = -(weight @ torch.full((2,), 500.0, dtype=DTYPE))
    start = torch.zeros(1, 2, dtype=DTYPE)
    (crossings,) = llr_fast.regions_along(model, start, start + 1000)
    assert sum(points) <= 64 * (1 + len(crossings)) and len(crossings) <= 2


def test_kinks_out_of_reach_hide_none():
    """One that rounding moves far, as its neuron hardly moves, but that lies beyond the segment."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU()).double()
    model[0].weight.data[:] = torch.tensor([[1e-24], [1.0]])
    model[0].bias.data[:] = torch.tensor([0.4, -0.3])
    (crossings,) = llr_fast.regions_along(model, torch.zeros(1, 1, dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE))
    torch.testing.assert_close(crossings.t, torch.tensor([0, 0.3, 1], dtype=DTYPE))


def test_too_many_short_regions_are_refused(points):
    model = nn.Sequential(nn.Linear(1, 1000), nn.ReLU()).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data[:] = -0.5 - 2e-12 * torch.arange(1000, dtype=DTYPE)
    with pytest.raises(ValueError, match="expected regions longer than 1e-11 of the segment, got 2 of these"):
        llr_fast.regions_along(model, torch.zeros(1, 1, dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE))
    assert sum(points) <= 3 * 128


def test_short_regions_are_still_found():
    """Kinks 1e-9 of the segment apart, and a direction at an angle of 1e-9 to the kink."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double()
    model[0].weight.data[:] = torch.tensor([1.0, 2.0])
    model[0].bias.data[:] = torch.tensor([-1.0, -1.0 - 1e-9], dtype=DTYPE)
    start, end = torch.tensor([[0.0, 0.0]], dtype=DTYPE), torch.tensor([[1.0, 1.0]], dtype=DTYPE)
    (crossings,) = llr_fast.regions_along(model, start, end)
    assert len(crossings) == 3
    model[0].bias.data[:] = torch.tensor([0.0, 5.0])
    x, tilted = torch.tensor([[2.0, -1.0]], dtype=DTYPE), torch.tensor([[2.0, -1.0 + 1e-9]], dtype=DTYPE)
    assert llr_fast.directional_margin(model, x, tilted) == 0
    assert len(llr_fast.regions_along(model, x - tilted, x + tilted)[0]) == 2


LOW, HIGH = torch.tensor([0.0, -math.inf, 0.5, -math.inf]), torch.tensor([1.0, 0.4, math.inf, math.inf])
BOUNDED = {
    "clamp": lambda t: torch.clamp(t, LOW, HIGH),
    "x_first": lambda t: torch.minimum(torch.maximum(t, LOW), HIGH),
    "bound_first": lambda t: torch.minimum(HIGH, torch.maximum(LOW, t)),
    "other_order": lambda t: torch.fmax(torch.fmin(t, HIGH), LOW),
}


@pytest.mark.parametrize("name", ["clamp", "x_first", "bound_first", "other_order"])
def test_infinite_bounds_are_no_kinks(name):
    x = torch.tensor([[0.3, -0.2, 0.6, 0.1]])
    model = nn.Sequential(nn.Identity(), networks.Apply(BOUNDED[name]), nn.Linear(4, 2))
    lower, upper = llr_fast.gradient_norms(model, x)[:: -1 if name == "other_order" else 1]
    assert lower.distance.isfinite().all() and upper.distance.isfinite().all()
    assert torch.equal(lower.norm[0] > 0, LOW.isfinite()) and torch.equal(upper.norm[0] > 0, HIGH.isfinite())
    assert llr_fast.margin(model, x).value.item() == pytest.approx(0.1, rel=1e-6)
    assert llr_fast.directional_margin(model, x, torch.ones_like(x)).item() == pytest.approx(0.6, rel=1e-6)
    for estimator in ("exact", "rademacher"):
        output, penalty = llr_fast.ROLLLoss(model, estimator=estimator)(x)
        assert torch.equal(output, model(x)) and penalty.isfinite()


def test_infinite_entries_of_x_lose():
    masked = torch.tensor([True, False, True, False])
    model = nn.Sequential(
        nn.Linear(4, 4),
        networks.Apply(lambda t: torch.maximum(t.masked_fill(masked, -math.inf), 2 * t)),
        nn.Linear(4, 1),
    )
    x = torch.randn(3, 4)
    (layer,) = llr_fast.gradient_norms(model, x)
    assert torch.equal(layer.norm > 0, ~masked.expand(3, 4)) and layer.distance.isfinite().all()
    plain = nn.Sequential(model[0], networks.Apply(lambda t: torch.maximum(t[:, ~masked], 2 * t[:, ~masked])))
    torch.testing.assert_close(llr_fast.margin(model, x).value, llr_fast.margin(plain, x).value)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
@pytest.mark.parametrize("gamma", [30.0, 100.0])
def test_gradients_stay_finite_next_to_infinite_bounds(estimator, gamma):
    torch.manual_seed(0)
    bound = torch.tensor([0.0, -math.inf, 0.5, -math.inf, -1.0, 0.1])
    model = nn.Sequential(nn.Linear(3, 6), networks.Apply(lambda t: torch.maximum(t, bound)), nn.Linear(6, 2))
    penalty = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma)(torch.randn(4, 3))[1]
    penalty.backward()
    gradients = [p.grad for p in model[0].parameters()]
    assert penalty.isfinite() and all(g.isfinite().all() for g in gradients) and gradients[0].abs().sum() > 0


def test_clamp_without_bounds_has_no_neurons():
    x = torch.randn(2, 3)
    model = nn.Sequential(nn.Identity(), networks.Apply(lambda t: t.clamp(-math.inf, math.inf)))
    assert llr_fast.margin(model, x).value.isinf().all() and llr_fast.gradient_norms(model, x) == []
    assert llr_fast.directional_margin(model, x, x).isinf().all()
    constant = nn.Sequential(networks.Apply(lambda t: t.clamp(min=math.inf)), nn.Linear(3, 2))
    assert llr_fast.count_linear_regions(constant, [x]).lower == 1


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e300])
def test_directions_of_any_length(scale):
    x, direction = torch.tensor([[1.0, 2.0]], dtype=DTYPE), torch.tensor([[-1.0, -1.0]], dtype=DTYPE)
    margin = llr_fast.directional_margin(nn.ReLU(), x, scale * direction).item()
    assert margin == (math.inf if scale < 1e-308 else pytest.approx(1 / scale))


def test_segments_from_the_origin_in_a_kink():
    """The terms of a neuron that stays on its kink are those of the far end."""
    torch.manual_seed(0)
    weight, end = torch.randn(50, 7, dtype=DTYPE), torch.randn(1, 7, dtype=DTYPE)
    weight -= weight @ end.T / (end @ end.T) * end
    model = nn.Sequential(nn.Linear(7, 50, bias=False), nn.ReLU()).double()
    model[0].weight.data.copy_(weight)
    for start, stop in ((torch.zeros_like(end), end), (end, torch.zeros_like(end)), (-end, end)):
        (crossings,) = llr_fast.regions_along(model, start, stop)
        assert len(crossings) == 1
