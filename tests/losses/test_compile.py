"""torch.compile around a loss: the same numbers, with one break of the graph around the loss."""

import networks
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

import llr_fast

LOSSES = {
    "exact": lambda model: llr_fast.ROLLLoss(model, estimator="exact"),
    "rademacher": lambda model: llr_fast.ROLLLoss(model, estimator="rademacher", generator=torch.Generator()),
    "margin": llr_fast.MarginLoss,
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(call, loss, x):
    loss.zero_grad()
    if getattr(loss, "generator", None) is not None:
        loss.generator.manual_seed(0)
    value = call(x)
    value.backward()
    return [value.detach(), *(p.grad for p in loss.parameters() if p.grad is not None)]


@pytest.mark.parametrize("network", ["relu", "residual"])
@pytest.mark.parametrize("name", LOSSES)
def test_same_numbers(name, network):
    model, x = networks.build(network)
    loss, y = LOSSES[name](model), torch.tensor([0, 1, 0])

    def step(run):
        def call(x):
            output, penalty = run(2 * x)
            return cross_entropy(output, y) + penalty

        return call

    expected = gradients(step(loss), loss, x)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step(loss), backend=counter)
    for _ in range(2):
        torch.testing.assert_close(gradients(compiled, loss, x), expected, rtol=0, atol=0)
    filled = [g for g in counter.graphs if any(node.op == "call_function" for node in g.graph.nodes)]
    assert len(filled) == 2  # before the loss and after it


def test_one_graph_is_refused():
    model, x = networks.build("relu")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"ROLLLoss\.forward"):
        torch.compile(lambda x: llr_fast.ROLLLoss(model)(x)[1], backend="eager", fullgraph=True)(x)


def test_compiled_model_inside():
    """The wrapped model runs as written, whether it was compiled or not."""
    model, x = networks.build("residual")
    expected = llr_fast.ROLLLoss(model, estimator="exact")(x)[1]
    found = llr_fast.ROLLLoss(torch.compile(model, backend="eager"), estimator="exact")(x)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_compiled_loss():
    model, x = networks.build("relu")
    loss = llr_fast.ROLLLoss(model, estimator="exact")
    output, penalty = torch.compile(loss, backend="eager")(x)
    torch.testing.assert_close((output, penalty), loss(x), rtol=0, atol=0)
