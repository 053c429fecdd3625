"""Regions on planes in three ways that share little: layer by layer, by evaluation, and cut one polygon at a time."""

import networks
import pytest
import torch
from torch import nn

from llr_fast.dispatch import backend, backends
from llr_fast.errors import NotPiecewiseLinearError
from llr_fast.ops.cut_polygons import cut_polygons
from llr_fast.regions import dense
from llr_fast.regions.plane import Plane, regions_on_plane

DTYPE = torch.float64
EXTENT = (-1.5, 1.0, -1.0, 2.0)
BACKENDS = ["reference", *(["native"] if backends()["native"] is None else [])]
needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="the C++ extension is not built")


class Wrapped(nn.Module):
    """The same function, which cannot be read from the modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def random_network(seed: int, *widths: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(m, n, bias=bias) for m, n in zip((2, *widths), widths)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())), nn.Linear(widths[-1], 1))


@torch.no_grad()
def degenerate_network(kind: str) -> nn.Sequential:
    model = random_network(3, 8, 8).double()  # coinciding lines of float32 may lie apart by more than rounding
    first, second = model[0], model[2]
    if kind == "dead neurons":
        first.weight[:3], first.bias[:3] = 0, torch.tensor([0.0, 1.0, -1.0], dtype=DTYPE)
        second.weight[2], second.bias[2] = -1, -1
        second.weight[:2], second.bias[:2] = 0, 0
    elif kind == "one line, several neurons":
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        first.weight[2], first.bias[2] = -3 * first.weight[0], -3 * first.bias[0]
        second.weight[1], second.bias[1] = 2 * second.weight[0], 2 * second.bias[0]
    elif kind == "lines through one point":
        first.bias[:] = -first.weight @ torch.tensor([-0.25, 0.5], dtype=DTYPE)
    elif kind == "lines through corners":
        corners = torch.tensor([[-1.5, -1.0], [1.0, -1.0], [1.0, 2.0], [-1.5, 2.0]], dtype=DTYPE).repeat(2, 1)
        first.bias[:] = -(first.weight * corners).sum(1)
    elif kind == "lines along sides":
        first.weight[:4] = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 2]], dtype=DTYPE)
        first.bias[:4] = torch.tensor([1.5, 1.0, -1.0, -4.0], dtype=DTYPE)
    elif kind == "no line":
        first.weight[:], first.bias[:] = first.weight / 100, 1
        second.bias[:] = 100
    return model


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """The same polygons in any order, up to rotation of their vertices."""
    assert len(found) == len(wanted)
    centres = [torch.stack([polygon.mean(0) for polygon in polygons]) for polygons in (found, wanted)]
    nearest = torch.cdist(*centres).argmin(1)
    assert len(nearest.unique()) == len(nearest)
    for polygon, index in zip(found, nearest.tolist()):
        other = wanted[index]
        assert len(polygon) == len(other)
        shift = int((other - polygon[0]).norm(dim=1).argmin())
        torch.testing.assert_close(polygon, other.roll(-shift, 0), rtol=0, atol=1e-9)


def total_area(polygons: list[torch.Tensor]) -> float:
    return sum(0.5 * float((x * y.roll(-1) - y * x.roll(-1)).sum()) for x, y in (p.unbind(1) for p in polygons))


def found_by(name: str, model: nn.Module, extent: tuple[float, ...] = EXTENT) -> list[torch.Tensor]:
    with backend(name):
        return regions_on_plane(model, extent, like=torch.zeros(1), progress=False)


def assert_all_agree(model: nn.Module, extent: tuple[float, ...] = EXTENT) -> None:
    assert dense.steps_of(model) is not None and dense.steps_of(Wrapped(model)) is None
    wanted = found_by("reference", Wrapped(model), extent)
    left, right, bottom, top = extent
    for name in BACKENDS:
        for network in (model, Wrapped(model)):
            found = found_by(name, network, extent)
            assert_same(found, wanted)
            assert total_area(found) == pytest.approx((right - left) * (top - bottom), rel=1e-9)


@pytest.mark.parametrize("widths", [(1,), (5,), (70, 3), (16, 16, 16), (3, 9, 2, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_random_networks(seed, widths):
    assert_all_agree(random_network(seed, *widths))


@pytest.mark.parametrize(
    "kind",
    [
        *("dead neurons", "one line, several neurons", "lines through one point", "lines through corners"),
        *("lines along sides", "no line"),
    ],
)
def test_degenerate_networks(kind):
    assert_all_agree(degenerate_network(kind))


@pytest.mark.parametrize("extent", [(-1e-6, 1e-6, -1, 1), (999, 1001, -1001, -999), (-1e5, 1e5, -1e5, 1e5)])
def test_degenerate_windows(extent):
    assert_all_agree(random_network(1, 12, 12), extent)


def test_networks_without_biases_and_of_other_dtypes():
    assert_all_agree(random_network(0, 10, 10, bias=False))
    assert_all_agree(random_network(0, 10, 10).double())
    assert_all_agree(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.ReLU()), nn.ReLU()))
    assert_all_agree(nn.Sequential(nn.Linear(2, 4)))


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.LeakyReLU(-1.0), nn.ReLU6()])
def test_other_activations(activation):
    model = random_network(0, 9, 9, 9)
    with torch.no_grad():
        model[0].weight *= 4  # beyond the upper kink too
    assert_all_agree(nn.Sequential(*(activation if isinstance(module, nn.ReLU) else module for module in model)))


def test_several_chunks(monkeypatch):
    model = random_network(0, 16, 16, 16)
    whole = found_by("auto", model)
    monkeypatch.setattr(dense, "_CHUNK_BUDGET", 4 * 8 * 16 * 7)
    assert_same(found_by("auto", model), whole)


@needs_native
@pytest.mark.parametrize("name", ["max_pool2d", "residual", "conv2d", "relu6", "concatenating", "recurrent_time_first"])
def test_other_architectures(name):
    model, x = networks.build(name)
    plane = Plane(model, x)
    found = []
    for chosen in BACKENDS:
        with backend(chosen):
            found.append(regions_on_plane(plane, EXTENT, like=x, progress=False))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("change", ["hook", "global hook", "forward", "subclass", "parametrization"])
def test_what_modules_may_hide_is_evaluated(change):
    model = random_network(0, 4, 4)
    layer = model[0]
    handle = None
    if change == "hook":
        layer.register_forward_hook(lambda module, args, out: -out)
    elif change == "global hook":
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    elif change == "forward":
        layer.forward = lambda x: nn.functional.linear(x, -layer.weight)
    elif change == "subclass":
        layer.__class__ = type("Own", (nn.Linear,), {})
    else:
        nn.utils.parametrizations.weight_norm(layer)
    try:
        assert dense.steps_of(model) is None
        assert_same(found_by("auto", model), found_by("auto", Wrapped(model)))
    finally:
        if handle is not None:
            handle.remove()


def test_a_class_that_does_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda module, x: x.clamp_min(-0.5))
    with pytest.raises(ValueError, match="model: expected the plain model's output"):
        found_by("auto", random_network(0, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_that_are_not_finite_are_refused(value):
    model = random_network(0, 4, 4)
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(ValueError, match="model: expected finite values"):
        found_by("auto", model)


SQUARE = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=DTYPE)


def cut(lines: list[tuple[float, float, float]], name: str, thinnest: float = 1e-9) -> list[torch.Tensor]:
    """The parts of the unit square between lines through (1/2 + a, 1/2 + b)."""
    rows = torch.tensor(lines, dtype=DTYPE).reshape(-1, 3).t()[:, None]
    with backend(name):
        vertices, sizes, centres, origin = cut_polygons(
            SQUARE, torch.tensor([4]), SQUARE.mean(0, keepdim=True), [rows], thinnest
        )
    parts = list(vertices.split(sizes.tolist()))
    torch.testing.assert_close(centres, torch.stack([part.mean(0) for part in parts]))
    assert origin.tolist() == [0] * len(parts)
    return parts


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "lines, areas",
    [
        ([], [1]),
        ([(0, 0, 1), (0, 0, 0), (0, 0, -1)], [1]),
        ([(1, 0, 0)], [0.5, 0.5]),
        ([(1, 0, 0), (-2, 0, 0), (1, 0, 1e-12)], [0.5, 0.5]),
        ([(1, 1, 0), (1, -1, 0)], [0.25] * 4),
        ([(1, 0, 0.5), (1, 0, -0.5), (1, 1, 1), (1, 1, -1.5)], [1]),
        ([(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, -1, 0)], [0.125] * 8),
        ([(1e-150, 0, 0), (0, 1e150, 0)], [0.25] * 4),
    ],
)
def test_lines_through_a_square(name, lines, areas):
    assert sorted(map(lambda p: total_area([p]), cut(lines, name))) == pytest.approx(areas)


@pytest.mark.parametrize("name", BACKENDS)
def test_many_polygons_at_once(name):
    """Only the first layer that has any line in a polygon cuts it; the parts of each come together, in order."""
    many = 300
    vertices, sizes, centres = SQUARE.repeat(many, 1), torch.full((many,), 4), torch.full((many, 2), 0.5, dtype=DTYPE)
    first, second = torch.zeros(2, 3, many, 70, dtype=DTYPE)
    first[0, ::2, 69], second[1, :, 0] = 1, 1
    with backend(name):
        found, counts, _, origin = cut_polygons(vertices, sizes, centres, [first, second], 0)
    assert origin.tolist() == [p for p in range(many) for _ in range(2)] and (counts == 4).all()
    width, height = (found.view(-1, 4, 2).amax(1) - found.view(-1, 4, 2).amin(1)).unbind(1)
    assert (torch.where(origin % 2 == 0, width, height) == 0.5).all()
    with backend(name):
        empty = cut_polygons(SQUARE[:0], sizes[:0], centres[:0], [first[:, :0]], 0)
    assert [tuple(t.shape) for t in empty] == [(0, 2), (0,), (0, 2), (0,)]


@needs_native
def test_threads_find_the_same_in_the_same_order():
    torch.manual_seed(0)
    lines = [torch.randn(3, 50, 9, dtype=DTYPE)]
    arguments = (SQUARE.repeat(50, 1), torch.full((50,), 4), torch.full((50, 2), 0.5, dtype=DTYPE), lines, 1e-9)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            with backend("native"):
                found.append(cut_polygons(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_operator():
    arguments = (SQUARE, torch.tensor([4]), SQUARE[:1] + 0.5, [torch.ones(3, 1, 2, dtype=DTYPE)], 1e-9)
    torch.library.opcheck(torch.ops.llr_fast.cut_polygons.default, arguments)


@pytest.mark.parametrize(
    "place, wrong, error, message",
    [
        (0, SQUARE.float(), TypeError, "vertices: expected float64"),
        (0, SQUARE[:, :1], ValueError, r"vertices: expected shape \[V, 2\]"),
        (1, torch.tensor([4.0]), TypeError, "sizes: expected an int64"),
        (1, torch.tensor([2, 2]), ValueError, r"centres: expected shape \[2, 2\]"),
        (1, torch.tensor([5]), ValueError, "sizes: expected at least 3 and 4 in all, got at least 5 and 5"),
        (3, [torch.ones(2, 1, 2, dtype=DTYPE)], ValueError, r"lines\[0\]: expected shape \[3, 1, n_0\]"),
        (4, float("nan"), ValueError, "thinnest: expected at least 0"),
    ],
)
def test_operator_refuses(place, wrong, error, message):
    arguments = [SQUARE, torch.tensor([4]), SQUARE[:1] + 0.5, [torch.ones(3, 1, 2, dtype=DTYPE)], 1e-9]
    arguments[place] = wrong
    with pytest.raises(error, match=message):
        cut_polygons(*arguments)


def test_modules_on_a_plane_keep_their_names():
    plane = Plane(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), torch.randn(3, 3))
    with pytest.raises(NotPiecewiseLinearError, match="sigmoid in module '1'"):
        regions_on_plane(plane, (-1, 1, -1, 1), like=torch.zeros(1), progress=False)
