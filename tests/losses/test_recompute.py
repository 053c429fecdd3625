"""Sums whose parts are computed again in the backward pass."""

import weakref

import pytest
import torch

from llr_fast.losses.recompute import leaves_of, recomputed_sum


@pytest.fixture
def weight():
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


def test_sum_and_gradients_are_those_of_the_parts(weight):
    other = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def part(start):
        return [(weight * start).square().sum(1), (weight @ other) * start]

    found = recomputed_sum(part, range(4), [weight, other])
    expected = [sum(tensors) for tensors in zip(*map(part, range(4)))]
    torch.testing.assert_close(found, expected)
    loss = [(tensor * torch.arange(3)).sum() for tensor in (found[0] + found[1], expected[0] + expected[1])]
    gradients = [torch.autograd.grad(each, [weight, other]) for each in loss]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_no_part_outlives_its_turn(weight):
    alive = weakref.WeakSet()

    def part(start):
        assert not alive
        found = weight * start
        alive.add(found)
        return [found.square()]

    (found,) = recomputed_sum(part, range(3), [weight])
    found.sum().backward()


def test_what_a_part_does_not_depend_on_has_gradient_zero(weight):
    unused = torch.ones(2, requires_grad=True)
    (found,) = recomputed_sum(lambda start: [weight * start], range(3), [weight, unused])
    found.sum().backward()
    assert torch.equal(unused.grad, torch.zeros(2))
    assert torch.equal(weight.grad, torch.full_like(weight, 3))


def test_parts_run_again_under_the_autocast_of_the_first_time(weight):
    seen = []

    def part(start):
        seen.append(torch.is_autocast_enabled("cpu"))
        return [weight.square()]

    with torch.autocast("cpu"):
        (found,) = recomputed_sum(part, [0], [weight])
    found.sum().backward()
    assert seen == [True, True]


def test_second_derivatives(weight):
    (found,) = recomputed_sum(lambda start: [weight.pow(3)], range(2), [weight])
    (gradient,) = torch.autograd.grad(found.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    torch.testing.assert_close(second, 12 * weight)


def test_leaves_are_found_through_what_is_computed_from_them(weight):
    scale = torch.ones(4, requires_grad=True)
    tensors = [(weight * scale).sum(), weight.detach().sum(), (2 * scale).exp()]
    assert {id(leaf) for leaf in leaves_of(tensors)} == {id(weight), id(scale)}
