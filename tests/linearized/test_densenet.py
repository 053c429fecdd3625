"""A DenseNet in small: dense blocks of batch-norm, ReLU and convolution, lists of features that grow, transitions."""

import compare
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import llr_fast


class DenseLayer(nn.Module):
    """Batch-norm, ReLU and a 1x1 convolution, then the same with a 3x3 convolution, of all features so far."""

    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features):
        x = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return F.dropout(self.conv2(self.relu(self.norm2(x))), 0.2, self.training)


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers, channels, growth):
        super().__init__({f"layer{i}": DenseLayer(channels + i * growth, growth) for i in range(layers)})

    def forward(self, x):
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, growth=2, layers=(2, 2), channels=2, classes=3):
        super().__init__()
        parts = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        parts.append(nn.MaxPool2d(3, 2, 1))
        for number, count in enumerate(layers):
            parts.append(DenseBlock(count, channels, growth))
            channels += count * growth
            if number + 1 < len(layers):
                parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, channels // 2, 1)]
                parts.append(nn.AvgPool2d(2, 2))
                channels //= 2
        self.features, self.norm = nn.Sequential(*parts), nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.features(x)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def network():
    """With other numbers than those of fresh batch-norms, behind which a feature has the same kink in every layer."""
    torch.manual_seed(0)
    model, x = DenseNet(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, 1, 6, 6))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model.eval(), x


@pytest.mark.parametrize("few", [None, 0])
def test_margins(monkeypatch, few):
    if few is not None:
        monkeypatch.setattr("llr_fast.certificates.bounds.FEW", few)
    compare.margins_are_right(*network())


def test_norms_and_counts():
    model, x = network()
    x = x[:1]
    compare.norms_are_right(model, x)
    compare.densities_are_right(model, x)


def test_penalties():
    model, x = network()
    model, x = model.double(), x.double()
    compare.margin_loss_is_right(model, x)
    compare.roll_is_right(model, x, gammas=(100,))


@pytest.mark.parametrize(
    "options", [{"estimator": "exact"}, {"estimator": "rademacher"}, {"estimator": "rademacher", "gamma": 20}]
)
def test_training_steps(options):
    """With dropout and the statistics of batches; then with fixed ones, where every few steps lower the penalty."""
    model, x = network()[0].train(), torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    loss = llr_fast.ROLLLoss(model, generator=torch.Generator().manual_seed(0), **options)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        output, penalty = loss(x)
        (0.01 * F.cross_entropy(output, torch.arange(12) % 3) + penalty).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()

    for _ in range(3):
        step()
    model.eval()
    exact = llr_fast.ROLLLoss(model, estimator="exact", gamma=loss.gamma)
    before = exact(x)[1].item()
    for _ in range(6):
        step()
    assert exact(x)[1].item() < before
    compare.margins_are_right(model, x[:1], (2,), ("auto",))


def test_training_widens_the_margin():
    model, x = network()
    loss, before = llr_fast.MarginLoss(model), llr_fast.margin(model, x).value.mean()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        loss(x)[1].backward()
        optimizer.step()
    assert llr_fast.margin(model, x).value.mean() > before
