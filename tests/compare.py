"""What the library finds, next to the oracle: in float64, one sample at a time, at every p and by every method.

And `refused`, for what it refuses.
"""

import contextlib
import copy
import functools
import math
import re

import oracle
import pytest
import torch
from torch import nn

import llr_fast

DTYPE = torch.float64
P = (1, 2, math.inf)
METHODS = ("auto", "exact", "search")


@contextlib.contextmanager
def refused(error: type[Exception], *names: str, match: str | None = None):
    """Expects an error of this very class, of none derived from it, that mentions all of the names, each in full."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert caught.type is error, caught.value
    for name in names:
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\.?\w)", str(caught.value)), f"{name}: {caught.value}"


class AsItWas(nn.Module):
    """Autograd with copies of what it keeps: it then follows models that change their constants afterwards."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            return self.model(x)


def reference(model):
    return AsItWas(copy.deepcopy(model).double())


def measured(model, x):
    return [oracle.neurons(reference(model), sample) for sample in x.double().split(1)]


def ratios(layers, p):
    return torch.cat([layer.margin(p) for layer in layers])


def close(got, wanted, rtol=1e-9):
    """Relative to the largest entry."""
    largest = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=rtol, atol=rtol * largest)


def margins_are_right(model, x, p=P, methods=METHODS, rtol=1e-9):
    """The value, the neuron that bounds the region, and its gradient."""
    samples = measured(model, x)
    for norm in p:
        ratio = [ratios(layers, norm) for layers in samples]
        wanted = torch.stack([r.min() for r in ratio])
        for method in methods:
            found = llr_fast.margin(model, x, norm, method=method)
            torch.testing.assert_close(found.value, wanted, rtol=rtol, atol=0)
            for b, layers in enumerate(samples):
                if found.layer[b] < 0:
                    continue
                layer, neuron = layers[found.layer[b]], found.neuron[b]
                if layer.pool:  # whose neurons may come in another order
                    continue
                torch.testing.assert_close(layer.margin(norm)[neuron], wanted[b], rtol=rtol, atol=0)
                close(found.gradient[b].flatten(), layer.gradient[neuron], rtol)


def norms_are_right(model, x, rtol=1e-3):
    samples = measured(model, x)
    for q in P:
        for index, found in enumerate(llr_fast.gradient_norms(model, x, q)):
            wanted = torch.stack([layers[index].norm(q) for layers in samples])
            norm = found.norm
            if samples[0][index].pool:
                norm, wanted = norm.sort(1).values, wanted.sort(1).values
            torch.testing.assert_close(norm, wanted, rtol=rtol, atol=0)


def densities_are_right(model, x, methods=("exact", "search")):
    """At a radius in the widest gap between the kinks in the middle."""
    samples = measured(model, x)
    for p in P:
        ratio = [ratios(layers, p) for layers in samples]
        places = torch.cat(ratio)[torch.cat(ratio).isfinite()].sort().values
        middle = places[len(places) // 4 : max(len(places) // 4 + 2, 3 * len(places) // 4)]
        gap = int((middle[1:] / middle[:-1]).argmax())
        radius = float((middle[gap] * middle[gap + 1]).sqrt())
        wanted = [int((r <= radius).sum()) for r in ratio]
        for method in methods:
            assert llr_fast.region_density(model, x, radius, p, method=method).tolist() == wanted


def losses_are_right(losses, model, x, penalty, rtol):
    named = [(name, t) for name, t in model.named_parameters() if t.requires_grad]
    other = reference(model)
    wanted = penalty(other, x.double())
    expected = torch.autograd.grad(
        wanted, [other.get_parameter(f"model.{n}") for n, _ in named], allow_unused=True, materialize_grads=True
    )
    for loss in losses:
        model.zero_grad()
        output, found = loss(x)
        close(output, model(x).detach(), max(rtol, torch.finfo(x.dtype).eps * 16))
        close(found.detach(), wanted.detach(), rtol)
        found.backward()
        for (name, parameter), gradient in zip(named, expected):
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert got.isfinite().all(), name
            largest = float(parameter.detach().abs().max()) or 1.0
            change = abs(wanted.item()) / largest  # what moves the penalty as a whole
            atol = rtol * max(float(gradient.abs().max()), 1e-3 * change)
            torch.testing.assert_close(
                got.double(), gradient, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
            )


def margin_loss_is_right(model, x, rtol=1e-7):
    losses_are_right([llr_fast.MarginLoss(model)], model, x, oracle.margin_penalty, rtol)


def roll_is_right(model, x, gammas=(100, 30), rtol=1e-8):
    """By exact norms, and by as many random axes as there are."""
    for gamma in gammas:
        options = {"gamma": gamma, "samples": x[0].numel()}
        losses = [llr_fast.ROLLLoss(model, estimator=estimator, **options) for estimator in ("exact", "axis")]
        losses_are_right(losses, model, x, functools.partial(oracle.roll_penalty, gamma=gamma), rtol)
