import copy
import math
import sys

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llr_fast

NORMS = [1, 2, math.inf]
METHODS = ["exact", "search"]
DTYPE = torch.float64


def same(got, expected, rtol=1e-8, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def check(result, x, layers, p, rtol=1e-8, gradient_rtol=1e-8):
    """Values, and that each reported neuron attains them (order within a pool is free)."""
    expected = torch.stack([torch.cat([layer.margin(p) for layer in sample]).min() for sample in layers])
    assert (
        result.value.dtype == DTYPE and result.value.shape == result.layer.shape == result.neuron.shape == x.shape[:1]
    )
    assert result.layer.dtype == result.neuron.dtype == torch.long and result.exact.dtype == torch.bool
    assert result.gradient.shape == x.shape
    assert len(result.layer_names) == len(layers[0])
    same(result.value, expected, rtol=rtol)
    for b, sample in enumerate(layers):
        if math.isinf(expected[b]):
            assert result.layer[b] == -1
            continue
        layer = sample[result.layer[b]]
        candidates = range(len(layer.z)) if layer.pool else [int(result.neuron[b])]
        assert 0 <= result.neuron[b] < len(layer.z)
        attained = [n for n in candidates if math.isclose(layer.margin(p)[n], expected[b], rel_tol=10 * rtol)]
        gradient = result.gradient[b].to(DTYPE).flatten()
        assert any(
            torch.allclose(layer.gradient[n], gradient, rtol=gradient_rtol, atol=gradient_rtol) for n in attained
        )
        assert any(math.isclose(layer.offset[n], result.offset[b], rel_tol=10 * rtol) for n in attained)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", networks.NAMES)
def test_equals_oracle(case, name, p, method):
    model, x, layers = case(name)
    result = llr_fast.margin(model, x, p, method=method, generator=torch.Generator().manual_seed(0))
    check(result, x, layers, p)
    if method == "exact":
        assert result.exact.all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", ["relu", "residual", "max_pool2d_ceil_padded", "recurrent_time_first"])
def test_auto_is_the_default(case, name, p):
    model, x, layers = case(name)
    check(llr_fast.margin(model, x, p), x, layers, p)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", ["relu", "conv2d", "max_pool2d_of_relu", "recurrent_batch_first", "decoder"])
def test_float32_model(name, p, method):
    model, x = networks.build(name)
    model, x = model.float(), x.float()
    double = copy.deepcopy(model).double()
    layers = [oracle.neurons(double, sample) for sample in x.double().split(1)]
    check(llr_fast.margin(model, x, p, method=method), x, layers, p, rtol=1e-4, gradient_rtol=1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_values_are_evaluated_in_float64(method):
    """z = 1e-9 at weights of size 1: below the resolution of a float32 evaluation."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    model[0].weight.data = torch.tensor([[1.0, -1.0]])
    model[0].bias.data = torch.tensor([1e-9])
    result = llr_fast.margin(model, torch.full((1, 2), 1 / 3), 2, method=method)
    same(result.value, model[0].bias.double().detach() / math.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("p", NORMS)
def test_boundary_point(case, p):
    for name in ("relu", "hardtanh", "conv1d", "max_pool2d", "decoder"):
        model, x, _ = case(name)
        result = llr_fast.margin(model, x, p)
        point = result.boundary_point(x)
        assert point.dtype == DTYPE and point.shape == x.shape
        same(torch.linalg.vector_norm((point - x).flatten(1), p, dim=1), result.value)
        for b, sample in enumerate(point.split(1)):
            layer = oracle.neurons(model, sample)[result.layer[b]]
            assert layer.distance.min() < 1e-9 if layer.pool else layer.distance[result.neuron[b]] < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_no_boundary_within_reach(method):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU()).double()
    model[0].weight.data.zero_()
    x = torch.randn(5, 2, dtype=DTYPE)
    result = llr_fast.margin(model, x, method=method)
    assert torch.isinf(result.value).all() and (result.value > 0).all()
    assert (result.layer == -1).all()
    assert result.boundary_point(x).isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradient_at_the_kink_does_not_bound(method):
    """A neuron that is constantly zero has an infinite margin, not 0 / 0."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double()
    model[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=DTYPE)
    model[0].bias.data.zero_()
    result = llr_fast.margin(model, torch.tensor([[1.0, 0.5]], dtype=DTYPE), method=method)
    assert result.value.tolist() == [1.0] and result.neuron.tolist() == [1]


@pytest.mark.parametrize("method", METHODS)
def test_on_the_kink_the_margin_is_zero(method):
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).double()
    model[0].weight.data = torch.tensor([[1.0, -1.0]], dtype=DTYPE)
    model[0].bias.data.zero_()
    x = torch.tensor([[0.5, 0.5]], dtype=DTYPE)
    result = llr_fast.margin(model, x, method=method)
    assert result.value.tolist() == [0.0] and result.layer.tolist() == [0]
    same(result.boundary_point(x), x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["leaky_relu", "residual", "recurrent_projected_first", "frames", "max_pool1d_padded"])
def test_independent_of_batch_mates(case, name, method):
    model, x, _ = case(name)
    together = llr_fast.margin(model, x, method=method)
    for b, sample in enumerate(x.split(1)):
        alone = llr_fast.margin(model, sample, method=method)
        same(alone.value, together.value[b : b + 1], rtol=1e-11)
        same(alone.gradient, together.gradient[b : b + 1], rtol=1e-9)
        assert alone.layer.item() == together.layer[b] and alone.neuron.item() == together.neuron[b]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["relu", "conv2d", "recurrent_time_first"])
def test_more_samples_than_inputs_or_neurons(name, method):
    model, x = networks.build(name, batch=41)
    value = llr_fast.margin(model, x, method=method).value
    for b in (0, 17, 40):
        same(value[b : b + 1], oracle.margin(model, x[b : b + 1], 2))


@pytest.mark.parametrize("method", METHODS)
def test_model_is_left_as_it_was(method):
    model, x = networks.build("residual")
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    leaf = x.clone().requires_grad_()
    llr_fast.margin(model, leaf, method=method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not model[0].weight.requires_grad and model[-1].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert leaf.grad is None and torch.equal(leaf, x)
    assert type(model(x)) is torch.Tensor


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_any_grad_mode(case, context, method):
    model, x, layers = case("max_pool2d_of_relu")
    with context():
        result = llr_fast.margin(model, x, method=method)
        check(result, x, layers, 2)
    assert not result.value.requires_grad and not result.gradient.requires_grad


class FrozenFeatures(nn.Module):
    """Computes its features without a graph."""

    def __init__(self, model: nn.Sequential, context):
        super().__init__()
        self.features, self.head, self.context = model[:2], model[2:], context

    def forward(self, x):
        with self.context():
            x = self.features(x)
        return self.head(x)


@pytest.mark.parametrize("method", METHODS)
def test_model_that_stops_gradients_inside(case, method):
    model, x, layers = case("relu")
    check(llr_fast.margin(FrozenFeatures(model, torch.no_grad), x, method=method), x, layers, 2)
    detached = nn.Sequential(model[:2], networks.Apply(torch.Tensor.detach), model[2:])
    check(llr_fast.margin(detached, x, method=method), x, layers, 2)


@pytest.mark.parametrize("method", METHODS)
def test_non_contiguous_and_channels_last_input(case, method):
    model, x, layers = case("conv2d")
    for other in (x.to(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3)):
        check(llr_fast.margin(model, other, method=method), other, layers, 2)


def test_layer_names_are_module_paths_in_forward_order(case):
    model, x, _ = case("conv2d")
    assert llr_fast.margin(model, x).layer_names == ["2:relu", "4:relu", "8:relu"]


def test_search_is_reproducible_from_its_generator(case):
    model, x, _ = case("decoder")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = llr_fast.margin(model, x, method="search", generator=torch.Generator().manual_seed(7))
    second = llr_fast.margin(model, x, method="search", generator=torch.Generator().manual_seed(7))
    assert torch.equal(first.value, second.value) and torch.equal(first.neuron, second.neuron)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", range(20))
def test_search_equals_exact_for_many_draws(seed):
    model, x = networks.build("conv1d", seed=seed, batch=4)
    for p in NORMS:
        exact = llr_fast.margin(model, x, p, method="exact")
        search = llr_fast.margin(model, x, p, method="search", generator=torch.Generator().manual_seed(seed))
        same(search.value, exact.value)


def test_wide_layer_is_searched_without_error():
    """More neurons than the oracle could do; exact and search must agree."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2)).double()
    x = torch.randn(6, 40, dtype=DTYPE)
    for p in NORMS:
        exact, search = (llr_fast.margin(model, x, p, method=method) for method in METHODS)
        same(search.value, exact.value)
        assert torch.equal(search.layer, exact.layer) and torch.equal(search.neuron, exact.neuron)


def test_sequences_of_any_length_share_a_model():
    model, x = networks.build("recurrent_batch_first")
    longer = torch.cat([x, x.flip(1)], 1)
    same(llr_fast.margin(model, longer).value, oracle.margin(model, longer, 2))


def test_parametrized_weights(case):
    model, x, layers = case("weight_norm")
    check(llr_fast.margin(model, x, 1), x, layers, 1)


def test_hidden_outputs_and_dictionaries_do_not_matter(case):
    """The output layer is no hidden neuron, whatever the model returns."""

    class Pair(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            hidden = self.model[:4](x)
            return {"logits": self.model[4](hidden), "hidden": hidden}

    model, x, layers = case("relu")
    check(llr_fast.margin(Pair(model), x), x, layers, 2)


@pytest.mark.parametrize("p", NORMS)
def test_a_network_without_hidden_neurons_is_linear_everywhere(p):
    result = llr_fast.margin(nn.Linear(3, 2).double(), torch.randn(2, 3, dtype=DTYPE), p)
    assert torch.isinf(result.value).all() and (result.layer == -1).all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["conv1d", "max_pool2d_of_relu", "recurrent_time_first"])
def test_one_sample_and_one_direction_at_a_time(case, monkeypatch, name, method, p):
    """The memory budget cuts work into chunks; the result stays what it is."""
    monkeypatch.setattr(llr_fast.certificates.evaluation, "MEMORY_BUDGET", 1)
    model, x, layers = case(name)
    check(llr_fast.margin(model, x, p, method=method), x, layers, p)


@pytest.mark.parametrize("p", NORMS)
def test_search_beyond_its_first_candidates(case, monkeypatch, p):
    monkeypatch.setattr(sys.modules["llr_fast.certificates.search"], "CANDIDATES", 2)
    for name in ("conv2d", "decoder", "adaptive_max_pool2d"):
        model, x, layers = case(name)
        check(llr_fast.margin(model, x, p, method="search"), x, layers, p)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_identical_samples(case, method):
    model, x, layers = case("conv1d")
    result = llr_fast.margin(model, x[:1].expand(5, -1, -1), method=method)
    check(result, x[:1].expand(5, -1, -1), layers[:1] * 5, 2)


@pytest.mark.parametrize("method", METHODS)
def test_shared_and_overlapping_modules(method):
    """The same block at two depths, and an activation used on two branches."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    model = nn.Sequential(block, networks.Apply(lambda x: x - 0.5), block, nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=DTYPE)
    layers = [oracle.neurons(model, sample) for sample in x.split(1)]
    check(llr_fast.margin(model, x, method=method), x, layers, 2)


@pytest.mark.parametrize("method", METHODS)
def test_skip_from_the_input_past_dead_layers(method):
    """The first layer is constant; the second sees x directly."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.head = nn.Linear(3, 3), nn.Linear(6, 4)
            self.dead.weight.data.zero_()

        def forward(self, x):
            return F.relu(self.head(torch.cat([F.relu(self.dead(x)), x], 1)))

    torch.manual_seed(0)
    model = Skip().double()
    x = torch.randn(3, 3, dtype=DTYPE)
    layers = [oracle.neurons(model, sample) for sample in x.split(1)]
    check(llr_fast.margin(model, x, method=method), x, layers, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_models_are_certified_as_the_functions_they_are(dtype, method):
    """Weights count at their rounded values, but nothing else is rounded."""
    model, x = networks.build("residual")
    model, x = model.to(dtype), x.to(dtype)
    double = copy.deepcopy(model).double()
    layers = [oracle.neurons(double, sample) for sample in x.double().split(1)]
    check(llr_fast.margin(model, x, method=method), x, layers, 2, rtol=1e-4, gradient_rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_reach_certificates(method):
    model, x = networks.build("conv2d")
    model, x = model.float(), x.float()
    expected = llr_fast.margin(model, x, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = llr_fast.margin(model, x, method=method)
    same(found.value, expected.value)
    same(found.gradient, expected.gradient)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_model(case, method):
    """A compiled model is certified like the model itself, and leaves the grad mode alone."""
    model, x, layers = case("relu")
    with torch.enable_grad():
        result = llr_fast.margin(torch.compile(model, backend="eager"), x, method=method)
        assert torch.is_grad_enabled()
    check(result, x, layers, 2)


@pytest.mark.parametrize("scale", [1e-200, 1e-140, 1e200, 1e290])
def test_norms_at_the_ends_of_float64(scale):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double(), torch.rand(3, 4, dtype=DTYPE)
    before = {q: llr_fast.gradient_norms(model, x, q)[0].norm for q in (1, 2, math.inf)}
    margins = {p: llr_fast.margin(model, x, p).value for p in (1, 2, math.inf)}
    model[0].weight.data.mul_(scale)
    model[0].bias.data.mul_(scale)
    for q in before:
        same(llr_fast.gradient_norms(model, x, q)[0].norm / scale, before[q])
        same(llr_fast.margin(model, x, q).value, margins[q])


def test_float32_values_of_a_float64_model():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3), nn.ReLU()).double(), torch.rand(3, 4)
    found = llr_fast.margin(model, x, dtype=torch.float32).value
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), llr_fast.margin(model, x).value, rtol=1e-3, atol=1e-7)


class Absorbing(nn.Module):
    """In float32 the large term takes what it is added to; its difference is 0, without a direction that would tell."""

    def forward(self, x):
        large = 1e9 * x[:, :1]
        return F.relu(torch.cat([(large + x[:, 1:2]) - large, x[:, 2:]], 1))


@pytest.mark.parametrize("p", NORMS)
def test_what_float32_absorbs_is_not_dropped(monkeypatch, p):
    """As large networks are searched: candidates in float32, whose errors along one direction are known."""
    monkeypatch.setattr(llr_fast.certificates.bounds, "FEW", 0)
    x = torch.tensor([[1.0, 0.125, 5.0], [0.5, -0.25, 7.0]])
    found = llr_fast.margin(Absorbing(), x, p, method="search")
    torch.testing.assert_close(found.value, torch.tensor([0.125, 0.25], dtype=DTYPE), rtol=1e-6, atol=0)
    assert found.neuron.tolist() == [0, 0]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("batch", [33, 64])
def test_large_batches_whose_samples_are_decided_at_different_times(monkeypatch, batch, p):
    """The decided half is left behind several times; in float64 alone, and after candidates in float32."""
    monkeypatch.setattr(llr_fast.certificates.search, "CANDIDATES", 3)
    model, x = networks.build("residual", batch=batch)
    model, x = model.float(), x.float() * torch.logspace(-2, 1, batch)[:, None, None, None]
    exact = llr_fast.margin(model, x, p, method="exact")
    for few in (0, 2**16):
        monkeypatch.setattr(llr_fast.certificates.bounds, "FEW", few)
        for seed in range(3):
            found = llr_fast.margin(model, x, p, method="search", generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(found.value, exact.value, rtol=1e-9, atol=0)
            torch.testing.assert_close(found.gradient, exact.gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160])
def test_search_of_extreme_gradients(scale, p):
    model, x = networks.build("conv2d")
    scaled = nn.Sequential(networks.Apply(lambda x: x * scale), model)
    expected = llr_fast.margin(model, x, p, method="exact").value
    for method in METHODS:
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            found = llr_fast.margin(scaled, x / scale, p, method=method, generator=generator).value
            torch.testing.assert_close(found * scale, expected, rtol=1e-7, atol=0)


MAPPED = {
    "cumsum": lambda x: x.cumsum(1),
    "sum": lambda x: x.view(-1, 4, 5).sum(1),
    "product": lambda x: x @ torch.ones(20, 6, dtype=x.dtype).tril(),
    "negative scale": lambda x: F.batch_norm(
        x, torch.zeros(20).to(x), torch.ones(20).to(x), torch.arange(-10.0, 10).to(x) / 5 - 0.1
    ),
}


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", MAPPED)
def test_first_layers_of_more_than_a_product(name, p):
    """Bounds by their weights alone hold of products with weights, and of these scaled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), networks.Apply(MAPPED[name]), nn.ReLU()).double()
    x = torch.randn(8, 12, dtype=DTYPE)
    expected = oracle.margin(model, x, p)
    for seed in range(3):
        found = llr_fast.margin(model, x, p, method="search", generator=torch.Generator().manual_seed(seed)).value
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_candidates_of_float32_are_not_dropped_below_their_norms(monkeypatch):
    """What the coarse pass finds of a neuron is its norm, so its new bound may lie little above it, never below."""
    model, x = networks.build("conv2d")
    model, x = model.float(), x.float()
    monkeypatch.setattr(llr_fast.certificates.bounds, "FEW", 0)
    search, seen = llr_fast.certificates.search, []
    plain = search._tightened
    monkeypatch.setattr(search, "_tightened", lambda *a: seen.append((plain(*a), a[1])) or seen[-1][0])
    for p in NORMS:
        norms = [layer.norm for layer in llr_fast.gradient_norms(model, x, {1: math.inf, 2: 2, math.inf: 1}[p])]
        llr_fast.margin(model, x, p, method="search")
        bounds, computed = seen[-1]
        assert computed
        for found in computed:
            rows = found.rows[:, None].expand_as(found.layer)
            for row, layer, neuron in zip(*(t.flatten().tolist() for t in (rows, found.layer, found.neuron))):
                norm = norms[layer][row, neuron]
                assert norm <= bounds[layer][row, neuron] <= 1.01 * norm + 1e-4
