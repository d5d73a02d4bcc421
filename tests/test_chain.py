"""The fused chain of steps, as torch computes it, against the same steps one after the other."""

import pytest
import torch
from torch.autograd import grad, gradgradcheck

from quarflow import QuAR
from quarflow.ops import chain as fused_chain
from quarflow.transforms import Composed, QuARChain

pytestmark = pytest.mark.usefixtures("without_kernels")

SHAPES = [  # features, context, hidden
    (1, 1, (8, 8, 8)),
    (3, 0, (8, 8)),
    (5, 2, (16,)),
    (40, 0, (32, 48)),
]


def case(features, context, hidden, activation, rows):
    flow = QuAR(
        features, context, transforms=3, hidden_features=hidden, activation=activation
    ).double()
    x = torch.randn(rows, features, dtype=torch.float64, requires_grad=True)
    c = torch.randn(rows, context, dtype=torch.float64) if context else None
    flow.initialize(2 * x.detach() + 1, c)

    return flow, x, c


def value(transform, x):
    z, ladj = transform.call_and_ladj(x)

    return z, ladj, z.square().sum() + ladj.exp().sum()


def same(a, b):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ["sin", "elu", "lipswish", "tanh"])
@pytest.mark.parametrize(("features", "context", "hidden"), SHAPES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed anew"])
def test_chain_equals_its_steps(features, context, hidden, activation, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(fused_chain, "KEEP_BYTES", 0)
        monkeypatch.setattr(fused_chain, "ROWS_BYTES", 1)  # pieces of 64 rows
    flow, x, c = case(features, context, hidden, activation, 200)
    transform = flow(c).transform
    assert isinstance(transform, QuARChain)
    fused, steps = value(transform, x), value(Composed(transform.transforms), x)
    same(fused, steps)
    inputs = [x, *flow.parameters()]
    same(grad(fused[2], inputs, retain_graph=True), grad(steps[2], inputs))
    with torch.no_grad():
        same(value(transform, x), steps)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed anew"])
def test_second_derivatives(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(fused_chain, "KEEP_BYTES", 0)
    flow, x, c = case(2, 1, (6, 6), "sin", 3)
    assert gradgradcheck(lambda x: flow(c).log_prob(x), (x,))


def test_one_context_for_many_rows_and_many_for_one():
    flow, x, c = case(3, 2, (9, 9), "sin", 6)
    many = flow(c[:2]).log_prob(x.detach().reshape(3, 2, 3))
    one = flow(c[0]).log_prob(x.detach().reshape(3, 2, 3)[:, 0])
    torch.testing.assert_close(many[:, 0], one)
    assert flow(c).log_prob(x[0]).shape == (6,)


def test_memory_does_not_hold_what_is_computed_anew(monkeypatch):
    """What autograd keeps for a batch that is too large is the batch."""
    held = {}
    for kept in (True, False):
        monkeypatch.setattr(fused_chain, "KEEP_BYTES", 2**40 if kept else 0)
        flow, x, _ = case(8, 0, (64, 64), "sin", 500)
        numbers = 0

        def pack(tensor):
            nonlocal numbers
            numbers += tensor.numel() if tensor.shape[-1:] == (500,) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            flow().log_prob(x)
        held[kept] = numbers
    assert held[True] > 3 * 2 * 3 * 64 * 500 * 0.8
    assert held[False] < 0.05 * held[True]
