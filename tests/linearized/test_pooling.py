"""Max-pooling at its edges: windows of one entry, padding of -inf, windows of very many entries."""

import math

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast
from llr_fast.regions.plane import regions_on_plane

DTYPE = torch.float64


def everything(model: nn.Module, x: torch.Tensor) -> None:
    """Every function that evaluates a network."""
    for p in (1, 2, math.inf):
        for method in ("exact", "search", "auto"):
            assert not llr_fast.margin(model, x, p, method=method).value.isnan().any()
        assert not llr_fast.region_density(model, x, 0.0, p).any()
    llr_fast.gradient_norms(model, x)
    llr_fast.directional_margin(model, x, torch.ones_like(x))
    llr_fast.regions_along(model, x, 2 * x, progress=False)
    llr_fast.activation_pattern(model, x)
    llr_fast.count_linear_regions(model, [x], progress=False)


def losses(model: nn.Module, x: torch.Tensor) -> None:
    for loss in (llr_fast.MarginLoss(model), llr_fast.ROLLLoss(model), llr_fast.ROLLLoss(model, gamma=20)):
        model.zero_grad()
        output, penalty = loss(x)
        torch.testing.assert_close(output, model(x))
        penalty.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert penalty.isfinite() and gradients and all(g.isfinite().all() for g in gradients)


def same_margins(model: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    for p in (1, 2, math.inf):
        for method in ("exact", "search"):
            found = llr_fast.margin(model, x, p, method=method).value
            torch.testing.assert_close(found, llr_fast.margin(other, x, p, method=method).value)
    assert torch.equal(llr_fast.activation_pattern(model, x), llr_fast.activation_pattern(other, x))
    penalties = [llr_fast.ROLLLoss(m, estimator="exact")(x)[1] for m in (model, other)]
    torch.testing.assert_close(*penalties)
    values_of = llr_fast.certificates.evaluation.values_of
    assert [layer.z.shape for layer in values_of(model, x, DTYPE)] == [
        layer.z.shape for layer in values_of(other, x, DTYPE)
    ]


ONE_ENTRY = {
    "kernel_of_one": ((2, 3, 3), nn.MaxPool2d(1)),
    "stride": ((2, 4, 4), nn.MaxPool2d(1, stride=2)),
    "signal": ((2, 5), nn.MaxPool1d(1)),
    "volume": ((1, 2, 2, 2), nn.MaxPool3d(1)),
    "adaptive": ((2, 3, 3), nn.AdaptiveMaxPool2d(3)),
    "adaptive_signal": ((2, 4), nn.AdaptiveMaxPool1d(4)),
    "clipped_by_padding": ((1, 1, 1), nn.MaxPool2d(2, padding=1)),
    "clipped_by_ceil": ((1, 1), nn.MaxPool1d(2, stride=2, ceil_mode=True)),
}


@pytest.mark.parametrize("name", ONE_ENTRY)
def test_windows_of_one_entry_hold_no_neurons(name):
    shape, pool = ONE_ENTRY[name]
    torch.manual_seed(0)
    size = math.prod(shape)
    features = pool(torch.zeros(1, *shape)).numel()
    head = [nn.Flatten(), nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, 2)]
    model = nn.Sequential(nn.Linear(4, size), nn.Unflatten(1, shape), pool, *head)
    x = torch.randn(3, 4)
    everything(model, x)
    losses(model, x)
    layers = llr_fast.certificates.evaluation.values_of(model, x, DTYPE)
    assert len(layers) == 1 and layers[0].name.endswith(":relu")
    alone = nn.Sequential(*model[:3])
    everything(alone, x)
    assert llr_fast.margin(alone, x).value.isinf().all()


def test_windows_of_one_entry_among_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(3, 1, 4, 4)  # windows of 4, 2, 2 and 1 of 3 x 3
    everything(model, x)
    losses(model, x)
    (layer,) = llr_fast.certificates.evaluation.values_of(model, x, DTYPE)
    assert layer.z.shape == (3, 2 * (3 + 1 + 1))


def test_window_without_an_entry_is_what_torch_makes_of_it():
    model = nn.Sequential(nn.Identity(), nn.MaxPool1d(2, stride=1, padding=1, dilation=2))
    x = torch.full((1, 1, 1), 3.0)
    assert llr_fast.margin(model, x).value.isinf().all()
    observed = []
    llr_fast.margin(nn.Sequential(model, networks.Apply(lambda t: observed.append(getattr(t, "value", t)) or t)), x)
    assert torch.equal(observed[0], model(x).double()) and observed[0].isinf().all()


class Same(nn.Module):
    """Max-pooling whose padding was made beforehand, of -inf or of nothing."""

    def __init__(self, body, kernel, stride, pad, explicit):
        super().__init__()
        self.body, self.kernel, self.stride, self.pad, self.explicit = body, kernel, stride, pad, explicit

    def forward(self, x):
        h = self.body(x)
        if self.explicit:
            return F.max_pool2d(F.pad(h, (self.pad,) * 4, value=-math.inf), self.kernel, self.stride).flatten(1)
        return F.max_pool2d(h, self.kernel, self.stride, self.pad).flatten(1)


@pytest.mark.parametrize("kernel, stride, pad", [(3, 2, 1), (2, 2, 1), (3, 1, 1), (4, 3, 2), (2, 1, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_padding_of_minus_infinity_is_padding(kernel, stride, pad, seed):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 3, 2), nn.LeakyReLU(0.1) if seed else nn.ReLU())
    models = []
    for explicit in (True, False):
        pooled = Same(body, kernel, stride, pad, explicit)
        torch.manual_seed(seed)
        head = nn.Linear(pooled(torch.zeros(1, 1, 6, 6)).size(1), 3)
        models.append(nn.Sequential(pooled, head, nn.ReLU()))
    x = torch.randn(4, 1, 6, 6)
    same_margins(*models, x)
    losses(models[0], x)
    everything(models[0], x)


def test_timm_padding_on_one_side():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        networks.Apply(lambda h: F.max_pool2d(F.pad(h, (0, 1, 0, 1), value=-math.inf), 3, 2)),
        nn.Flatten(),
        nn.Linear(18, 2),
        nn.ReLU(),
    )
    clipped = nn.Sequential(model[0], nn.MaxPool2d(3, 2, ceil_mode=True), *model[2:])
    x = torch.randn(3, 1, 8, 8)
    same_margins(model, clipped, x)
    everything(model, x)
    losses(model, x)


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_one_channel_make_dead_neurons(seed):
    torch.manual_seed(seed)
    mask = torch.rand(2, 6, 6) < 0.4
    mask[:, 0, 0] = False
    mask[0, 3, 3], mask[1, 3, 3] = True, True  # all channels: no neurons
    mask[0, :3, :3] = True  # windows that are masked as a whole, in one channel
    mask[1, :3, :3] = False
    conv = nn.Conv2d(1, 2, 3)
    model = nn.Sequential(conv, networks.Apply(lambda h: h.masked_fill(mask, -math.inf)), nn.MaxPool2d(3), nn.Flatten())
    model.append(networks.Apply(lambda h: h[:, 1:]))
    model += nn.Sequential(nn.Linear(7, 3), nn.ReLU())
    x = torch.randn(3, 1, 8, 8)
    everything(model, x)
    losses(model, x)
    layer = llr_fast.gradient_norms(model, x)[0]
    assert layer.distance.isfinite().all()
    with torch.no_grad():
        h = F.unfold(model[:2](x).reshape(6, 1, 6, 6).nan_to_num(neginf=-1e9), 3, stride=3).reshape(3, 2, 9, 4)
    best = h.amax(2, keepdim=True)
    leads = (best - h)[(h > -1e8) & (h < best)]
    kept = layer.norm > 0
    torch.testing.assert_close(layer.distance[kept].float().sort().values, leads.sort().values, rtol=1e-4, atol=1e-5)


def test_window_of_nothing_but_minus_infinity():
    class Masked(nn.Module):
        def forward(self, x):
            return F.max_pool1d(F.pad(x, (2, 0), value=-math.inf), 2)

    x = torch.tensor([[[1.0, 3.0]], [[2.0, 1.0]]])
    assert llr_fast.margin(Masked(), x).value.tolist() == pytest.approx([math.sqrt(2), 1 / math.sqrt(2)])
    output, penalty = llr_fast.ROLLLoss(Masked(), estimator="exact")(x)
    assert torch.equal(output, Masked()(x)) and penalty.isfinite()
    assert llr_fast.count_linear_regions(Masked(), [x], progress=False).lower == 2
    everything(Masked(), x)


@pytest.mark.parametrize("relu", [False, True])
def test_planes_of_networks_with_windows_of_one_entry(relu):
    model = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.MaxPool1d(1), *[nn.ReLU()] * relu)
    regions = regions_on_plane(model, (-1, 2, -1, 1), like=torch.zeros(1), progress=False)
    assert len(regions) == (4 if relu else 1)


def test_default_device_does_not_matter():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv1d(1, 2, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3), nn.ReLU()),
        torch.randn(3, 1, 5),
    )
    with torch.device("meta"):
        llr_fast.directional_margin(model, x, x)
        llr_fast.activation_pattern(model, x)
        llr_fast.count_linear_regions(model, [x], progress=False)
        llr_fast.regions_along(model, x[:1], x[1:2], progress=False)


def test_other_infinities_are_refused():
    model = nn.Sequential(nn.Identity(), networks.Apply(lambda h: F.pad(h, (1, 0), value=math.inf)), nn.MaxPool1d(2))
    with pytest.raises(ValueError, match="expected finite values of all neurons"):
        llr_fast.margin(model, torch.randn(2, 1, 3))


def test_places_need_the_width_they_need():
    model, x = nn.Sequential(nn.Identity(), nn.AdaptiveMaxPool2d(1)), torch.zeros(3, 1, 512, 512)
    x[0].view(-1)[0] = x[1].view(-1)[65_536] = x[2].view(-1)[40_000] = 1.0
    pattern = llr_fast.activation_pattern(model, x)
    assert pattern.dtype == torch.int32 and pattern[:, 0].tolist() == [0, 65_536, 40_000]
    count = llr_fast.count_linear_regions(model, [x], progress=False)
    assert (count.lower, count.upper) == (3, 3)
    small = nn.Sequential(nn.Identity(), nn.AdaptiveMaxPool2d(1), nn.ReLU())
    assert llr_fast.activation_pattern(small, x[..., :8, :8]).dtype == torch.int16
    assert llr_fast.activation_pattern(small, x).dtype == torch.int32
    edge = torch.zeros(1, 1, 2**15)
    edge[..., -1] = 1.0
    pattern = llr_fast.activation_pattern(nn.Sequential(nn.Identity(), nn.AdaptiveMaxPool1d(1)), edge)
    assert pattern.dtype == torch.int16 and (pattern == 2**15 - 1).all()
