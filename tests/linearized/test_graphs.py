"""Networks on graphs with fixed edges, as torch_geometric writes them: one graph is one sample, or one signal on it is.

Messages are gathered along edges and added up where they arrive; nothing here knows the library's rules.
"""

import math

import networks
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr_fast

DTYPE = torch.float64
NODES, FEATURES, HIDDEN = 6, 3, 4
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 5, 2, 0], [1, 0, 2, 1, 4, 3, 5, 4, 0, 2]])  # from, to
ARRIVING = torch.bincount(EDGES[1], minlength=NODES).clamp(min=1)  # made beforehand: the oracle would see a kink


def collected(source: Tensor, to: Tensor, reduce: str) -> Tensor:
    """[..., nodes, features] of messages [..., edges, features], as torch_geometric.utils.scatter."""
    shape = [*source.shape[:-2], NODES, source.size(-1)]
    index = to.view(-1, 1).expand_as(source)
    total = source.new_zeros(shape).scatter_add_(-2, index, source)
    if reduce == "sum":
        return total
    return total / ARRIVING.view(-1, 1)


def normalised() -> tuple[Tensor, Tensor]:
    """Edges with loops, and their weights: the inverse roots of both degrees."""
    loops = torch.arange(NODES).expand(2, -1)
    edges = torch.cat([EDGES, loops], 1)
    degree = torch.zeros(NODES, dtype=DTYPE).scatter_add_(0, edges[1], torch.ones(edges.size(1), dtype=DTYPE))
    inverse = degree.pow(-0.5)
    return edges, inverse[edges[0]] * inverse[edges[1]]


class GCN(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear, self.bias = nn.Linear(inputs, outputs, bias=False), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        edges, weight = normalised()
        x = self.linear(x)
        return collected(weight.view(-1, 1) * x.index_select(-2, edges[0]), edges[1], "sum") + self.bias


class SAGE(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.neighbours, self.root = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.neighbours(collected(x.index_select(-2, EDGES[0]), EDGES[1], "mean")) + self.root(x)


class GIN(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.nn = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape).index_add_(-2, EDGES[1], x.index_select(-2, EDGES[0]))
        return self.nn(out + (1 + 0.1) * x)


class Cheb(nn.Module):
    """Chebyshev polynomials of the scaled Laplacian, a sparse matrix."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(3))

    def propagate(self, x: Tensor) -> Tensor:
        edges, weight = normalised()
        laplacian = torch.sparse_coo_tensor(edges.flip(0), -weight, (NODES, NODES))
        rows = x.movedim(-2, 0)
        return torch.sparse.mm(laplacian, rows.reshape(NODES, -1)).view(rows.shape).movedim(0, -2)

    def forward(self, x: Tensor) -> Tensor:
        t0, t1 = x, self.propagate(x)
        out = self.lins[0](t0) + self.lins[1](t1)
        return out + self.lins[2](2.0 * self.propagate(t1) - t0)


class Network(nn.Module):
    def __init__(self, layer: type[nn.Module], alone: bool):
        super().__init__()
        self.first, self.second = layer(FEATURES, HIDDEN), layer(HIDDEN, HIDDEN)
        self.last, self.alone = nn.Linear(HIDDEN, 2), alone

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x[0] if self.alone else x))
        h = F.leaky_relu(self.second(h), 0.1)
        return self.last(h)[None] if self.alone else self.last(h.mean(-2))


def network(layer: type[nn.Module], alone: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(layer, alone).to(DTYPE).requires_grad_(False)


@pytest.mark.parametrize("layer", [GCN, SAGE, GIN, Cheb])
def test_one_graph_is_one_sample(layer):
    model = network(layer, alone=True)
    x = torch.randn(1, NODES, FEATURES, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    for p in (1, 2, math.inf):
        found = llr_fast.margin(model, x, p)
        torch.testing.assert_close(found.value, oracle.margin(model, x, p))
    enclosed = llr_fast.margin(model, x, rigorous=True)
    value = oracle.margin(model, x, 2)
    assert enclosed.proven.all() and (enclosed.lower <= value).all() and (value <= enclosed.upper).all()


@pytest.mark.parametrize("layer", [GCN, SAGE, GIN, Cheb])
def test_batches_of_signals_on_one_graph(layer):
    model = network(layer, alone=False)
    x = torch.randn(3, NODES, FEATURES, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    torch.testing.assert_close(llr_fast.margin(model, x).value, oracle.margin(model, x, 2))
    penalty = llr_fast.ROLLLoss(model, estimator="exact")(x)[1]
    torch.testing.assert_close(penalty, oracle.roll_penalty(model, x))


@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GINConv", "ChebConv", "GraphConv"])
def test_layers_of_torch_geometric(name):
    geometric = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
    build = {
        "GINConv": lambda i, o: geometric.GINConv(nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, o))),
        "ChebConv": lambda i, o: geometric.ChebConv(i, o, 3),
    }.get(name, getattr(geometric, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleList([build(FEATURES, HIDDEN), build(HIDDEN, 2)]).to(DTYPE).requires_grad_(False)
    model = networks.Apply(lambda x: layers[1](F.relu(layers[0](x[0], EDGES)), EDGES).relu()[None])
    x = torch.randn(1, NODES, FEATURES, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    torch.testing.assert_close(llr_fast.margin(model, x).value, oracle.margin(model, x, 2))
