"""robustness, against brute force, the plane's exact polygons, and GeoCert's algorithm written anew."""

import math
from itertools import pairwise

import geocert
import numpy as np
import oracle
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.regions import polytope
from llr_fast.regions.polytope import Polytope

NORMS = (1, 2, math.inf)
DTYPE = torch.float64


def plain(*sizes, seed=0, activation=nn.ReLU):
    torch.manual_seed(seed)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), activation())]
    model = nn.Sequential(*layers[:-1]).double().eval()
    model[-1].bias.data += 0.3 * torch.randn(sizes[-1], dtype=DTYPE)
    return model


def norm(u, p):
    return torch.linalg.vector_norm(u, p, dim=1)


def classes_of(model, x):
    out = model(x)
    return (out[:, 0] > 0).long() if out.size(1) == 1 else out.argmax(1)


def ball(x, radius, p, points=20000):
    """Random points within the radius of x [D], denser at its boundary."""
    u = 2 * torch.rand(points, len(x), dtype=DTYPE) - 1
    return x + u / norm(u, p)[:, None] * radius * torch.rand(points, 1, dtype=DTYPE) ** (1 / len(x))


def to_segment(x, a, b, p):
    """The l_p distance of x [2] from the segment: a convex function of one number, by ternary search."""
    low, high = 0.0, 1.0
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        f, g = (np.linalg.norm(a + t * (b - a) - x, p) for t in (left, right))
        low, high = (low, right) if f <= g else (left, high)
    return np.linalg.norm(a + low * (b - a) - x, p)


def nearest_on_plane(model, x, label, p, half=4.0):
    """In each polygon of the plane the model is affine: where another class leads is a polygon as well."""
    extent = (x[0].item() - half, x[0].item() + half, x[1].item() - half, x[1].item() + half)
    best = math.inf
    for polygon in llr_fast.regions_on_plane(model, extent, like=x, progress=False):
        out = model(polygon).detach()
        for other in range(out.size(1)):
            lead = (out[:, label] - out[:, other]).numpy()
            if other == label or lead.min() > 0:
                continue
            corners = polygon.numpy()
            cut = []
            for i in range(len(corners)):
                a, b, at_a, at_b = corners[i - 1], corners[i], lead[i - 1], lead[i]
                if at_a <= 0:
                    cut.append(a)
                if (at_a > 0) != (at_b > 0):
                    cut.append(a + at_a / (at_a - at_b) * (b - a))
            best = min(best, *(to_segment(x.numpy(), cut[i - 1], cut[i], p) for i in range(len(cut))))
    return best


@pytest.mark.parametrize("p", NORMS)
def test_walk_is_exact_on_the_plane(p):
    model = plain(2, 6, 6, 3, seed=1)
    x = torch.randn(2, 2, dtype=DTYPE)
    found = llr_fast.robustness(model, x, p, regions=None)
    for i, label in enumerate(classes_of(model, x).tolist()):
        truth = nearest_on_plane(model, x[i], label, p)
        assert found.exact[i]
        if min(truth, found.upper[i].item()) < 4:
            assert found.lower[i].item() == found.upper[i].item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardshrink, lambda: nn.Threshold(0.3, -0.2), nn.LeakyReLU]
)
def test_no_input_within_has_another_class_and_the_adversarial_one_is_at_the_boundary(activation, p):
    model = plain(3, 6, 6, 3, seed=1, activation=activation)
    x = torch.randn(3, 3, dtype=DTYPE)
    label = classes_of(model, x)
    for regions in (1, 12):
        found = llr_fast.robustness(model, x, p, regions=regions)
        assert (found.lower <= found.upper).all() and (found.regions <= regions).all()
        for i in range(len(x)):
            near = ball(x[i], min(found.lower[i].item(), 20.0) * (1 - 1e-9), p)
            assert (classes_of(model, near) == label[i]).all()
            if found.upper[i] < math.inf:
                point = found.adversarial[i : i + 1]
                assert norm(point - x[i], p).item() == pytest.approx(found.upper[i].item(), rel=1e-7)
                around = ball(point[0], 1e-6 * max(1.0, found.upper[i].item()), 2)
                assert (classes_of(model, around) != label[i]).any()
            else:
                assert found.adversarial[i].isnan().all()
            assert not found.exact[i] or found.lower[i] == found.upper[i]


def decisions(model, x, p):
    """[B]: how far the nearest other class is if the network is affine."""
    found = []
    for point in x.split(1):
        point = point.clone().requires_grad_()
        out = model(point).view(-1)
        leads = [out[0].abs()] if len(out) == 1 else [out.max() - other for other in out]
        gradients = [torch.autograd.grad(lead, point, retain_graph=True)[0].flatten() for lead in leads]
        ratios = [(d / g.norm(oracle.DUAL[p])).item() for d, g in zip(leads, gradients, strict=True) if g.any()]
        found.append(min(ratios))
    return torch.tensor(found, dtype=DTYPE)


def flat(*sizes, **options):
    """Of one logit, [B]."""
    return nn.Sequential(*plain(*sizes, **options), nn.Flatten(0))


NETWORKS = {
    "narrow": lambda: plain(4, 12, 12, 5, seed=2),
    "chain": lambda: plain(60, 40, 40, 40, 5),
    "two layers": lambda: plain(60, 40, 12),
    "two classes": lambda: plain(60, 40, 40, 2),
    "one logit": lambda: plain(60, 40, 40, 1),
    "one logit without an axis": lambda: flat(60, 40, 40, 1),
    "in float32": lambda: plain(60, 40, 40, 5).float(),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 60)), nn.Conv1d(1, 4, 3), nn.Flatten(), plain(232, 20, 4)
    ).double(),
}


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("decisive", [False, True], ids=["as it is", "near another class"])
def test_one_region_is_the_smaller_of_margin_and_decision(network, p, decisive):
    torch.manual_seed(0)
    model = network().eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    x = torch.randn(12, 4 if layers[0].in_features == 4 else 60).to(layers[0].weight)
    if decisive:
        layers[-1].bias.data -= model(x[:1]).detach().flatten()  # there all classes are equal
        x = x[:1] + 1e-2 * x
    found = llr_fast.robustness(model, x, p)
    exactly = model.double()
    margin, decision = oracle.margin(exactly, x.double(), p), decisions(exactly, x.double(), p)
    torch.testing.assert_close(found.lower, torch.minimum(margin, decision), rtol=1e-9, atol=0)
    assert torch.equal(found.exact, decision < margin)
    assert not decisive or found.exact.any()


@pytest.mark.parametrize("network", ["chain", "two layers", "two classes", "one logit", "one logit without an axis"])
def test_one_region_of_a_chain_takes_gram_matrices(network, monkeypatch):
    def never(*arguments):
        raise AssertionError("norms found another way")

    for name in ("by_search", "exact_norms"):
        monkeypatch.setattr(f"llr_fast.certificates.bounds.{name}", never)
    model, x = NETWORKS[network](), torch.randn(300, 60, dtype=DTYPE)
    assert llr_fast.robustness(model, x).lower.isfinite().all()


class Constant(nn.Module):
    """Of one class everywhere, though there are neurons."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.ReLU()

    def forward(self, x):
        self.hidden(x)
        return torch.tensor([[0.0, 1.0, 3.0, 2.0]], dtype=x.dtype).repeat(len(x), 1)


def test_constant_logits_decide_nothing():
    x = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    found = llr_fast.robustness(Constant(), x, y=torch.tensor([2, 1]))
    assert found.lower.tolist() == [1.0, 0.0] and found.exact.tolist() == [False, True]
    report = llr_fast.evaluate(Constant(), [(x, torch.tensor([2, 1]))], 2, eps=0.5, progress=False)
    assert report.margins[2].tolist() == [1.0, 3.0] and report.certified == {2: 0.5}


def test_bounds_rise_with_the_regions_that_may_be_visited():
    model, x = plain(3, 10, 10, 3, seed=3), torch.randn(2, 3, dtype=DTYPE)
    lower = torch.stack([llr_fast.robustness(model, x, regions=n).lower for n in (1, 2, 4, 8, 16, 32)])
    assert (lower.diff(dim=0) >= -1e-12).all() and (lower[-1] > lower[0]).all()


@pytest.mark.parametrize("p", NORMS)
def test_one_logit(p):
    model, x = plain(2, 4, 4, 1, seed=4), torch.randn(2, 2, dtype=DTYPE)
    two = nn.Sequential(model, nn.Linear(1, 2).double())
    two[1].weight.data, two[1].bias.data = torch.tensor([[0.0], [1.0]], dtype=DTYPE), torch.zeros(2, dtype=DTYPE)
    a, b = (llr_fast.robustness(m, x, p, regions=None) for m in (model, two))
    assert torch.allclose(a.lower, b.lower, rtol=1e-6)
    flat = llr_fast.robustness(nn.Sequential(model, nn.Flatten(0)), x[:1], p)
    assert flat.lower[0].item() == pytest.approx(llr_fast.robustness(model, x[:1], p).lower[0].item())


def test_labels_that_are_not_predicted_are_at_distance_zero():
    model, x = plain(2, 8, 8, 3), torch.randn(6, 2, dtype=DTYPE)
    label = classes_of(model, x)
    y = label.clone()
    y[::2] = (y[::2] + 1) % 3
    given, none = llr_fast.robustness(model, x, y=y), llr_fast.robustness(model, x)
    assert (given.lower[::2] == 0).all() and (given.upper[::2] == 0).all() and given.exact[::2].all()
    assert torch.equal(given.adversarial[::2], x[::2]) and torch.equal(given.lower[1::2], none.lower[1::2])


@pytest.mark.parametrize(
    "y", [torch.zeros(1, dtype=torch.long), torch.tensor([0, 3]), torch.tensor([0.0, 1.0]), torch.tensor([0, -1])]
)
def test_labels_that_are_none_are_refused(y):
    with pytest.raises(ValueError, match=r"y: expected"):
        llr_fast.robustness(plain(2, 4, 3), torch.zeros(2, 2, dtype=DTYPE), y=y)


@pytest.mark.parametrize("regions, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_numbers_of_regions_that_are_none_are_refused(regions, error):
    with pytest.raises(error, match="regions: expected"):
        llr_fast.robustness(plain(2, 4, 3), torch.zeros(1, 2, dtype=DTYPE), regions=regions)


def test_a_constant_class_is_kept_everywhere():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[2].weight.data[1] = model[2].weight.data[0]
    model[2].bias.data = torch.tensor([1.0, 0.0], dtype=DTYPE)
    found = llr_fast.robustness(model, torch.randn(2, 2, dtype=DTYPE), regions=None)
    assert found.exact.all() and found.lower.isinf().all() and found.adversarial.isnan().all()


class Sum(nn.Module):
    """Neurons with kinks along three lines through the origin, whose closed pieces below meet there alone."""

    def forward(self, x):
        a, b = x[:, 0], x[:, 1]
        kinks = torch.relu(a) + torch.relu(b) + torch.relu(-a - b) + torch.relu(-a)
        return torch.stack([torch.ones_like(a) + 0 * a, kinks], 1)


@pytest.mark.parametrize("p", NORMS)
def test_on_kinks_that_leave_no_region(p):
    x = torch.zeros(1, 2, dtype=DTYPE)
    found = llr_fast.robustness(Sum(), x, p, regions=None)
    assert found.lower[0].item() == pytest.approx(nearest_on_plane(Sum(), x[0], 0, p), rel=1e-6)


def test_convolutions_and_pools_and_samples_of_any_shape():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)).double()
    x = torch.randn(2, 1, 3, 3, dtype=DTYPE)
    found = llr_fast.robustness(model, x, regions=10)
    assert found.adversarial.shape == x.shape and (found.regions > 1).any()
    for i, label in enumerate(model(x).argmax(1)):
        near = ball(x[i].flatten(), min(found.lower[i].item(), 5.0) * (1 - 1e-9), 2).view(-1, 1, 3, 3)
        assert (model(near).argmax(1) == label).all()


def test_agrees_with_geocert_on_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).double() / 16, torch.from_numpy(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
        optimizer.step()
    found = llr_fast.robustness(model, x[-3:], regions=None)
    assert found.exact.all() and (found.regions > 1).all()
    for i, sample in enumerate(x[-3:]):
        truth, regions = geocert.distance(*(t.detach().numpy() for t in model.parameters()), sample.numpy())
        assert found.lower[i].item() == pytest.approx(truth, rel=1e-6)
        assert found.regions[i] <= regions + 2


def test_progress_shows_the_regions(capsys, monkeypatch):
    monkeypatch.setattr("llr_fast.regions.robustness.PATIENCE", 0)
    llr_fast.robustness(plain(2, 8, 8, 3), torch.randn(2, 2, dtype=DTYPE), regions=50, progress=True)
    assert "robustness" in capsys.readouterr().err


@pytest.mark.parametrize("p", NORMS)
def test_distance_of_a_polytope_is_bounded_from_both_sides(p):
    generator = np.random.default_rng(0)
    for _ in range(20):
        normals = generator.standard_normal((8, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        inside = 3 * generator.standard_normal(3)
        found = polytope.nearest(Polytope(normals, normals @ inside + generator.random(8)), p)
        assert found.point is not None
        assert found.bound == pytest.approx(np.linalg.norm(found.point, p), rel=1e-6, abs=1e-12)
        assert found.bound <= np.linalg.norm(inside, p) * (1 + 1e-9)


@pytest.mark.parametrize("p", NORMS)
def test_an_empty_polytope_is_infinitely_far(p):
    empty = Polytope(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.array([-2.0, 1.0, 5.0]))
    assert polytope.nearest(empty, p) == (math.inf, None)
