"""What random networks are made of: parts from one shape of sample to another.

Constants that a part makes itself have the dtype of x and are multiples of a power of two, so that they are the same
numbers in every dtype. An activation that works in place gets a tensor that nothing else needs.
"""

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": F.relu,
    "relu method": lambda z: z.relu(),
    "relu in place": lambda z: F.relu(z, inplace=True),
    "relu_": torch.relu_,
    "leaky relu": lambda z: F.leaky_relu(z, 0.125),
    "leaky relu falling": lambda z: F.leaky_relu(z, -0.5),
    "rrelu": lambda z: F.rrelu(z, 0.125, 0.375),
    "relu6": lambda z: F.relu6(8 * z),
    "hardtanh": lambda z: F.hardtanh(z, -0.25, 0.5),
    "hardsigmoid": lambda z: F.hardsigmoid(4 * z),
    "hardshrink": lambda z: F.hardshrink(z, 0.25),
    "softshrink": lambda z: F.softshrink(z, 0.25),
    "threshold": lambda z: F.threshold(z, 0.125, -0.5),
    "clamp": lambda z: z.clamp(-0.25, 0.75),
    "clamp of one side": lambda z: torch.clamp(z, max=0.5),
    "clamp_min_": lambda z: z.clamp_min_(-0.125),
    "abs": torch.abs,
    "abs_": lambda z: z.abs_(),
    "two kinks in a row": lambda z: F.relu(z).clamp_max(0.5),
}


class Activation(nn.Module):
    def __init__(self, draw: random.Random, units: int | None = None):
        super().__init__()
        self.name = draw.choice(["relu", "relu in place", *ACTIVATIONS, *(["prelu"] if units else [])])
        self.slope = None
        if self.name == "prelu":
            self.slope = nn.Parameter(torch.empty(draw.choice([1, units])).uniform_(-0.5, 0.5))

    def forward(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](z) if self.slope is None else F.prelu(z, self.slope)

    def extra_repr(self) -> str:
        return self.name


def dense(draw: random.Random, n: int, out: int | None = None) -> nn.Module:
    out = out or draw.randint(1, 8)
    parts = [nn.Linear(n, out, bias=draw.random() < 0.8)]
    parts += [nn.BatchNorm1d(out)] if draw.random() < 0.15 else []
    parts += [Activation(draw, out)]
    parts += [nn.Dropout(0.5)] if draw.random() < 0.15 else []
    return nn.Sequential(*parts)


class Part(nn.Module):
    """Drawn for samples of one shape; `fits` says for which."""

    axes = 1

    def __init__(self, draw: random.Random, shape: tuple):
        super().__init__()
        self.n = shape[-1]
        self.draw(draw, *shape)

    @classmethod
    def fits(cls, shape: tuple) -> bool:
        return len(shape) == cls.axes

    def draw(self, draw: random.Random, *shape: int) -> None: ...


# Vectors [B, n]


class Dense(Part):
    def draw(self, draw, n):
        self.body = dense(draw, n)

    def forward(self, x):
        return self.body(x)


class Residual(Part):
    def draw(self, draw, n):
        self.body, self.in_place, self.last = dense(draw, n, n), draw.random() < 0.5, Activation(draw)

    def forward(self, x):
        y = self.body(x) * 1
        if self.in_place:
            y += x
            return self.last(y)
        return self.last(torch.add(x, y, alpha=2))


class Growing(Part):
    """A list of features that grows after it was concatenated, as in every DenseNet."""

    def draw(self, draw, n):
        self.layers = nn.ModuleList(nn.Linear(n + 2 * i, 2) for i in range(draw.randint(2, 3)))
        self.last = Activation(draw)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)).relu())
        return self.last(torch.cat(features, 1) - 0.25)


class Sliced(Part):
    def draw(self, draw, n):
        self.first, self.cut = nn.Linear(n, 6), draw.randint(1, 5)
        self.register_buffer("order", torch.tensor(draw.sample(range(6), 4)))

    def forward(self, x):
        z = self.first(x)
        left, right = z.split([self.cut, 6 - self.cut], 1)
        return torch.cat([F.relu(left), right.abs(), z[:, self.order], z[:, 1::2], x[:, -1:]], dim=-1)


class Shared(Part):
    """One linear layer and one activation, called several times."""

    def draw(self, draw, n):
        self.linear, self.activation, self.times = nn.Linear(n, n), Activation(draw), draw.randint(2, 3)

    def forward(self, x):
        for _ in range(self.times):
            x = x + self.activation(self.linear(x))
        return x


class InPlace(Part):
    def draw(self, draw, n):
        self.linear = nn.Linear(n, n)
        self.register_buffer("gain", torch.randn(n))

    def forward(self, x):
        y = self.linear(x)
        y += 1
        y *= self.gain
        y -= x
        return y.div_(2).sub_(x, alpha=2).relu_() + x


class ChangedGain(Part):
    """Constants that are changed in place after they were used, which autograd refuses; or new ones each time."""

    in_place = True

    def draw(self, draw, n):
        self.layers = nn.ModuleList(nn.Linear(n, n) for _ in range(2))

    def forward(self, x):
        gain, mask = torch.ones(1, dtype=x.dtype), torch.ones(self.n, dtype=torch.bool)
        for layer in self.layers:
            x = torch.where(mask, (layer(x) * gain).relu(), 0.5 * x)
            gain, mask = (gain, mask) if self.in_place else (gain.clone(), mask.clone())
            gain *= 0.5
            mask[0] = False
        return x


class Bytes(Part):
    """A condition of bytes."""

    def draw(self, draw, n):
        self.linear = nn.Linear(n, n)
        self.register_buffer("keep", torch.randint(2, (n,), dtype=torch.uint8))

    def forward(self, x):
        return torch.where(self.keep, torch.zeros((), dtype=x.dtype), self.linear(x).relu()) + 0.5 * x


class Repeated(Part):
    """Each sample twice, side by side, then next to each other."""

    def draw(self, draw, n):
        self.linear, self.activation = nn.Linear(n, 3), Activation(draw)

    def forward(self, x):
        return self.activation(self.linear(x.repeat_interleave(2, 0))).reshape(x.shape[0], 6)[:, 1:]


class Tiled(Part):
    def draw(self, draw, n):
        self.how, self.linear, self.activation = draw.randrange(3), nn.Linear(2 * n, 4), Activation(draw)

    def forward(self, x):
        twice = x.repeat(1, 2) if self.how == 0 else x.tile(2) if self.how == 1 else x.repeat_interleave(2, 1)
        return self.activation(self.linear(twice))


class SharedMaximum(Part):
    """max(max(a, b), max(b, c)): where b wins twice the outer maximum has no kink of its own."""

    def draw(self, draw, n):
        self.linear, self.larger = nn.Linear(n, 6), draw.choice([torch.maximum, torch.minimum, torch.max, torch.fmin])

    def forward(self, x):
        a, b, c = self.linear(x).chunk(3, 1)
        return self.larger(self.larger(a, b), self.larger(b, c))


class Larger(Part):
    def draw(self, draw, n):
        self.function = draw.choice([torch.maximum, torch.minimum, torch.max, torch.min, torch.fmax])
        self.left, self.right = nn.Linear(n, 4), nn.Linear(n, 4) if draw.random() < 0.5 else None
        self.register_buffer("constant", torch.randn(4) / 2)

    def forward(self, x):
        return self.function(self.left(x), self.constant if self.right is None else self.right(x))


class NearlyEqual(Part):
    """The difference of two nearly equal units: its gradient is far smaller than theirs."""

    def draw(self, draw, n):
        self.pair, self.difference, self.rest = nn.Linear(n, 2), nn.Linear(2, 1), dense(draw, n)
        with torch.no_grad():
            self.pair.weight[1] = self.pair.weight[0] + 2.0**-12 * torch.randn(n)
            self.pair.bias.fill_(50.0)
            self.difference.weight.copy_(torch.tensor([[1.0, -1.0]]))
            self.difference.bias.fill_(2.0**-18)

    def forward(self, x):
        return torch.cat([self.difference(self.pair(x).relu()).relu(), self.rest(x)], 1)


class ZeroSum(Part):
    """Rows that add up to zero, over units with a large common part."""

    def draw(self, draw, n):
        self.common, self.centred, self.last = nn.Linear(n, 6), nn.Linear(6, 3), Activation(draw)
        with torch.no_grad():
            self.common.bias += 128
            self.centred.weight -= self.centred.weight.mean(1, keepdim=True)

    def forward(self, x):
        return self.last(self.centred(F.relu(self.common(x))))


class Following(Part):
    """A constant that follows x into a layer of its own, where it is rounded to the dtype of the model."""

    fixed: Tensor | None = None

    def draw(self, draw, n):
        self.linear, self.embed, self.last = nn.Linear(n, 4), nn.Linear(3, 4), Activation(draw)

    def forward(self, x):
        return self.last(self.linear(x) + self.constant(x))

    def constant(self, x):
        here = self.embed(torch.linspace(0, 1, 3).type_as(x))
        return here if self.fixed is None else self.fixed + here - here.detach()


class Keeping(Part):
    """Stores what it computed, for others to read."""

    def draw(self, draw, n):
        self.first, self.second, self.feature = nn.Linear(n, 4), nn.Linear(4, 4), None

    def forward(self, x):
        self.feature = self.first(x).relu()
        return self.second(self.feature).abs()


class Mixed(Part):
    """Products with constants, from either side."""

    def draw(self, draw, n):
        self.how, self.last = draw.randrange(4), Activation(draw)
        self.register_buffer("weight", torch.randn(n, 4))

    def forward(self, x):
        match self.how:
            case 0:
                return self.last(x @ self.weight)
            case 1:
                return self.last((self.weight.T @ x.T).T)
            case 2:
                return self.last(torch.einsum("bi,ij->bj", x, self.weight))
        return self.last(torch.addmm(self.weight[0], x, self.weight, beta=2))


class Picked(Part):
    """Entries by index along an axis, the same for all samples."""

    def draw(self, draw, n):
        self.linear, self.last = nn.Linear(n, 5), Activation(draw)
        self.register_buffer("index", torch.randint(5, (1, 4)))

    def forward(self, x):
        return self.last(torch.take_along_dim(self.linear(x), self.index, dim=1) - x[:, :1])


class PooledVector(Part):
    def draw(self, draw, n):
        self.linear, self.kernel = nn.Linear(n, 6), draw.choice([1, 2, 3])

    def forward(self, x):
        return F.max_pool1d(self.linear(x).unsqueeze(1), self.kernel, 2).squeeze(1)


class ToSequence(Part):
    def draw(self, draw, n):
        self.linear = nn.Linear(n, 6)

    def forward(self, x):
        return self.linear(x).unflatten(1, (3, 2))


class ToImage(Part):
    def draw(self, draw, n):
        self.linear, self.conv = nn.Linear(n, 8), nn.ConvTranspose2d(2, 2, 2, stride=draw.choice([1, 2]))

    def forward(self, x):
        return F.leaky_relu(self.conv(self.linear(x).view(-1, 2, 2, 2)), 0.25)


# Sequences [B, T, C]


class EachStep(Part):
    """Batch and time in one axis."""

    axes = 2

    def draw(self, draw, steps, n):
        self.body = dense(draw, n, draw.randint(1, 4))

    def forward(self, x):
        batch, steps = x.shape[:2]
        return self.body(x.reshape(batch * steps, self.n)).view(batch, steps, -1)


class TimeFirst(Part):
    axes = 2

    def draw(self, draw, steps, n):
        self.linear, self.last = nn.Linear(n, 3), Activation(draw)

    def forward(self, x):
        return self.last(self.linear(x.transpose(0, 1))).transpose(0, 1)


class TimeFirstMerged(Part):
    """Time first, then merged with the batch: samples lie in the fast axis."""

    axes = 2

    def draw(self, draw, steps, n):
        self.linear, self.last = nn.Linear(n, 2), Activation(draw)

    def forward(self, x):
        steps = x.shape[1]
        y = self.last(self.linear(x.permute(1, 0, 2).flatten(0, 1)))
        return y.unflatten(0, (steps, -1)).permute(1, 0, 2)


class Recurrent(Part):
    axes = 2

    def draw(self, draw, steps, n):
        self.input, self.state, self.activation = nn.Linear(n, 3), nn.Linear(3, 3, bias=False), Activation(draw)
        self.time_first, self.all = draw.random() < 0.5, draw.random() < 0.5

    def forward(self, x):
        state, states = x.new_zeros(x.shape[0], 3), []
        for step in x.transpose(0, 1) if self.time_first else x.unbind(1):
            state = self.activation(self.input(step) + self.state(state))
            states.append(state)
        return torch.stack(states, 1) if self.all else state


class AlongTime(Part):
    axes = 2

    def draw(self, draw, steps, n):
        self.how, self.linear, self.last = draw.randrange(6), nn.Linear(n, n), Activation(draw)
        self.register_buffer("mix", torch.randn(steps, steps))

    def forward(self, x):
        y = self.linear(x)
        match self.how:
            case 0:
                y = y.cumsum(1)
            case 1:
                y = self.mix @ y
            case 2:
                y = y.flip(1) + x.roll(1, 1)
            case 3:
                y = F.pad(y, (0, 0, 1, 0))[:, :-1] - x
            case 4:
                y = y - y.mean(1, keepdim=True)
            case 5:
                y = torch.einsum("bti,ts->bsi", y, self.mix)
        return self.last(y)


class ConvolvedSequence(Part):
    axes = 2

    def draw(self, draw, steps, n):
        self.conv = nn.Conv1d(n, 2, 3, padding=1, padding_mode=draw.choice(["zeros", "circular", "replicate"]))
        self.last = Activation(draw, 2)

    def forward(self, x):
        return self.last(self.conv(x.mT)).transpose(1, 2)


class SequenceToVector(Part):
    axes = 2

    def draw(self, draw, steps, n):
        self.how = draw.randrange(4)

    def forward(self, x):
        return (x.flatten(1), x.mean(1), x[:, -1], x.transpose(1, 2).reshape(x.shape[0], -1))[self.how]


# Images [B, C, H, W]


class Convolution(Part):
    axes = 3

    def draw(self, draw, channels, height, width):
        out = draw.randint(1, 3)
        options = {"kernel_size": draw.choice([1, 2, 3]), "padding": draw.choice([0, 1]), "stride": draw.choice([1, 2])}
        if min(height, width) > 2 and draw.random() < 0.3:
            options["padding_mode"] = draw.choice(["circular", "reflect", "replicate"])
        if draw.random() < 0.2:
            options["groups"], out = channels, channels
        if min(height, width) + 2 * options["padding"] < options["kernel_size"]:
            options["kernel_size"] = 1
        self.conv = nn.Conv2d(channels, out, **options)
        self.norm = nn.BatchNorm2d(out) if draw.random() < 0.3 else nn.Identity()
        self.last = Activation(draw, out)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)))


class BasicBlock(Part):
    """Residual, with the addition and both activations in place."""

    axes = 3

    def draw(self, draw, channels, height, width):
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y += x
        return self.relu(y)


class Branches(Part):
    axes = 3

    def draw(self, draw, channels, height, width):
        self.left, self.right = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 3, padding=1)
        self.last = Activation(draw)

    def forward(self, x):
        return torch.cat([self.left(x).relu(), self.last(self.right(x)), x[:, :1]], 1)


class MaxPool(Part):
    axes = 3

    @classmethod
    def fits(cls, shape):
        return len(shape) == 3 and min(shape[1:]) >= 2

    def draw(self, draw, channels, height, width):
        self.before = nn.Identity()
        if draw.random() < 0.7:
            self.before = nn.Sequential(nn.Conv2d(channels, min(channels, 2), 1), Activation(draw))
        adaptive = nn.AdaptiveMaxPool2d((draw.randint(1, height), draw.randint(1, width)))
        choices = [nn.MaxPool2d(2), nn.MaxPool2d(2, 1), nn.MaxPool2d(1, 2), nn.MaxPool2d(3, 2, 1), adaptive]
        choices += [nn.MaxPool2d((2, 1), ceil_mode=True), nn.MaxPool2d(3, 2, 1, ceil_mode=True)]
        self.pool = draw.choice([*choices, nn.MaxPool2d(2, 1, dilation=min(2, height - 1, width - 1))])

    def forward(self, x):
        return self.pool(self.before(x))


class SamePool(Part):
    """A max-pooling padded by -inf."""

    axes = 3

    def draw(self, draw, channels, height, width):
        self.conv = nn.Conv2d(channels, 1, 1)
        self.activation = Activation(draw)

    def forward(self, x):
        padded = F.pad(self.activation(self.conv(x)), (0, 1, 1, 0), value=-math.inf)
        return F.max_pool2d(padded, 2, 2 if min(x.shape[2:]) > 1 else 1)


class Resampled(Part):
    axes = 3

    def draw(self, draw, channels, height, width):
        self.how, self.last = draw.randrange(5), Activation(draw)
        self.conv = nn.Conv2d(channels, 4 if self.how == 2 else 2, 1)

    def forward(self, x):
        y = self.conv(x)
        match self.how:
            case 0:
                y = F.avg_pool2d(y, 2, 1, padding=1, count_include_pad=False)
            case 1:
                y = F.adaptive_avg_pool2d(y, (2, None))
            case 2:
                y = F.pixel_shuffle(y, 2)[:, :, ::2]
            case 3:
                y = F.interpolate(y, size=(3, 2), mode="bilinear")
            case 4:
                y = y.flip(2)[..., :2] - y[:, :1, :, -2:] if y.shape[-1] > 1 else -y
        return self.last(y)


class ImageToSequence(Part):
    axes = 3

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Frames(Part):
    """Each channel as an image of its own: the batch and another axis in one."""

    axes = 3

    def draw(self, draw, channels, height, width):
        self.conv, self.last = nn.Conv2d(1, 1, 2, padding=1), Activation(draw)

    def forward(self, x):
        return self.last(self.conv(x.flatten(0, 1).unsqueeze(1))).squeeze(1).unflatten(0, (-1, x.shape[1]))


class ImageToVector(Part):
    axes = 3

    def draw(self, draw, channels, height, width):
        self.how = draw.randrange(3)

    def forward(self, x):
        return (x.flatten(1), x.mean((2, 3)), x.sum(1).flatten(1))[self.how]


PARTS: list[Callable[..., Part]] = [
    *(Dense, Dense, Residual, Growing, Sliced, Shared, InPlace, ChangedGain, Bytes, Repeated, Tiled, SharedMaximum),
    *(Larger, NearlyEqual, ZeroSum, Following, Keeping, Mixed, Picked, PooledVector, ToSequence, ToImage),
    *(EachStep, TimeFirst, TimeFirstMerged, Recurrent, AlongTime, ConvolvedSequence, SequenceToVector),
    *(Convolution, Convolution, BasicBlock, Branches, MaxPool, MaxPool, SamePool, Resampled, ImageToSequence),
    *(Frames, ImageToVector),
]
