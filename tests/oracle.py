"""What the library computes, the slow way: one sample at a time, one backward pass per neuron, in float64.

Nothing here is shared with the library. The plain model runs under a torch function mode that notes the input of every
piecewise-linear function; pooling windows are enumerated by loops.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DUAL = {1: math.inf, 2: 2, math.inf: 1}


class Note(NamedTuple):
    """One call of a piecewise-linear function."""

    z: Tensor  # [n]
    kinks: list[float]
    winner: Tensor | None = None  # [n], of a max-pooling: the place in its window of the entry that is ahead by z
    wins: Tensor | None = None  # of a max-pooling: whether an entry is the largest of its window, for each of these

    @property
    def piece(self) -> Tensor:
        return sum((self.z > kink).long() for kink in self.kinks) if self.winner is None else self.winner

    @property
    def state(self) -> Tensor:
        """Equal at two points where the same piece holds, whichever of several equal entries a pool calls largest."""
        return (self.piece if self.wins is None else self.wins.long()).detach()


class Layer(NamedTuple):
    z: Tensor  # [n]
    kinks: list[float]
    gradient: Tensor  # [n, D]
    note: Note

    @property
    def pool(self) -> bool:
        return self.note.winner is not None

    @property
    def offset(self) -> Tensor:
        """z minus its nearest kink."""
        offsets = torch.stack([self.z - kink for kink in self.kinks])
        return offsets.gather(0, offsets.abs().argmin(0, keepdim=True))[0]

    @property
    def distance(self) -> Tensor:
        return self.offset.abs()

    def norm(self, q: float) -> Tensor:
        return torch.linalg.vector_norm(self.gradient, q, dim=1)

    def margin(self, p: float) -> Tensor:
        norm = self.norm(DUAL[p])
        return torch.where(norm > 0, self.distance / norm, math.inf)

    @property
    def piece(self) -> Tensor:
        return self.note.piece


def neurons(model: nn.Module, x: Tensor, create_graph: bool = False) -> list[Layer]:
    """The layers of one sample, x [1, ...], in the order in which the model calls its activations."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), Recorder() as recorder:
        model(x)
    layers = [Layer(note.z, note.kinks, gradients(note.z, x, create_graph), note) for note in recorder.layers]
    return layers if create_graph else [layer._replace(z=layer.z.detach()) for layer in layers]


@torch.no_grad()
def pattern(model: nn.Module, x: Tensor) -> Tensor:
    """What tells the pieces of one sample, x [1, ...], from those of another."""
    with Recorder() as recorder:
        model(x)
    return torch.cat([note.state for note in recorder.layers])


def gradients(z: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    if not len(z) or not z.requires_grad:
        return x.new_zeros(len(z), x.numel())
    options = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    return torch.stack([torch.autograd.grad(neuron, x, **options)[0].flatten() for neuron in z])


class Recorder(TorchFunctionMode):
    """Takes a note of each piecewise-linear function that runs."""

    def __init__(self):
        super().__init__()
        self.layers = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_").removesuffix("_with_indices")
        # read before the call, which may be in place
        call = Arguments(args, kwargs)
        z, other = call(0, "input"), call(1, "other")
        if name in ("maximum", "minimum", "fmax", "fmin", "max", "min") and isinstance(other, Tensor):
            self.layers.append(Note((z - other).flatten(), [0.0]))
        elif name in ORDERED:
            names = ("amin", "amax") if name == "aminmax" else (name,)
            notes = [order_neurons(each, z, call) for each in names]
            self.layers += [note for note in notes if len(note.z)]
        elif name in NORMS and call(2, "dim", 0) is not None:
            order = call(1, "p", call(1, "ord"))
            self.layers.append(Note(z.flatten(), [0.0]))
            if order != 1:
                self.layers.append(order_neurons("amax" if order > 0 else "amin", z.abs(), call, 2))
        elif name in COMPARED:
            if any(map(moves, (z, other))):
                self.layers.append(Note((z - other).flatten(), [0.0]))
        elif name in ROUNDED:
            if moves(z):
                self.layers.append(Note((z - ROUNDED[name](z).detach()).flatten(), STEPS[name]))
        elif name in KINKS:
            self.layers.append(Note(z.clone().flatten(), KINKS[name](call)))
        elif "max_pool" in name:
            windows = adaptive_windows if name.startswith("adaptive") else sliding_windows
            self.layers.append(pool_neurons(z, windows, int(name[-2]), call))
        if name == "hardsigmoid":
            return (z / 6 + 0.5).clamp(0, 1)  # its derivative in torch is 1/6 rounded to float32
        return func(*args, **kwargs)


def moves(operand) -> bool:
    """Whether it depends on the input, which nobody knows where autograd is off."""
    floats = isinstance(operand, Tensor) and operand.is_floating_point()
    return floats and (operand.requires_grad or not torch.is_grad_enabled())


class Arguments:
    """Reads a call's arguments by position or name."""

    def __init__(self, args: tuple, kwargs: dict):
        self.args, self.kwargs = args, kwargs

    def __call__(self, position: int, name: str, default=None):
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


def bounds(call: Arguments) -> list[float]:
    return [bound for bound in (call(1, "min"), call(2, "max")) if bound is not None]


COMPARED = ("gt", "greater", "ge", "greater_equal", "lt", "less", "le", "less_equal", "eq", "ne", "not_equal")
ROUNDED = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil}
STEPS = {"round": [-0.5, 0.5], "floor": [0.0, 1.0], "ceil": [-1.0, 0.0]}
KINKS = {
    "sign": lambda call: [0.0],
    "sgn": lambda call: [0.0],
    "signbit": lambda call: [0.0],
    "relu": lambda call: [0.0],
    "leaky_relu": lambda call: [0.0],
    "prelu": lambda call: [0.0],
    "rrelu": lambda call: [0.0],
    "abs": lambda call: [0.0],
    "absolute": lambda call: [0.0],
    "relu6": lambda call: [0.0, 6.0],
    "hardsigmoid": lambda call: [-3.0, 3.0],
    "hardtanh": lambda call: [call(1, "min_val", -1.0), call(2, "max_val", 1.0)],
    "threshold": lambda call: [call(1, "threshold")],
    "hardshrink": lambda call: [-call(1, "lambd", 0.5), call(1, "lambd", 0.5)],
    "softshrink": lambda call: [-call(1, "lambd", 0.5), call(1, "lambd", 0.5)],
    "clamp": bounds,
    "clip": bounds,
    "clamp_min": lambda call: [call(1, "min")],
    "clamp_max": lambda call: [call(1, "max")],
}


def pool_neurons(z: Tensor, windows, axes: int, call: Arguments) -> Note:
    """Winner minus every other entry, for every window of every channel; entries of -inf are padding, no neurons."""
    shape = z.shape[-axes:]
    channels = z.reshape(-1, math.prod(shape))
    steps = [math.prod(shape[axis + 1 :]) for axis in range(axes)]
    differences, winners, wins = [z.new_zeros(0)], [], [torch.zeros(0, dtype=torch.bool)]
    for channel in channels:
        for window in itertools.product(*windows(shape, call)):
            places = [sum(i * step for i, step in zip(place, steps)) for place in itertools.product(*window)]
            entries = channel[places]
            winner = int(entries.argmax())
            others = [k for k, entry in enumerate(entries.tolist()) if k != winner and entry > -math.inf]
            differences.append(entries[winner] - entries[others])
            winners += [winner] * len(others)
            wins.append(entries == entries[winner])
    return Note(torch.cat(differences), [0.0], torch.tensor(winners, dtype=torch.long), torch.cat(wins))


NORMS = ("norm", "linalg_vector_norm", "linalg_norm")
ORDERED = ("max", "min", "amax", "amin", "aminmax", "argmax", "argmin", "sort", "msort", "argsort", "topk", "kthvalue")
ORDERED += ("median", "cummax", "cummin")


def order_neurons(name: str, z: Tensor, call: Arguments, position: int = 1) -> Note:
    """Differences of entries of each row along the axes that a function of their order compares."""
    last_by_default = name in ("sort", "argsort", "topk", "kthvalue")
    dim = (
        0
        if name == "msort"
        else call(position + (name in ("topk", "kthvalue")), "dim", -1 if last_by_default else None)
    )
    dims = list(range(z.dim())) if dim in (None, ()) else [dim] if isinstance(dim, int) else list(dim)
    rest = [d for d in range(z.dim()) if d not in [e % z.dim() for e in dims]]
    rows = z.permute(*rest, *[e % z.dim() for e in sorted(dims)]).reshape(math.prod(z.shape[d] for d in rest), -1)
    pairs = [compared(name, row.tolist(), call) for row in rows]
    differences = [torch.stack([row[a] - row[b] for a, b in pair]) for row, pair in zip(rows, pairs) if pair]
    places = [a * rows.size(1) + b for pair in pairs for a, b in pair]
    return Note(torch.cat([z.new_zeros(0), *differences]), [0.0], torch.tensor(places, dtype=torch.long))


def compared(name: str, row: list[float], call: Arguments) -> list[tuple[int, int]]:
    """The places in a row of which one has to stay ahead of the other."""
    places = range(len(row))
    rising = sorted(places, key=row.__getitem__)
    if name in ("max", "amax", "argmax"):
        return [(row.index(max(row)), i) for i in places if i != row.index(max(row))]
    if name in ("min", "amin", "argmin"):
        return [(i, row.index(min(row))) for i in places if i != row.index(min(row))]
    if name in ("sort", "msort", "argsort"):
        order = rising[::-1] if call(2, "descending", False) else rising
        return [(b, a) for a, b in itertools.pairwise(order)]
    if name == "topk":
        order, k = rising[::-1] if call(3, "largest", True) else rising, call(1, "k")
        return [*itertools.pairwise(order[:k]), *((order[k - 1], i) for i in places if i not in order[:k])]
    if name in ("kthvalue", "median"):
        middle = rising[call(1, "k") - 1 if name == "kthvalue" else (len(row) - 1) // 2]
        return [(i, middle) for i in places if i != middle]
    best = [row.index((max if name == "cummax" else min)(row[: i + 1])) for i in places]
    return [(best[i - 1], i) for i in places[1:]]


def each_axis(value, axes: int) -> list:
    return list(value) if isinstance(value, (tuple, list)) else [value] * axes


def sliding_windows(shape, call: Arguments) -> list[list[list[int]]]:
    """For each axis, the real (not padding) places of each window along it."""
    axes = len(shape)
    kernel = each_axis(call(1, "kernel_size"), axes)
    stride = each_axis(call(2, "stride") or kernel, axes)
    padding = each_axis(call(3, "padding", 0), axes)
    dilation = each_axis(call(4, "dilation", 1), axes)
    result = []
    for length, k, s, pad, d in zip(shape, kernel, stride, padding, dilation):
        span = length + 2 * pad - d * (k - 1) - 1
        count = (math.ceil(span / s) if call(5, "ceil_mode", False) else span // s) + 1
        if (count - 1) * s >= length + pad:  # a window may not start in the right padding
            count -= 1
        taps = [[i * s - pad + t * d for t in range(k)] for i in range(count)]
        result.append([[place for place in window if 0 <= place < length] for window in taps])
    return result


def adaptive_windows(shape, call: Arguments) -> list[list[list[int]]]:
    sizes = each_axis(call(1, "output_size"), len(shape))
    return [
        [list(range(i * length // size, math.ceil((i + 1) * length / size))) for i in range(size)]
        for length, size in zip(shape, sizes)
    ]


def margin(model: nn.Module, x: Tensor, p: float) -> Tensor:
    """eps_p of every sample, x [B, ...] -> [B]."""
    return torch.stack([torch.cat([n.margin(p) for n in neurons(model, sample)]).min() for sample in x.split(1)])


def directional_margin(layers: list[Layer], direction: Tensor) -> float:
    steps = [math.inf]
    for layer in layers:
        for z, rate in zip(layer.z.tolist(), (layer.gradient @ direction.flatten()).tolist()):
            steps += [(kink - z) / rate for kink in layer.kinks if (kink - z) * rate > 0]
    return min(steps)


def roll_penalty(model: nn.Module, x: Tensor, lam: float = 1.0, C: float = 1.0, gamma: float = 100.0) -> Tensor:
    """Eq. 9, and Eq. 7 at gamma = 0; differentiable in the parameters by double backward."""
    return roll_penalty_of([neurons(model, sample, create_graph=True) for sample in x.split(1)], lam, C, gamma)


def roll_penalty_of(samples: list[list[Layer]], lam: float = 1.0, C: float = 1.0, gamma: float = 100.0) -> Tensor:
    means = []
    for layers in samples:
        terms = torch.cat([layer.gradient.square().sum(1) + C * (1 - layer.distance).clamp(min=0) for layer in layers])
        means.append(terms.topk(max(1, math.ceil(terms.numel() * gamma / 100))).values.mean())
    return lam * torch.stack(means).mean()


def margin_penalty(model: nn.Module, x: Tensor, lam: float = 1.0) -> Tensor:
    """Eq. 4, differentiable in the parameters by double backward."""
    return margin_penalty_of([neurons(model, sample, create_graph=True) for sample in x.split(1)], lam)


def margin_penalty_of(samples: list[list[Layer]], lam: float = 1.0) -> Tensor:
    margins = [samples[0][0].z.new_zeros(())]
    for layers in samples:
        gradient = torch.cat([layer.gradient for layer in layers])
        distance = torch.cat([layer.distance for layer in layers])
        alive = (gradient != 0).any(1)
        if alive.any():
            margins.append((distance[alive] / gradient[alive].norm(dim=1)).min())
    return -lam * torch.stack(margins).sum() / len(samples)
