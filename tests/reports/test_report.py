"""evaluate and its report."""

import json
import math

import networks
import oracle
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import llr_fast

DTYPE = torch.float64
NORMS = (1, 2, math.inf)


def quiet(*args, **options):
    return llr_fast.evaluate(*args, progress=False, **options)


@pytest.mark.parametrize("name", ["relu", "conv2d", "max_pool2d", "recurrent_batch_first"])
def test_margins_and_accuracy_equal_oracle(name):
    model, x = networks.build(name, batch=7)
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    report = quiet(model, DataLoader(TensorDataset(x, y), batch_size=3))
    assert report.points == 7 and list(report.margins) == list(NORMS)
    assert report.accuracy == pytest.approx((model(x).argmax(1) == y).double().mean().item())
    for p in NORMS:
        torch.testing.assert_close(report.margins[p], oracle.margin(model, x, p), rtol=1e-8, atol=1e-10)
    assert report.regions == llr_fast.count_linear_regions(model, [x])


def normalised(model: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> nn.Module:
    return nn.Sequential(networks.Apply(lambda v: (v - mean) / std), model)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", ["relu", "conv2d", "max_pool3d"])
def test_margins_before_normalisation(name, p):
    model, x = networks.build(name)
    channels = x.shape[1]
    mean = torch.randn(channels, *[1] * (x.dim() - 2), dtype=DTYPE)
    std = torch.rand_like(mean) + 0.1
    expected = oracle.margin(normalised(model, mean, std), x * std + mean, p)
    found = quiet(model, [x], p, std=std.flatten())
    torch.testing.assert_close(found.margins[p], expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(quiet(model, [x], p, std=std.expand(x.shape[1:])).margins[p], found.margins[p])
    assert found.accuracy is None and "before normalisation" in str(found)


@pytest.mark.parametrize("p", NORMS)
def test_one_std_for_all_multiplies_margins(p):
    model, x = networks.build("relu")
    expected = 0.3081 * oracle.margin(model, x, p)
    torch.testing.assert_close(quiet(model, [x], p, std=0.3081).margins[p], expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(quiet(model, [x], p, std=[0.3081] * 5).margins[p], expected, rtol=1e-8, atol=1e-10)


def test_std_of_a_float32_model_does_not_move_the_points():
    model, x = networks.build("conv2d")
    model, x, std = model.float(), x.float(), torch.tensor([0.229, 0.7])
    found = quiet(model, [x], 2, std=std).margins[2]
    expected = oracle.margin(
        normalised(model.double(), torch.zeros(()), std.double()[:, None, None]), x * std.double()[:, None, None], 2
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_percentiles_are_values_of_samples():
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [50.0]])
    report = quiet(nn.ReLU(), [x], 2, percentiles=(0, 25, 50, 100))
    assert report.percentile(2) == {0: 1.0, 25: 2.0, 50: 3.0, 100: 50.0}


def test_infinite_margins():
    report = quiet(nn.Linear(2, 3), [torch.ones(4, 2)])
    assert report.percentile(1)[50] == math.inf and report.regions.upper == 1
    assert "inf" in str(report)


def test_report_as_dict_and_markdown():
    model, x = networks.build("relu", batch=5)
    report = quiet(model, [(x, torch.zeros(5).long())], (2, math.inf), percentiles=(50, 100))
    found = json.loads(json.dumps(report.to_dict()))
    assert set(found) == {"points", "accuracy", "regions", "margins", "unit"}
    assert found["margins"]["linf"] == {"exact": True, **{f"P{k}": v for k, v in report.percentile(math.inf).items()}}
    assert found["regions"] == {"lower": report.regions.lower, "upper": report.regions.upper}
    header, rule, *rows = report.to_markdown().splitlines()
    assert rule.startswith("|--") and all(row.startswith("| ") for row in [header, *rows])
    assert [row.split("|")[1].strip() for row in rows[4:]] == [
        f"l{p} margin, P{k}" for p in (2, "inf") for k in (50, 100)
    ]
    assert f"{report.percentile(2)[50]:#.3g}" in str(report)


def test_search_is_not_called_exact():
    model, x = networks.build("conv2d")
    assert not quiet(model, [x], 2, method="search").exact[2]
    assert quiet(model, [x], 2, method="exact").exact[2]


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_accuracy_of_one_logit(shape):
    model = nn.Sequential(nn.ReLU(), networks.Apply(lambda t: (t[:, 0] - 1).reshape(shape)))
    assert quiet(model, [(torch.tensor([[3.0], [0.5], [2.0]]), torch.tensor([1, 0, 0]))]).accuracy == pytest.approx(
        2 / 3
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p": 3}, "p: expected one of"),
        ({"p": (1, "2")}, "p: expected one of"),
        (
            {"std": [1.0, 2.0, 3.0]},
            r"std: expected positive numbers, one, one for each of 5 channels.*got shape \(3,\)",
        ),
        ({"std": 0.0}, "std: expected positive numbers"),
        ({"std": math.nan}, "std: expected finite"),
        ({"percentiles": [101]}, "percentiles: expected a number from 0 to 100"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        quiet(networks.build("relu")[0], [networks.build("relu")[1]], **options)


def test_refuses_labels_of_another_shape():
    model, x = networks.build("relu")
    with pytest.raises(ValueError, match=r"loader: expected labels of shape \(3,\), got \(3, 3\)"):
        quiet(model, [(x, torch.zeros(3, 3))])


def test_points_are_those_given_where_the_model_writes_to_its_input():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = nn.Sequential(networks.Apply(lambda x: x.sub_(0.5).div_(0.25)), body)
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 2])
    given = x.clone()
    report = llr_fast.evaluate(model, [(x, y)], 2, progress=False)
    assert torch.equal(x, given)
    torch.testing.assert_close(report.margins[2], llr_fast.margin(body, (x.double() - 0.5) / 0.25).value / 4)


def test_reports_of_uneven_ranks_are_one(monkeypatch):
    """Two samples that are all right, measured exactly, and six of another accuracy that were searched."""
    model, x = networks.build("relu", batch=8)
    y = model(x).argmax(1)
    y[[3, 5, 6]] = (y[[3, 5, 6]] + 1) % 3
    whole, sent = quiet(model, [(x, y)], 2), []
    for names in ("llr_fast.reports.report.gathered", "llr_fast.regions.count.gathered"):
        monkeypatch.setattr(names, lambda part, group: sent.append(part) or [part])
    quiet(model, [(x[:2], y[:2])], 2, method="exact")
    quiet(model, [(x[2:], y[2:])], 2, method="search")
    monkeypatch.setattr("llr_fast.regions.count.gathered", lambda part, group: sent[0::2])
    monkeypatch.setattr("llr_fast.reports.report.gathered", lambda part, group: sent[1::2])
    merged = quiet(model, [(x[:2], y[:2])], 2, method="exact")
    assert merged.accuracy == whole.accuracy == 5 / 8
    assert "62.5%" in str(merged) and "62.5%" in merged.to_markdown()
    assert merged.points == 8 and merged.regions == whole.regions and not merged.exact[2]
    torch.testing.assert_close(merged.margins[2], whole.margins[2])


def test_one_logit_is_positive_above_zero():
    logits = torch.tensor([[0.4], [1e-3], [0.0], [-1e-3], [-0.4]])
    labels = torch.tensor([1, 1, 0, 0, 0])
    assert quiet(nn.Sequential(networks.Apply(lambda t: 1 * t)), [(logits, labels)]).accuracy == 1


def test_labels_are_the_second_part_of_a_batch():
    model, x = networks.build("relu")
    y = model(x).argmax(1)
    assert quiet(model, [(x, y, 1 - y), [x, y, x]]).accuracy == 1


@pytest.mark.parametrize("level, expected", [(25, 2.0), (60, 3.0), (75, 3.0), (90, 4.0)])
def test_percentiles_are_those_of_the_nearest_sample(level, expected):
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert quiet(nn.ReLU(), [x], 2, percentiles=[level]).percentile(2) == {level: expected}


@pytest.mark.parametrize("std", [None, 0.5, [0.5, 2.0]])
@pytest.mark.parametrize("p", NORMS)
def test_certified_accuracy(p, std):
    """Against points all around each sample, in the unit before normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = 2 * torch.randn(12, 2, dtype=DTYPE)
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    unit = torch.ones(2, dtype=DTYPE) * torch.as_tensor(1.0 if std is None else std, dtype=DTYPE)
    u = 2 * torch.rand(20000, 2, dtype=DTYPE) - 1
    u = u / torch.linalg.vector_norm(u, p, dim=1, keepdim=True) * torch.rand(20000, 1, dtype=DTYPE) ** 0.5
    for eps in (0.01, 0.2, 1.0):
        stays = [(model(a + eps * u / unit).argmax(1) == label).all().item() for a, label in zip(x, y)]
        found = quiet(model, [(x[:5], y[:5]), (x[5:], y[5:])], p, std=std, eps=eps, regions=None)
        assert found.certified[p] == pytest.approx(sum(stays) / len(x)) and found.eps == eps
        assert found.certified[p] <= found.accuracy and f"certified accuracy, l{p:g}, eps {eps:g}" in str(found)
        assert quiet(model, [(x, y)], p, std=std, eps=eps).certified[p] <= found.certified[p]
        assert found.to_dict()["certified"] == {f"l{p:g}": found.certified[p]}


@pytest.mark.parametrize("eps, error", [(-1.0, ValueError), ("1", TypeError), (math.inf, ValueError)])
def test_distances_that_are_none_are_refused(eps, error):
    with pytest.raises(error, match="eps: expected"):
        quiet(nn.ReLU(), [torch.ones(1, 2)], eps=eps)


@pytest.mark.parametrize("method", ["auto", "exact", "search"])
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_are_the_same_with_certified_accuracy(p, method, dtype, monkeypatch):
    monkeypatch.setattr("llr_fast.certificates.bounds.FEW", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)).to(dtype).eval()
    x = torch.randn(40, 60, dtype=dtype)
    y = model(x).argmax(1)
    near = llr_fast.robustness(model, x, p, y=y).lower
    eps = near.sort().values[17:19].mean().item()
    found, plain = (quiet(model, [(x, y)], p, method=method, **options) for options in ({"eps": eps}, {}))
    torch.testing.assert_close(found.margins, plain.margins, rtol=1e-12, atol=0)
    assert found.exact == plain.exact and found.certified[p] == 22 / 40


def test_certified_accuracy_needs_labels():
    with pytest.raises(ValueError, match="loader: expected labels, which certified accuracy"):
        quiet(nn.ReLU(), [torch.ones(1, 2)], eps=0.1)
