"""Small networks of every kind, few enough neurons each for the oracle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 3


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Maximum(nn.Module):
    """Of two linear maps, or of one and a constant."""

    def __init__(self, function, n: int, constant: bool):
        super().__init__()
        self.function = function
        self.other = None if constant else nn.Linear(n, n)
        self.register_buffer("constant", torch.randn(n) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant if self.other is None else self.other(x))


class BasicBlock(nn.Module):
    """Residual, with the addition and both activations in place."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Recurrent(nn.Module):
    """x [B, T, C], or [T, B, C] after the transposition."""

    def __init__(self, channels: int, hidden: int, time_first: bool):
        super().__init__()
        self.input = nn.Linear(channels, hidden)
        self.state = nn.Linear(hidden, hidden, bias=False)
        self.output = nn.Linear(hidden, 2)
        self.time_first = time_first

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.state.in_features)
        steps = x.transpose(0, 1) if self.time_first else x.unbind(1)
        for step in steps:
            state = F.leaky_relu(self.input(step) + self.state(state), 0.2)
        return self.output(state)


class ProjectedFirst(nn.Module):
    """The input map is applied to all steps at once, time first: neurons appear while the batch is the second axis."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU())
        self.state = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.embed(x.transpose(0, 1))
        state = steps[0]
        for t in range(1, len(steps)):
            state = F.relu(steps[t] + self.state(state))
        return state


class Skipping(nn.Module):
    """Dense layers and activations only, but the first layer has two of these and is no part of one chain."""

    def __init__(self, n: int):
        super().__init__()
        self.first, self.second = nn.Linear(n, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return F.relu(self.second(F.relu(z))) + F.leaky_relu(z)


class Concatenating(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.first = nn.Linear(n, 6)
        self.second = nn.Linear(n + 6, 6)
        self.third = nn.Linear(n + 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.cat([x, F.relu(self.first(x))], 1)
        left, right = self.second(features).chunk(2, dim=1)
        features = torch.cat([features, F.relu(left) + right.abs()], dim=-1)
        keep, _ = features.split([features.shape[1] - 1, 1], 1)
        return F.relu(self.third(keep))


class TimeDistributed(nn.Module):
    """The batch axis is merged with time in between."""

    def __init__(self, step: nn.Module, head: nn.Module):
        super().__init__()
        self.step, self.head = step, head

    def forward(self, x: Tensor) -> Tensor:
        batch, time = x.shape[:2]
        features = self.step(x.reshape(batch * time, *x.shape[2:]))
        return self.head(features.view(batch, time, -1).flatten(1))


class Reused(nn.Module):
    """One activation module and one linear layer, called several times."""

    def __init__(self, n: int):
        super().__init__()
        self.linear = nn.Linear(n, n)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.relu(self.linear(x))
        return x


def dense(activation: nn.Module, n: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(n, 8), activation, nn.Linear(8, 7), activation, nn.Linear(7, 3))


def prelu_each_channel() -> nn.Module:
    slopes = nn.PReLU(8), nn.PReLU(7, init=-0.3)
    slopes[0].weight.data.uniform_(-0.5, 0.5)
    return nn.Sequential(nn.Linear(5, 8), slopes[0], nn.Linear(8, 7), slopes[1], nn.Linear(7, 3))


def headed(shape: tuple, *body: nn.Module) -> nn.Module:
    """Adds a hidden dense layer and an output to a body whose input is of that shape."""
    trunk = nn.Sequential(*body).eval()
    features = trunk(torch.zeros(1, *shape)).flatten(1).shape[1]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 2))


def pooled(shape: tuple, pool: nn.Module, activation: nn.Module | None = None) -> nn.Module:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
    return headed(shape, conv(shape[0], 2, 3, padding=1), activation or nn.LeakyReLU(0.1), pool)


VECTOR = (5,)
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu_in_place": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(0.1),
    "leaky_relu_negative": nn.LeakyReLU(-0.5),
    "prelu": nn.PReLU(),
    "rrelu": nn.RReLU(),
    "relu6": nn.Sequential(Apply(lambda x: 8 * x), nn.ReLU6()),
    "hardtanh": nn.Hardtanh(-0.3, 0.4),
    "clamp": Apply(lambda x: x.clamp(-0.2, 0.5)),
    "clamp_min": Apply(lambda x: torch.clamp(x, min=-0.1)),
    "clamp_max": Apply(lambda x: x.clamp_max(0.3)),
    "threshold": nn.Threshold(0.1, -0.5),
    "abs": Apply(torch.abs),
    "hardsigmoid": nn.Sequential(Apply(lambda x: 6 * x), nn.Hardsigmoid()),
    "hardshrink": nn.Hardshrink(0.2),
    "softshrink": nn.Softshrink(0.2),
}

BUILDERS = {
    **{name: (VECTOR, lambda activation=activation: dense(activation)) for name, activation in ACTIVATIONS.items()},
    "prelu_each_channel": (VECTOR, prelu_each_channel),
    "maximum": (
        VECTOR,
        lambda: nn.Sequential(nn.Linear(5, 8), Maximum(torch.maximum, 8, False), nn.Linear(8, 4), nn.ReLU()),
    ),
    "minimum": (
        VECTOR,
        lambda: nn.Sequential(nn.Linear(5, 8), Maximum(torch.minimum, 8, False), nn.Linear(8, 4), nn.ReLU()),
    ),
    "maximum_constant": (
        VECTOR,
        lambda: nn.Sequential(nn.Linear(5, 8), Maximum(torch.maximum, 8, True), nn.Linear(8, 4)),
    ),
    "minimum_constant": (
        VECTOR,
        lambda: nn.Sequential(nn.Linear(5, 8), Maximum(torch.minimum, 8, True), nn.Linear(8, 4)),
    ),
    "reused": (VECTOR, lambda: Reused(5)),
    "skipping": (VECTOR, lambda: Skipping(5)),
    "concatenating": (VECTOR, lambda: Concatenating(5)),
    "weight_norm": (
        VECTOR,
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 2)),
    ),
    "one_input": ((1,), lambda: dense(nn.ReLU(), 1)),
    "conv1d": (
        (2, 8),
        lambda: headed((2, 8), nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 2, 3, stride=2), nn.ReLU()),
    ),
    "conv2d": (
        (2, 5, 5),
        lambda: headed(
            (2, 5, 5),
            nn.Conv2d(2, 4, 3, padding=1, groups=2),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 2, (3, 1), dilation=(2, 1), padding_mode="circular", padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ),
    ),
    "conv3d": (
        (1, 3, 3, 3),
        lambda: headed((1, 3, 3, 3), nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.AvgPool3d(2, padding=1)),
    ),
    "residual": (
        (1, 4, 4),
        lambda: headed((1, 4, 4), nn.Conv2d(1, 2, 3, padding=1), BasicBlock(2), nn.AdaptiveAvgPool2d(2)),
    ),
    "recurrent_batch_first": ((4, 2), lambda: Recurrent(2, 5, time_first=False)),
    "recurrent_time_first": ((4, 2), lambda: Recurrent(2, 5, time_first=True)),
    "recurrent_projected_first": ((3, 2), lambda: ProjectedFirst(2, 4)),
    "time_distributed": (
        (4, 3),
        lambda: TimeDistributed(
            nn.Sequential(nn.Linear(3, 5), nn.ReLU()),
            nn.Sequential(nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 2)),
        ),
    ),
    "frames": (
        (2, 1, 3, 3),
        lambda: TimeDistributed(
            nn.Sequential(nn.Conv2d(1, 2, 2), nn.LeakyReLU(0.1), nn.MaxPool2d(2, stride=1)),
            nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
        ),
    ),
    "decoder": (
        VECTOR,
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            nn.Unflatten(1, (2, 2, 2)),
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.PixelShuffle(2),
            nn.Hardtanh(),
        ),
    ),
    "max_pool1d": ((2, 6), lambda: pooled((2, 6), nn.MaxPool1d(2))),
    "max_pool1d_padded": ((2, 7), lambda: pooled((2, 7), nn.MaxPool1d(3, stride=2, padding=1))),
    "max_pool1d_dilated": ((2, 7), lambda: pooled((2, 7), nn.MaxPool1d(2, stride=1, dilation=2))),
    "max_pool2d": ((1, 4, 4), lambda: pooled((1, 4, 4), nn.MaxPool2d(2))),
    "max_pool2d_of_relu": ((1, 4, 4), lambda: pooled((1, 4, 4), nn.MaxPool2d(2), nn.ReLU(inplace=True))),
    "max_pool2d_before_relu": ((1, 4, 4), lambda: pooled((1, 4, 4), nn.ReLU(), nn.MaxPool2d(2))),
    "max_pool2d_padded": ((1, 4, 4), lambda: pooled((1, 4, 4), nn.MaxPool2d((3, 2), stride=(2, 3), padding=(1, 0)))),
    "max_pool2d_ceil": ((1, 5, 4), lambda: pooled((1, 5, 4), nn.MaxPool2d(2, ceil_mode=True))),
    "max_pool2d_ceil_padded": (
        (1, 4, 4),
        lambda: pooled((1, 4, 4), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)),
    ),
    "max_pool2d_dilated": ((1, 4, 4), lambda: pooled((1, 4, 4), nn.MaxPool2d(2, stride=1, dilation=2))),
    "max_pool3d": ((1, 2, 4, 2), lambda: pooled((1, 2, 4, 2), nn.MaxPool3d(2))),
    "max_pool3d_padded": (
        (1, 2, 3, 3),
        lambda: pooled((1, 2, 3, 3), nn.MaxPool3d((1, 2, 3), stride=2, padding=(0, 1, 1))),
    ),
    "adaptive_max_pool1d": ((2, 7), lambda: pooled((2, 7), nn.AdaptiveMaxPool1d(3))),
    "adaptive_max_pool2d": ((1, 5, 4), lambda: pooled((1, 5, 4), nn.AdaptiveMaxPool2d((2, 3)))),
    "adaptive_max_pool3d": ((1, 3, 2, 3), lambda: pooled((1, 3, 2, 3), nn.AdaptiveMaxPool3d((2, 1, 2)))),
}

NAMES = list(BUILDERS)
POOLS = [name for name in NAMES if "max_pool" in name or name == "frames"]


def build(name: str, seed: int = 0, batch: int = BATCH) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode and x [batch, ...], both float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape, builder = BUILDERS[name]
        model = builder().double().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.data.uniform_(-1.5, 1.5)
                module.bias.data.normal_()
        return model, torch.randn(batch, *shape, dtype=torch.float64)
