"""Regions on a plane, and the pictures of them."""

import math
import sys

import networks
import pytest
import torch
from torch import nn

import llr_fast
from llr_fast.plot import plot_regions, plot_stability_bounds
from llr_fast.regions.boundary import decision_boundary
from llr_fast.regions.plane import Plane, regions_on_plane

DTYPE = torch.float64
EXTENT = (-3.0, 3.0, -2.0, 4.0)
PLANAR = [
    *("relu", "leaky_relu_negative", "relu6", "hardshrink", "prelu_each_channel", "maximum", "reused", "concatenating"),
    *("conv2d", "residual", "recurrent_time_first", "frames", "max_pool1d_padded", "adaptive_max_pool2d"),
]


def area(polygon: torch.Tensor) -> float:
    x, y = polygon.unbind(1)
    return 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs().item()


def on_plane(name: str) -> tuple[Plane, torch.Tensor]:
    model, x = networks.build(name)
    return Plane(model, x), x


def dense(inputs: int = 2, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, outputs))


@pytest.mark.parametrize("name", PLANAR)
def test_regions_tile_the_rectangle_and_are_distinct(name):
    model, x = on_plane(name)
    regions = regions_on_plane(model, EXTENT, like=x, progress=False)
    assert sum(map(area, regions)) == pytest.approx(36, rel=1e-12)
    inside = torch.stack([polygon.mean(0) for polygon in regions])
    patterns = {tuple(row) for row in llr_fast.activation_pattern(model, inside).tolist()}
    assert len(patterns) == len(regions)
    grid = torch.cartesian_prod(torch.linspace(-3, 3, 31), torch.linspace(-2, 4, 31)).double() * 0.999
    assert {tuple(row) for row in llr_fast.activation_pattern(model, grid).tolist()} <= patterns


@pytest.mark.parametrize("name", ["relu6", "conv2d", "max_pool2d", "decoder"])
def test_pattern_is_constant_inside_each_region(name):
    model, x = on_plane(name)
    generator = torch.Generator().manual_seed(0)
    for polygon in regions_on_plane(model, EXTENT, like=x, progress=False)[:20]:
        weight = torch.rand(10, len(polygon), generator=generator, dtype=DTYPE) + 0.1
        points = weight / weight.sum(1, keepdim=True) @ polygon
        assert len(llr_fast.activation_pattern(model, points).unique(dim=0)) == 1


def test_neuron_in_a_kink_all_over_the_plane_draws_no_line():
    """Its terms cancel on the plane up to rounding, in front of neurons that do have lines there."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    plane = Plane(model, torch.randn(3, 5, dtype=DTYPE))
    want = len(regions_on_plane(plane, EXTENT, like=plane.origin, progress=False))
    normal = torch.linalg.svd(plane.axes).Vh[2:]
    with torch.no_grad():
        first = model[0]
        widened = nn.Linear(5, 16).double()
        widened.weight[:12], widened.bias[:12] = first.weight, first.bias
        widened.weight[12:] = 100 * torch.randn(4, 3, dtype=DTYPE) @ normal
        widened.bias[12:] = -widened.weight[12:] @ plane.origin
        plane.model = nn.Sequential(widened, nn.ReLU(), nn.Linear(16, 3).double())
    assert len(regions_on_plane(plane, EXTENT, like=plane.origin, progress=False)) == want


def test_regions_equal_regioncam():
    regioncam = pytest.importorskip("regioncam")
    model, camera = dense(), regioncam.Regioncam(size=2.0)
    for layer in model:
        if isinstance(layer, nn.Linear):
            camera.linear(layer.weight.detach().t().numpy(), layer.bias.detach().numpy())
        else:
            camera.relu()
    expected = torch.tensor([face.area for face in camera.faces]).double().sort().values
    found = torch.tensor([area(p) for p in regions_on_plane(model, (-2, 2, -2, 2), like=torch.zeros(1))])
    torch.testing.assert_close(found.double().sort().values, expected, rtol=1e-3, atol=1e-6)


def test_plane_passes_through_its_points():
    model, x = networks.build("conv2d")
    plane = Plane(model, x)
    c = plane.coordinates(x)
    torch.testing.assert_close(plane(c), model(x))
    torch.testing.assert_close((c[1] - c[2]).norm(), (x[1] - x[2]).norm())
    assert c[0].abs().max() < 1e-12 and c[1, 0] > 0 and c[1, 1].abs() < 1e-12 and c[2, 1] > 0


@pytest.mark.parametrize("seed", range(8))
def test_planes_are_not_mirrored(seed):
    points = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    c = Plane(nn.ReLU(), points).coordinates(points)
    assert c[0].abs().max() < 1e-12 and c[1, 0] > 0 and c[1, 1].abs() < 1e-12 and c[2, 1] > 0


@pytest.mark.parametrize(
    "points, message", [(torch.zeros(2, 5), "three points"), (torch.ones(3, 5), "three points that are not")]
)
def test_plane_refuses(points, message):
    with pytest.raises(ValueError, match=f"through: expected {message}"):
        Plane(nn.ReLU(), points)


def test_empty_rectangle_is_refused():
    with pytest.raises(ValueError, match="extent: expected left < right"):
        regions_on_plane(nn.ReLU(), (1, 0, 0, 1), like=torch.zeros(1))


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_balls_have_the_margin_as_radius(p):
    model, x = dense(), torch.tensor([[0.5, 0.25], [-1.0, 1.0]])
    ax = plot_regions(model, x, p=p, progress=False)
    paths = next(c for c in ax.collections if type(c).__name__ == "PatchCollection").get_paths()
    for path, centre, radius in zip(paths, x, llr_fast.margin(model, x, p).value, strict=True):
        corners = torch.from_numpy(path.vertices) - centre
        norms = torch.linalg.vector_norm(corners, p, dim=1)
        if p == 2:  # drawn by Bezier curves, whose control points lie outside
            assert norms.min().item() == pytest.approx(radius.item(), rel=1e-3)
        else:
            torch.testing.assert_close(norms, radius.expand(len(norms)), rtol=1e-6, atol=0)
            assert corners.abs().prod(1).max() < 1e-9 or p == math.inf


def test_picture_holds_every_region_and_the_gradients():
    model, x = dense(outputs=3), torch.tensor([[0.5, 0.25], [-1.0, 1.0]])
    extent = (-2, 2, -1, 1)
    ax = plot_regions(model, x, extent=extent, target=1, y=torch.tensor([0, 1]), progress=False)
    boundaries, _, _, arrows, *points = ax.collections
    assert len(boundaries.get_paths()) == len(regions_on_plane(model, extent, like=x))
    inside = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inside)[:, 1].sum(), inside)
    drawn = torch.stack([torch.from_numpy(arrows.U), torch.from_numpy(arrows.V)], 1)
    torch.testing.assert_close(drawn / drawn.norm(dim=1).max(), gradient / gradient.norm(dim=1).max())
    assert len(points) == 2 and ax.get_xlim() == (-2, 2) and ax.get_ylim() == (-1, 1)
    assert "class 1" in ax.figure.axes[1].get_ylabel()
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["decision boundary", "class 0", "class 1", "margin, l2", "gradient of the logit"]


@pytest.mark.parametrize("outputs, target", [(1, -1), (2, 0), (4, 0), (4, 2), (4, -1)])
def test_decision_boundary(outputs, target):
    """On it the class is as likely as the best of the others, and where it crosses a line the prediction turns."""
    model, extent = dense(outputs=outputs).double(), (-4.0, 4.0, -3.0, 5.0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)

    def lead(points):
        logits = model(points).detach()
        others = logits.index_fill(1, torch.tensor(range(outputs)[target]), -math.inf)
        return logits[:, 0] if outputs == 1 else logits[:, target] - others.amax(1)

    like = torch.zeros(1, dtype=DTYPE)
    segments = decision_boundary(model, regions_on_plane(model, extent, like=like), like, target)
    assert segments.shape[1:] == (2, 2) and len(segments) > 3, len(segments)
    for share in (0.0, 0.3, 1.0):
        assert lead(torch.lerp(segments[:, 0], segments[:, 1], share)).abs().max() < 1e-12
    for height in torch.linspace(-2.9, 4.9, 14, dtype=DTYPE):
        x = torch.linspace(-4, 4, 4001, dtype=DTYPE)
        turns = (lead(torch.stack([x, height.expand(4001)], 1)) >= 0).int().diff().abs().sum()
        below = segments[..., 1] < height
        assert turns == (below[:, 0] != below[:, 1]).sum()


@pytest.mark.parametrize("outputs", [1, 2])
def test_heat_map_is_the_probability(outputs):
    model = dense(outputs=outputs)
    ax = plot_regions(model, extent=(-1, 1, -1, 1), resolution=2, progress=False)
    left_bottom, right_top = torch.tensor([[-0.5, -0.5]]), torch.tensor([[0.5, 0.5]])
    image = ax.images[0].get_array()
    for value, corner in ((image[0, 0], left_bottom), (image[1, 1], right_top)):
        logit = model(corner)[0]
        expected = logit.sigmoid() if outputs == 1 else logit.softmax(0)[-1:]
        assert value == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("target", [0, 1, -2])
def test_pictures_are_of_the_target(target):
    """Probabilities at every pixel of an uneven rectangle, in its place, and arrows."""
    model, x, extent = dense(outputs=3), torch.tensor([[0.5, 0.25], [-1.0, 1.0]]), (-2, 1, -1, 3)
    ax = plot_regions(model, x, extent=extent, target=target, resolution=5, progress=False)
    image = torch.from_numpy(ax.images[0].get_array().data)
    across, up = torch.linspace(-2, 1, 11)[1::2], torch.linspace(-1, 3, 11)[1::2]
    expected = [[model(torch.stack([a, b])[None]).softmax(1)[0, target].item() for a in across] for b in up]
    torch.testing.assert_close(image, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert tuple(ax.images[0].get_extent()) == extent
    inside = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inside)[:, target].sum(), inside)
    arrows = next(c for c in ax.collections if hasattr(c, "U"))
    drawn = torch.stack([torch.from_numpy(arrows.U), torch.from_numpy(arrows.V)], 1)
    torch.testing.assert_close(drawn, 0.3 * gradient / gradient.norm(dim=1).max())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_1$", "$x_2$")


def test_plane_through_inputs_of_any_shape(tmp_path):
    model, x = networks.build("max_pool2d")
    ax = plot_regions(model.float(), through=x.float(), progress=False)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance along the plane", "distance across")
    ax.figure.savefig(tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "extent: expected left, right, bottom, top where no points"),
        ({"x": torch.zeros(2, 5)}, r"x: expected points \[B, 2\], got shape \(2, 5\); use through="),
        ({"x": torch.zeros(3, 2), "through": torch.eye(3)}, "x: expected None"),
    ],
)
def test_regions_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        plot_regions(dense(), **options)


def test_stability_bounds_are_directional_margins():
    model, x = networks.build("recurrent_batch_first")
    ax = plot_stability_bounds(model, x[0], 1, unit="volts")
    bars = ax.collections[0].get_segments()
    for step, bar in enumerate(bars):
        direction = torch.zeros_like(x[:1])
        direction[0, step, 1] = 1
        low = x[0, step, 1] - llr_fast.directional_margin(model, x[:1], -direction)[0]
        high = x[0, step, 1] + llr_fast.directional_margin(model, x[:1], direction)[0]
        bottom, top = ax.get_ylim()
        assert bar[0][1] == pytest.approx(max(low.item(), bottom)) and bar[1][1] == pytest.approx(min(high.item(), top))
    assert len(bars) == 4 and "volts" in ax.get_ylabel()


def test_stability_without_a_kink_has_a_marker():
    ax = plot_stability_bounds(nn.ReLU(), torch.tensor([[1.0], [-2.0], [3.0]]), 0)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["stable range of one step", "sequence", "no kink below", "no kink above"]


@pytest.mark.parametrize("x, channel", [(torch.zeros(2, 3, 4), 0), (torch.zeros(3, 4), 4)])
def test_stability_refuses(x, channel):
    with pytest.raises(ValueError, match=r"x: expected a sequence \[T, C\] with channel"):
        plot_stability_bounds(nn.ReLU(), x, channel)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: plot_regions(dense(), torch.zeros(1, 2)),
        lambda: plot_stability_bounds(nn.ReLU(), torch.zeros(2, 1), 0),
    ):
        with pytest.raises(ImportError, match=r'pip install "(\.|llr-fast)\[plot\]"'):
            draw()
