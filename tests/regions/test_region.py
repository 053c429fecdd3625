"""region: halfspaces, facets and centre against the plane's exact polygons; the affine map against autograd."""

import math
from itertools import pairwise

import networks
import oracle
import pytest
import torch
from torch import nn

import llr_fast

DTYPE = torch.float64


def plain(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().eval()


@pytest.mark.parametrize("name", networks.NAMES)
def test_map_halfspaces_and_membership(name):
    model, x = networks.build(name)
    x = x[:1]
    region = llr_fast.region(model, x)
    a, b = region.halfspaces
    flat = x.flatten()
    with oracle.Recorder():  # which knows the derivatives that torch rounds
        jacobian = torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())
    torch.testing.assert_close(region.weight, jacobian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(region.weight @ flat + region.bias, model(x).detach().flatten(), rtol=1e-9, atol=1e-12)
    room = (a @ flat + b)[a.any(1)] / a[a.any(1)].norm(dim=1)
    assert room.min().item() == pytest.approx(oracle.margin(model, x, 2).item(), rel=1e-8)
    points = x + 3 * room.min() * torch.randn(40, *x.shape[1:], dtype=DTYPE)
    same = torch.tensor([torch.equal(oracle.pattern(model, q), oracle.pattern(model, x)) for q in points.split(1)])
    assert torch.equal(region.contains(points), same) and region.contains(x).all()


@pytest.mark.parametrize("seed", range(4))
def test_facets_and_centre_on_the_plane(seed):
    model, x = plain(2, 6, 6, 2, seed=seed), torch.randn(1, 2, dtype=DTYPE)
    region = llr_fast.region(model, x)
    a, b = region.halfspaces
    polygons = llr_fast.regions_on_plane(model, (-50, 50, -50, 50), like=x, progress=False)
    polygon = next(q for q in polygons if region.contains(q.mean(0, keepdim=True)))
    middles = (polygon + polygon.roll(1, 0)) / 2
    inner = middles[(middles.abs() < 50 - 1e-6).all(1)]  # of edges that are not the frame's
    at = (a @ inner.t() + b[:, None]).abs() / a.norm(dim=1)[:, None].clamp_min(1e-300)
    touching = (at < 1e-7).any(1).nonzero().flatten()
    far = set(region.facets().tolist()) - set(touching.tolist())  # these may touch outside of the frame
    assert set(touching.tolist()) <= set(region.facets().tolist()) and (not far or polygon.abs().max() > 50 - 1e-6)
    centre, radius = region.chebyshev()
    if radius < math.inf:
        room = (a @ centre + b)[a.any(1)] / a[a.any(1)].norm(dim=1)
        assert room.min().item() == pytest.approx(radius, rel=1e-6)
        grid = polygon.mean(0) + (polygon - polygon.mean(0))[:, None] * torch.linspace(0, 1, 30)[None, :, None].double()
        others = ((grid.reshape(-1, 2) @ a.t() + b) / a.norm(dim=1).clamp_min(1e-300))[:, a.any(1)].amin(1)
        assert others.max() <= radius + 1e-9


def test_equal_neurons_are_facets_together():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()).double()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=DTYPE)
    region = llr_fast.region(model, torch.ones(1, 2, dtype=DTYPE))
    assert region.facets().tolist() == [0, 1, 2] and region.chebyshev()[1] == math.inf
    assert torch.equal(region.chebyshev()[0], torch.ones(2, dtype=DTYPE))


def test_box_of_two_kinks():
    region = llr_fast.region(nn.ReLU6(), torch.tensor([[1.0, 2.0, 8.0]]))
    centre, radius = region.chebyshev()
    assert radius == pytest.approx(3.0) and centre[:2].tolist() == pytest.approx([3.0, 3.0])
    assert region.facets().tolist() == [0, 1, 3, 4, 5]  # above 6 the lower kink of the third one is no facet
    assert region.neuron.tolist() == [0, 1, 2, 0, 1, 2] and region.layer.tolist() == [0] * 6


def test_a_network_without_kinks():
    model = nn.Linear(3, 2).double()
    region = llr_fast.region(model, torch.zeros(1, 3))
    assert region.halfspaces[0].shape == (0, 3) and region.facets().tolist() == []
    assert region.contains(torch.randn(4, 3)).all() and region.chebyshev()[1] == math.inf


def test_complex_outputs_are_two_real_ones_and_integers_none():
    model, x = plain(3, 5, 4), torch.randn(1, 3, dtype=DTYPE)
    transform = torch.fft.rfft(torch.eye(4, dtype=DTYPE)).t()
    region = llr_fast.region(nn.Sequential(model, networks.Apply(torch.fft.rfft)), x)
    expected = torch.view_as_real(transform @ llr_fast.region(model, x).weight.to(transform.dtype))
    torch.testing.assert_close(region.weight, expected.movedim(2, 1).flatten(0, 1))
    places = nn.Sequential(model, networks.Apply(lambda t: t.argmax(1)))
    assert llr_fast.region(places, x).weight.shape == (0, 3)


def test_layers_have_the_names_that_margin_gives_them():
    model, x = plain(3, 5, 4, 2), torch.randn(1, 3, dtype=DTYPE)
    names = llr_fast.margin(model, x).layer_names
    assert names == ["1:relu", "3:relu"] == llr_fast.region(model, x).layer_names


def test_tolerance_is_a_distance():
    region = llr_fast.region(nn.ReLU(), torch.tensor([[2.0]]))
    assert region.contains(torch.tensor([[-0.1]]), 0.11).all() and not region.contains(torch.tensor([[-0.1]]), 0.09)


def test_several_samples_are_refused():
    with pytest.raises(ValueError, match=r"x: expected one sample"):
        llr_fast.region(nn.ReLU(), torch.zeros(2, 3))


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"points: expected shape \[M, \.\.\.\] of samples \(3,\)"):
        llr_fast.region(nn.ReLU(), torch.ones(1, 3)).contains(torch.zeros(2, 2))
