"""torch.compile around a loss: one graph with the numbers of the step as written; certificates break it."""

import networks
import pytest
import torch
from torch import distributed, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import llr_fast


def pooled():
    """Batch-norm in training mode, both poolings, a PReLU of each channel, a residual sum."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

        def forward(self, x):
            return (x + self.inside(x)).relu_()

    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.MaxPool2d(3, 2, 1), Residual(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, 6), nn.ReLU6(), nn.Linear(6, 3)),
    ).double(), torch.randn(3, 1, 10, 10, dtype=torch.float64)


NETWORKS = {"dense": lambda: networks.build("relu"), "abs": lambda: networks.build("abs"), "pooled": pooled}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step_of(loss):
    def step(x):
        output, penalty = loss(2 * x)
        return cross_entropy(output.float(), torch.arange(len(x)) % 2) + penalty

    return step


def results(step, loss, x, steps=0):
    """The loss, the gradients of all parameters, and the buffers, from the same state and random numbers each time."""
    buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.zero_grad()
    loss.steps = steps
    torch.manual_seed(1)
    if loss.generator is not None:
        loss.generator.manual_seed(1)
    value = step(x)
    value.backward()
    found = [value.detach(), *(p.grad for p in loss.parameters() if p.grad is not None)]
    after = [buffer.clone() for buffer in loss.buffers()]
    for name, buffer in loss.named_buffers():
        buffer.copy_(buffers[name])
    return found + after


def compiled(loss, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(step_of(loss), backend=counter, fullgraph=True, **options), counter


CASES = [
    *(("pooled", estimator, gamma) for estimator in ("rademacher", "axis", "exact") for gamma in (100, 30)),
    ("pooled", "auto", 100),
    *(("dense", "rademacher", 100), ("dense", "exact", 100), ("dense", "auto", 0), ("dense", "axis", 30)),
    *(("abs", "rademacher", 100), ("abs", "exact", 0)),
]


@pytest.mark.parametrize("network, estimator, gamma", CASES)
def test_one_graph_has_the_same_numbers(network, estimator, gamma):
    model, x = NETWORKS[network]()
    loss = llr_fast.ROLLLoss(model, estimator=estimator, gamma=gamma, C=0.5)
    step, counter = compiled(loss)
    expected = results(step_of(loss), loss, x)
    for _ in range(2):
        torch.testing.assert_close(results(step, loss, x), expected, rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1


def test_options_on_a_schedule_compile_nothing_anew():
    model, x = pooled()
    loss = llr_fast.ROLLLoss(model, estimator="rademacher", gamma=50)
    step, counter = compiled(loss)
    for lam, C, gamma in [(1.0, 1.0, 50), (0.0, 0.5, 40), (0.25, 0.0, 0), (2.0, 1.0, 99)]:
        loss.lam, loss.C, loss.gamma = lam, C, gamma
        torch.testing.assert_close(results(step, loss, x), results(step_of(loss), loss, x), rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="graphs of torch 2.11 hold no generators")
def test_a_generator_goes_on_from_step_to_step():
    model, x = pooled()
    loss = llr_fast.ROLLLoss(model, estimator="rademacher", generator=torch.Generator())
    step, counter = compiled(loss)
    for _ in range(2):
        torch.testing.assert_close(results(step, loss, x), results(step_of(loss), loss, x), rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1


@pytest.mark.parametrize("network, estimator", [("dense", "axis"), ("dense", "exact")])
def test_batches_of_other_sizes(network, estimator):
    """As the last one of an epoch; each shape is a graph of its own at most."""
    model, x = NETWORKS[network]()
    loss = llr_fast.ROLLLoss(model, estimator=estimator)
    step, counter = compiled(loss)
    for part in (x, x[:2], torch.cat([x, x]), x):
        torch.testing.assert_close(results(step, loss, part), results(step_of(loss), loss, part), rtol=1e-9, atol=1e-12)
    assert counter.frame_count <= 3


def test_lazy_steps_are_two_graphs():
    model, x = pooled()
    loss = llr_fast.ROLLLoss(model, estimator="rademacher", every=3)
    step, counter = compiled(loss)
    for number in range(7):
        expected = results(step_of(loss), loss, x, number)
        torch.testing.assert_close(results(step, loss, x, number), expected, rtol=1e-9, atol=1e-12)
        assert loss.steps == number + 1
    assert counter.frame_count == 2


def test_with_inductor():
    model, x = networks.build("relu")
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    step, counter = compiled(loss, "inductor")
    expected = results(step_of(loss), loss, x)
    torch.testing.assert_close(results(step, loss, x), expected, rtol=1e-7, atol=1e-9)
    assert counter.frame_count == 1


def test_in_autocast():
    model, x = pooled()
    loss, x = llr_fast.ROLLLoss(model.float(), estimator="rademacher"), x.float()
    step, counter = compiled(loss)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(results(step, loss, x), results(step_of(loss), loss, x), rtol=2e-2, atol=2e-2)
    assert counter.frame_count == 1


def test_data_parallelism_around_a_compiled_loss(tmp_path):
    """Dynamo does not trace DistributedDataParallel itself, around no model: one graph inside, or one break around."""
    model, x = pooled()
    loss = llr_fast.ROLLLoss(model, estimator="rademacher")
    expected = results(step_of(loss), loss, x)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        inside = DistributedDataParallel(torch.compile(loss, backend="aot_eager", fullgraph=True))
        around = torch.compile(step_of(DistributedDataParallel(loss)), backend="aot_eager")
        for step in (step_of(inside), around):
            torch.testing.assert_close(results(step, loss, x), expected, rtol=1e-9, atol=1e-12)
    finally:
        del inside, around, step
        distributed.destroy_process_group()


def test_compiled_loss_and_evaluation():
    model, x = pooled()
    loss = llr_fast.ROLLLoss(model, estimator="exact").eval()
    output, penalty = torch.compile(loss, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close((output, penalty), loss(x), rtol=1e-9, atol=1e-12)


def test_a_model_compiled_inside_runs_as_written():
    model, x = networks.build("residual")
    expected = llr_fast.ROLLLoss(model, estimator="exact")(x)[1]
    found = llr_fast.ROLLLoss(torch.compile(model, backend="eager"), estimator="exact")(x)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


DATA_DEPENDENT = {
    "MarginLoss": lambda model, x: llr_fast.MarginLoss(model)(x)[1],
    "margin": lambda model, x: llr_fast.margin(model, x).value.sum(),
    "activation_pattern": lambda model, x: llr_fast.activation_pattern(model, x),
}


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_what_depends_on_data_breaks_the_graph(name):
    model, x = networks.build("relu")
    call, counter = DATA_DEPENDENT[name], CompileCounterWithBackend("eager")
    found = torch.compile(lambda x: 2 * call(model, x + 0), backend=counter)(x)
    torch.testing.assert_close(found, 2 * call(model, x), rtol=0, atol=0)
    assert counter.frame_count >= 2
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"{name} runs as written, as its loops depend on data"):
        torch.compile(lambda x: call(model, x), backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize("make", [llr_fast.ROLLLoss, llr_fast.MarginLoss])
def test_a_loss_is_not_exported(make):
    model, x = networks.build("relu")
    with pytest.raises(Exception, match=f"{make.__name__} is no part of an exported program: export the model"):
        torch.export.export(make(model), (x,), strict=False)
