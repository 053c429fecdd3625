"""Everything public of one network against the oracle: `failures` lists what differs."""

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from unittest import mock

import oracle
import torch
from torch import Tensor

import llr_fast
from llr_fast.certificates import bounds

from . import blocks
from .networks import Network

DOUBLE = torch.float64
NORMS = (1, 2, math.inf)
VALUE = 1e-9  # relative error of values, margins and gradients of the neurons reported
NORM = 1e-3  # relative error of the norms of all neurons
LOSS = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative error of losses, by the dtype of the model
INSIDE = 1e-4  # part of a margin by which points stay on one side of a boundary
CHECKS: list[Callable] = []


class Case:
    """A network and what the oracle knows of it."""

    def __init__(self, network: Network):
        self.network, self.model, self.x = network, network.model, network.x
        self.twin, self.points = network.twin(), network.x.double()
        self.p = NORMS[network.seed % 3]  # for what is checked with one norm alone
        self.found: dict[float, llr_fast.Margin] = {}
        self.generator = torch.Generator().manual_seed(network.seed)

    @functools.cached_property
    def differentiable(self) -> list[list[oracle.Layer]]:
        return [oracle.neurons(self.twin, sample, create_graph=True) for sample in self.points.split(1)]

    @functools.cached_property
    def samples(self) -> list["Sample"]:
        return [Sample(oracle.neurons(self.twin, point)) for point in self.points.split(1)]

    def states(self, point: Tensor) -> Tensor:
        return oracle.pattern(self.twin, point.unsqueeze(0))

    def has(self, *parts: type) -> bool:
        return any(isinstance(module, parts) for module in self.model.modules())

    @property
    def well_conditioned(self) -> bool:
        """Whether rounding to float32 is small against all that the network computes."""
        return self.network.scale == 1 and not self.has(blocks.NearlyEqual, blocks.ZeroSum)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=DOUBLE)


class Sample:
    """All neurons of one sample."""

    def __init__(self, layers: list[oracle.Layer]):
        self.layers = layers
        self.distance = torch.cat([layer.distance for layer in layers])
        self.offset = torch.cat([layer.offset for layer in layers])
        self.gradient = torch.cat([layer.gradient for layer in layers])
        self.size = torch.cat([layer.z.abs() + abs(max(layer.kinks, key=abs)) for layer in layers])

    def norm(self, q: float) -> Tensor:
        return torch.cat([layer.norm(q) for layer in self.layers])

    def margins(self, p: float) -> Tensor:
        return torch.cat([layer.margin(p) for layer in self.layers])

    def margin(self, p: float) -> float:
        return self.margins(p).min().item()

    @property
    def clear(self) -> bool:
        """Whether rounding puts no neuron whose kink is a boundary on the other side of it."""
        bounding = self.norm(2) > 0
        return bool((self.distance > 1e-9 * self.size)[bounding].all())


def failures(network: Network) -> dict[str, str]:
    """What is wrong, by the name of the check."""
    case, found = Case(network), {}
    before = _remembered(network)
    # Every other network goes the way of large ones, whose bounds are of float32.
    few = 0 if network.seed % 2 else bounds.FEW
    for check in CHECKS:
        try:
            with mock.patch.object(bounds, "FEW", few):
                check(case)
        except Exception as error:
            found[check.__name__] = f"{type(error).__name__}: {str(error).strip()[:400]}"
    try:
        _unchanged(network, before)
    except Exception as error:
        found["unchanged"] = f"{type(error).__name__}: {str(error).strip()[:400]}"
    return found


def check(function: Callable) -> Callable:
    CHECKS.append(function)
    return function


def expect(right: bool, message: str) -> None:
    if not right:
        raise AssertionError(message)


def close(got: Tensor, want: Tensor, rtol: float, what: str, atol: float = 0.0) -> None:
    got, want = got.detach().double(), want.detach().double()
    expect(got.shape == want.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    good = (got == want) | ((got - want).abs() <= atol + rtol * want.abs())
    expect(bool(good.all()), f"{what}: {_list(got[~good])} instead of {_list(want[~good])}")


def _list(numbers: Tensor) -> str:
    return ", ".join(f"{number:.12g}" for number in numbers.flatten()[:3].tolist())


@check
def margins(case: Case) -> None:
    """In a batch and one by one."""
    for p in NORMS:
        want = torch.tensor([sample.margin(p) for sample in case.samples], dtype=DOUBLE)
        for method in ("search", "exact") if p == case.p else ("exact",):
            found = llr_fast.margin(case.model, case.x, p, method=method)
            _is_margin(case, found, want, f"margin(p={p}, method={method!r})")
            case.found[p] = found
        if p == case.p:
            alone = torch.cat([llr_fast.margin(case.model, sample, p).value for sample in case.x.split(1)])
            close(alone, want, VALUE, f"margin(p={p}) of single samples")


def _is_margin(case: Case, found: llr_fast.Margin, want: Tensor, what: str) -> None:
    close(found.value, want, VALUE, what)
    for b, sample in enumerate(case.samples):
        got = found.gradient[b].flatten().double()
        if math.isinf(want[b]):
            expect(int(found.layer[b]) == int(found.neuron[b]) == -1, f"{what}: a neuron where none bounds the region")
            expect(not got.any(), f"{what}: a gradient where no neuron bounds the region")
            continue
        tied = sample.margins(found.p) <= want[b] * (1 + 10 * VALUE)
        expect(0 <= int(found.layer[b]) < len(found.layer_names), f"{what}: layer {int(found.layer[b])}")
        wrong = (sample.gradient[tied] - got).norm(dim=1) / sample.gradient[tied].norm(dim=1)
        expect(wrong.min().item() <= VALUE, f"{what}: gradient wrong by {wrong.min().item():.2g} of its norm")
        right = (sample.offset[tied] - found.offset[b]).abs() <= VALUE * sample.distance[tied]
        expect(bool((right & (wrong <= VALUE)).any()), f"{what}: offset {found.offset[b].item()}")


@check
def boundary_points(case: Case) -> None:
    """Just inside of its margin a sample keeps its pattern, just past its boundary point it does not."""
    for p in NORMS:
        found = case.found[p] if p in case.found else llr_fast.margin(case.model, case.x, p)
        reached = found.boundary_point(case.x).double()
        for b, sample in enumerate(case.samples):
            if math.isinf(sample.margin(p)):
                expect(bool(reached[b].isnan().all()), f"boundary point of an infinite margin, p={p}")
                continue
            start, step = case.points[b], reached[b] - case.points[b]
            length, margin = torch.linalg.vector_norm(step, p), torch.tensor(sample.margin(p), dtype=DOUBLE)
            close(length, margin, VALUE, f"distance of the boundary point, p={p}", atol=1e-13 * start.norm().item())
            if not sample.clear or margin < 1e-10 * start.abs().max():
                continue
            state = case.states(start)
            expect(torch.equal(case.states(start + (1 - INSIDE) * step), state), f"a kink within the margin, p={p}")
            expect(not torch.equal(case.states(start + (1 + INSIDE) * step), state), f"no kink at the margin, p={p}")


@check
def directional_margins(case: Case) -> None:
    if not all(sample.clear for sample in case.samples):  # on a kink, one of two pieces ends at once
        return
    direction = case.random(*case.x.shape).to(case.x.dtype)
    got = llr_fast.directional_margin(case.model, case.x, direction)
    along = [oracle.directional_margin(s.layers, d) for s, d in zip(case.samples, direction.double())]
    close(got, torch.tensor(along, dtype=DOUBLE), 1e-8, "directional_margin")


@check
def gradient_norms(case: Case) -> None:
    for q in NORMS:
        found = llr_fast.gradient_norms(case.model, case.x, q)
        alone = [llr_fast.gradient_norms(case.model, sample, q) for sample in case.x.split(1)] if q == case.p else []
        for b, sample in enumerate(case.samples):
            _are_norms([(n.distance[b], n.norm[b]) for n in found], sample, q, f"gradient_norms(q={q})")
            if alone:
                _are_norms([(n.distance[0], n.norm[0]) for n in alone[b]], sample, q, "gradient_norms of one sample")


def _are_norms(found: list[tuple[Tensor, Tensor]], sample: Sample, q: float, what: str) -> None:
    """Layers that have no neurons need not be there; the order of a pool's neurons is free."""
    found = [layer for layer in found if len(layer[0])]
    layers = [layer for layer in sample.layers if len(layer.z)]
    expect(len(found) == len(layers), f"{what}: {len(found)} layers instead of {len(layers)}")
    largest = max(layer.norm(q).max().item() for layer in layers)
    for i, ((distance, norm), layer) in enumerate(zip(found, layers)):
        want, wanted = layer.distance, layer.norm(q)
        size = layer.z.abs().max().item() + abs(max(layer.kinks, key=abs))
        if layer.pool and len(norm) == len(wanted):
            ours, theirs = _by_distance(distance, norm), _by_distance(want, wanted)
            distance, norm, want, wanted = distance[ours], norm[ours], want[theirs], wanted[theirs]
        close(distance, want, VALUE, f"{what}: distances of layer {i}", atol=1e-12 * size)
        close(norm, wanted, NORM, f"{what}: norms of layer {i}", atol=1e-13 * largest * bool((wanted == 0).any()))


def _by_distance(distance: Tensor, norm: Tensor) -> Tensor:
    """An order of neurons that rounding does not change: by distances of ten digits, then by norms."""
    keys = [(float(f"{d:.9e}"), n) for d, n in zip(distance.tolist(), norm.tolist())]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.long)


@check
def patterns(case: Case) -> None:
    found = llr_fast.activation_pattern(case.model, case.x)
    for b, sample in enumerate(case.samples):
        want = torch.cat([layer.piece for layer in sample.layers])
        expect(found[b].shape == want.shape, f"activation_pattern: {found[b].numel()} neurons instead of {len(want)}")
        alone = llr_fast.activation_pattern(case.model, case.x[b : b + 1])[0]
        certain = sample.distance > 1e-9 * sample.size
        if case.has(blocks.SamePool):  # in a window that holds padding by a constant, places may count without it
            certain &= torch.cat([torch.full(layer.z.shape, not layer.pool) for layer in sample.layers])
        expect(torch.equal(found[b][certain].long(), want[certain]), "activation_pattern")
        expect(torch.equal(alone, found[b]), "activation_pattern of one sample is not that in the batch")


@check
def densities(case: Case) -> None:
    for p in NORMS:
        ratios = torch.cat([sample.margins(p) for sample in case.samples])
        ratios = ratios[ratios.isfinite()].sort().values
        if not len(ratios):
            continue
        least, middle = ratios[0].item(), ratios[len(ratios) // 2].item()
        for radius in {1: (middle * 1.01,), 2: (least * 0.99, least * 1.01), math.inf: (0.0,)}[p]:
            if ((ratios - radius).abs() <= 2 * NORM * radius).any():
                continue
            want = torch.tensor([int((sample.margins(p) <= radius).sum()) for sample in case.samples])
            for method in ("exact", "search") if p == case.p else ("exact",):
                got = llr_fast.region_density(case.model, case.x, radius, p, method=method, progress=False)
                what = f"region_density(radius={radius:.4g}, p={p}, method={method!r})"
                expect(torch.equal(got, want), f"{what}: {got.tolist()} instead of {want.tolist()}")


@check
def segments(case: Case) -> None:
    """Pieces of one pattern are convex: where both ends of a region have its pattern, all of it has."""
    start = case.x[:1]
    end = (start + case.random(*start.shape) * _spread(case)).to(start.dtype)
    if not case.samples[0].clear or not end.isfinite().all():
        return
    (found,) = llr_fast.regions_along(case.model, start, end, progress=False)
    t = found.t
    expect(t[0].item() == 0 and t[-1].item() == 1 and bool((t.diff() > 0).all()), f"regions_along: t = {t.tolist()}")
    inside = [_states_within(case, found, i) for i in range(min(len(found), 40))]
    for i, states in enumerate(inside):
        if found.lengths[i] > 1e-6:
            # Neurons that stay in a kink change to and fro with rounding, others once.
            changes = (states.diff(dim=0) != 0).sum(0)
            expect(not (changes == 1).any(), f"regions_along: region {i} is several")
    for i, (left, right) in enumerate(itertools.pairwise(inside)):
        if found.lengths[i : i + 2].min() > 1e-10:
            expect(not torch.equal(left[-1], right[0]), f"regions_along: regions {i} and {i + 1} are one")


def _states_within(case: Case, found: llr_fast.Crossings, i: int) -> Tensor:
    """From one end of region i to the other, just inside of it: [P, N], at more than two points where they differ."""
    low, high = found.t[i].item(), found.t[i + 1].item()

    def at(part: float) -> Tensor:
        return case.states(torch.lerp(found.start.double(), found.end.double(), low + part * (high - low)))

    ends = [at(1e-3), at(1 - 1e-3)]
    between = [] if torch.equal(*ends) else [at(k / 20) for k in range(1, 20)]
    return torch.stack([ends[0], *between, ends[1]])


def _spread(case: Case) -> float:
    """A distance at which networks of every scale have other pieces."""
    finite = [m for m in case.samples[0].margins(2).tolist() if math.isfinite(m)]
    return 3 * sorted(finite)[len(finite) // 2] if finite else 1.0


@check
def counts(case: Case) -> None:
    near = case.points[:1] + _spread(case) * case.random(10, *case.x.shape[1:])
    x = torch.cat([near.to(case.x.dtype), case.x])
    x = x[x.isfinite().flatten(1).all(1)]
    if len(x) < 2:
        return
    found = llr_fast.count_linear_regions(case.model, [x[:1], x[1:]], progress=False)
    states = {tuple(case.states(point).tolist()) for point in x.double()}
    jacobians = torch.stack([_jacobian(case, point) for point in x.double()])
    jacobians = jacobians / jacobians.abs().max().clamp_min(1e-300)  # squares may be too small for float64
    distance = torch.cdist(jacobians, jacobians, compute_mode="donot_use_mm_for_euclid_dist")
    same = distance <= 1e-12 * torch.maximum(jacobians.norm(dim=1), jacobians.norm(dim=1)[:, None])
    distinct = len({tuple(row) for row in same.tolist()})
    expect(found.points == len(x), f"count_linear_regions: {found.points} points instead of {len(x)}")
    expect(found.lower <= found.upper, f"count_linear_regions: {found}")
    expect(found.upper == len(states), f"count_linear_regions: {found}, but {len(states)} patterns")
    expect(found.lower <= distinct, f"count_linear_regions: {found}, but {distinct} Jacobians")
    if case.well_conditioned:
        apart = _groups(distance > 1e-6 * jacobians.norm(dim=1).max())
        expect(found.lower >= apart, f"count_linear_regions: {found}, but {apart} Jacobians far from each other")


def _groups(apart: Tensor) -> int:
    """How many points there are no two of which are near each other, taken greedily."""
    chosen: list[int] = []
    for i in range(len(apart)):
        if all(apart[i, j] for j in chosen):
            chosen.append(i)
    return len(chosen)


def _jacobian(case: Case, point: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: case.twin(x)[0], point.unsqueeze(0)).flatten()


@check
def roll_loss(case: Case) -> None:
    if not _trains(case):
        return
    with torch.no_grad():
        want_output = case.model(case.x)
    for gamma, C, lam in ((100, 0.5, 2.0), (30, 1.0, 1.0)):
        want = oracle.roll_penalty_of(case.differentiable, lam, C, gamma)
        loss = llr_fast.ROLLLoss(case.model, gamma=gamma, C=C, lam=lam, estimator="exact")
        output, got = loss(case.x)
        close(output, want_output, LOSS[case.x.dtype], "output of ROLLLoss", atol=1e-6)
        clear = gamma == 100 or not _tied(case, C, gamma)
        _is_loss(case, got, want, f"ROLLLoss(gamma={gamma})", clear)
        if gamma == 100:
            axes = llr_fast.ROLLLoss(
                case.model, C=C, lam=lam, estimator="axis", samples=case.x[0].numel(), generator=case.generator
            )
            close(axes(case.x)[1], want, LOSS[case.x.dtype], "ROLLLoss along all axes")


@check
def margin_loss(case: Case) -> None:
    if not _trains(case):
        return
    tied = False
    for sample in case.samples:
        nearest = sample.margins(2).sort().values
        tied |= bool(len(nearest) > 1 and nearest[1] <= nearest[0] * (1 + 1e-6))
    _is_loss(
        case,
        llr_fast.MarginLoss(case.model)(case.x)[1],
        oracle.margin_penalty_of(case.differentiable),
        "MarginLoss",
        not tied,
    )


def _is_loss(case: Case, got: Tensor, want: Tensor, what: str, gradients: bool) -> None:
    rtol = LOSS[case.x.dtype]
    close(got, want, rtol, what)
    if not gradients:
        return
    ours = [p for p in case.model.parameters() if p.requires_grad]
    theirs = [p for p in case.twin.parameters() if p.requires_grad]
    options = {"allow_unused": True, "materialize_grads": True}
    got_each = _flat(
        torch.autograd.grad(got, ours, **options) if got.requires_grad else [torch.zeros_like(p) for p in ours]
    )
    want_each = _flat(
        torch.autograd.grad(want, theirs, retain_graph=True, **options)
        if want.requires_grad
        else [torch.zeros_like(p) for p in theirs]
    )
    # Squares of gradients may not be numbers.
    size = torch.maximum(want_each.abs().max(), got_each.abs().max()).clamp_min(1e-300)
    wrong, norm = ((got_each - want_each) / size).norm() * size, (want_each / size).norm() * size
    # Where the scale of a layer does not matter the true gradient is zero, and what is found rounding of this size.
    scales = [p.detach().abs().max().clamp(1e-300, 1) for p in theirs]
    terms = want.detach().abs() / min(scales, default=1)
    expect(bool(wrong <= 10 * rtol * (norm + terms)), f"gradient of {what} wrong by {wrong:.2g} of {norm:.2g}")


def _flat(gradients) -> Tensor:
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def _trains(case: Case) -> bool:
    """Whether the model can be trained, in a precision in which the loss is not all rounding."""
    clear = all(sample.clear and (sample.distance > 1e-4 * sample.size).all() for sample in case.samples)
    rough = case.x.dtype == torch.float32 and not (clear and case.well_conditioned)
    return case.x.dtype != torch.bfloat16 and not rough and _differentiable(case)


def _differentiable(case: Case) -> bool:
    try:
        case.model(case.x.clone().requires_grad_()).sum().backward()
    except RuntimeError:
        return False
    finally:
        case.model.zero_grad()
    return any(p.requires_grad for p in case.model.parameters())


def _tied(case: Case, C: float, gamma: float) -> bool:
    """Whether the neurons that count are nearly as large as those that do not."""
    for sample in case.samples:
        terms = sample.norm(2).square() + C * (1 - sample.distance).clamp(min=0)
        terms, count = terms.sort(descending=True).values, max(1, math.ceil(len(terms) * gamma / 100))
        if count < len(terms) and terms[count] >= terms[count - 1] * (1 - 1e-4):
            return True
    return False


@check
def evaluation(case: Case) -> None:
    y = torch.arange(len(case.x)) % 3
    std = 2.0 ** torch.arange(-1, case.x.shape[1] - 1)
    each = std.double().view(-1, *[1] * (case.x.dim() - 2)).expand(case.x.shape[1:]).flatten()
    with torch.no_grad():
        accuracy = (case.model(case.x).argmax(1) == y).double().mean().item()
    scale, factor = (std, each) if case.network.seed % 2 else (None, torch.ones_like(each))
    batches = list(zip(case.x.split(2), y.split(2)))
    report = llr_fast.evaluate(case.model, batches, case.p, std=scale, progress=False)
    expect(report.accuracy == accuracy, f"evaluate: accuracy {report.accuracy} instead of {accuracy}")
    want = [_scaled_margin(sample, factor, case.p) for sample in case.samples]
    close(report.margins[case.p], torch.tensor(want, dtype=DOUBLE), VALUE, f"evaluate(std={scale}, p={case.p})")


def _scaled_margin(sample: Sample, factor: Tensor, p: float) -> float:
    scaled = [layer._replace(gradient=layer.gradient / factor) for layer in sample.layers]
    return torch.cat([layer.margin(p) for layer in scaled]).min().item()


@check
def distortion(case: Case) -> None:
    """No gradient changes within the margin."""
    if case.x.dtype != DOUBLE or not _differentiable(case) or not all(sample.clear for sample in case.samples):
        return
    least = min(sample.margin(math.inf) for sample in case.samples)
    options = {"samples": 8, "population": 8, "generations": 1, "clip": None, "progress": False, "baseline": False}
    radius = 0.9 * least if math.isfinite(least) else 1.0
    y = torch.zeros(len(case.x), dtype=torch.long)
    found = llr_fast.gradient_distortion(case.model, case.x, y, radius, **options)
    size = torch.stack([_jacobian(case, point).abs().sum() for point in case.points])
    expect(bool((found.maximal <= 1e-9 * size).all()), f"gradient_distortion within the margin: {_list(found.maximal)}")


def _remembered(network: Network) -> dict:
    model = network.model
    return {
        "state": copy.deepcopy(model.state_dict()),
        "flags": [module.training for module in model.modules()],
        "trains": [p.requires_grad for p in model.parameters()],
    }


def _unchanged(network: Network, before: dict) -> None:
    model, after = network.model, _remembered(network)
    llr_fast.margin(model, network.x)
    for name, value in before["state"].items():
        expect(torch.equal(value, after["state"][name]), f"{name} was changed")
    expect(before["flags"] == after["flags"] and before["trains"] == after["trains"], "training flags were changed")
    for tensor in _tensors(model):
        expect(type(tensor) in (Tensor, torch.nn.Parameter), f"the model holds a {type(tensor).__name__}")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        same = torch.allclose(copied(network.x), model(network.x), rtol=0, atol=0, equal_nan=True)
        expect(same, "a copy of the model is another function")


def _tensors(model: torch.nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        held = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        yield from (value for value in held if isinstance(value, Tensor))
