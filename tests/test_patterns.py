"""A flow bound to some columns of each row: a normalised density of these, whatever the others."""

import copy

import pytest
import torch

from quarflow import QuAR
from quarflow.flows.flow import FlowDistribution
from quarflow.transforms import QuARStep
from registry import FLOWS, shaken

QUAR = {name: case for name, case in FLOWS.items() if name.startswith("quar")}
every = pytest.mark.parametrize("case", QUAR.values(), ids=QUAR)
NAN = float("nan")


def bound(case, rows, share=0.6):
    """The flow, its context, rows with NaN where they are not modelled, and the mask."""
    flow = case.build()
    x, c = case.points(flow, rows)
    modelled = torch.rand(rows, case.features) < share
    modelled[0], modelled[-1] = True, False

    return flow, c, torch.where(modelled, x, NAN), modelled


def one(c, i):
    return None if c is None else c[i]


@every
def test_diagonal_ladj_and_what_is_not_looked_at(case):
    flow, c, x, modelled = bound(case, 7)
    p = flow(c, modelled)
    assert isinstance(p, FlowDistribution)
    z, ladj = p.transform.call_and_ladj(x)
    assert (z[~modelled] == 0).all()
    assert ladj[-1] == 0
    assert p.log_prob(x)[-1] == 0
    for i, own in enumerate(modelled):
        f = flow(one(c, i), own).transform
        J = torch.autograd.functional.jacobian(f, x[i].nan_to_num(nan=9.0))
        torch.testing.assert_close(torch.linalg.slogdet(J[own][:, own])[1], ladj[i])
        assert (J[~own] == 0).all()
        assert (J[:, ~own] == 0).all()
    for other in (x.nan_to_num(nan=1e30), x.nan_to_num(nan=0.0)):
        assert torch.equal(p.log_prob(other), p.log_prob(x))
    torch.testing.assert_close(flow(c, modelled | True).log_prob(z), flow(c).log_prob(z))


@every
def test_diagonal_of_each_step_is_autograds(case):
    flow, c, x, modelled = bound(case, 5)
    z = torch.where(modelled, x, 0)
    steps = [s for s in flow(c, modelled).transform.parts if isinstance(s, QuARStep)]
    assert len(steps) == 3
    for branch in [s.branch for s in steps]:
        d = branch(z)[1]
        for i in range(len(x)):
            own = branch.flat(x.shape[:1]).rows(torch.tensor([i]))
            J = torch.autograd.functional.jacobian(lambda r, b=own: b(r[None])[0][0], z[i])
            torch.testing.assert_close(d[i], J.diagonal(), rtol=0, atol=1e-10)


@every
def test_round_trip_samples_and_second_derivatives(case):
    flow, c, x, modelled = bound(case, 5)
    p = flow(c, modelled)
    z = p.transform(x)
    torch.testing.assert_close(
        p.transform.inv(z), torch.where(modelled, x, 0), rtol=1e-8, atol=1e-8
    )
    drawn = p.sample((3,))
    assert drawn.shape == (3, *x.shape)
    assert (drawn[:, ~modelled] == 0).all()
    with torch.no_grad():
        again, log_prob = p.rsample_and_log_prob(generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(log_prob, p.log_prob(again), rtol=1e-6, atol=1e-6)
    full = torch.where(modelled, x, 0).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: p.log_prob(x), full, fast_mode=True, atol=1e-4)
    z = z.detach().requires_grad_()
    assert torch.autograd.gradcheck(p.transform.inv, z, fast_mode=True, atol=1e-5, rtol=1e-3)


@every
def test_vmap_and_kernels_give_the_same(case, monkeypatch):
    flow, c, x, modelled = bound(case, 6)
    flow.requires_grad_(False)
    p = flow(c, modelled)
    expected = p.log_prob(x)
    if c is None:
        found = torch.func.vmap(lambda x, m: flow(None, m).log_prob(x))(x, modelled)
    else:
        found = torch.func.vmap(lambda x, c, m: flow(c, m).log_prob(x))(x, c, modelled)
    torch.testing.assert_close(found, expected)
    lower = copy.deepcopy(flow).float()
    single = lower(None if c is None else c.float(), modelled)
    torch.testing.assert_close(single.log_prob(x.float()).double(), expected, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr("quarflow.ops.backend.BACKENDS", ())
    torch.testing.assert_close(flow(c, modelled).log_prob(x), expected)


@pytest.mark.parametrize("case", [c for c in QUAR.values() if c.features in (2, 5)])
def test_one_and_two_modelled_columns_integrate_to_one(case):
    flow = case.build().requires_grad_(False)
    c = None if not case.context else case.contexts(1)[0]
    grid = torch.linspace(-30, 30, 12001, dtype=torch.float64)
    width = grid[1] - grid[0]
    for i in range(case.features):
        modelled = torch.zeros(case.features, dtype=torch.bool)
        modelled[i] = True
        x = torch.full((len(grid), case.features), NAN, dtype=torch.float64)
        x[:, i] = grid
        total = flow(c, modelled).log_prob(x).exp().sum() * width
        assert abs(total - 1) < 3e-3
    if case.features == 5:
        grid = torch.linspace(-12, 12, 301, dtype=torch.float64)
        modelled = torch.tensor([False, True, False, True, False])
        x = torch.full((len(grid) ** 2, 5), NAN, dtype=torch.float64)
        x[:, [1, 3]] = torch.cartesian_prod(grid, grid)
        total = flow(c, modelled).log_prob(x).exp().sum() * (grid[1] - grid[0]) ** 2
        assert abs(total - 1) < 3e-2


def test_masks_and_contexts_broadcast():
    flow = shaken(QuAR(3, 2, transforms=2, hidden_features=(6,)), 0.15)
    c, x = torch.randn(4, 2).double(), torch.randn(3).double()
    modelled = torch.tensor([True, False, True])
    many = flow(c, modelled)
    assert many.log_prob(x).shape == many.sample().shape[:-1] == (4,)
    rows = modelled.expand(5, 4, 3)
    p = flow(c, rows)
    assert p.sample((2,)).shape == (2, 5, 4, 3)
    torch.testing.assert_close(p.log_prob(x), many.log_prob(x).expand(5, 4))
    alone = flow(c[0], modelled)
    torch.testing.assert_close(alone.log_prob(x), many.log_prob(x)[0])
    torch.testing.assert_close(alone.transform.inv(alone.transform(x)), x * modelled)


def test_a_mask_that_is_none_is_refused():
    flow = QuAR(3)
    for wrong in (torch.ones(4, 3), torch.ones(4, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"bool tensor of shape \(\*, 3\)"):
            flow(modelled=wrong)


def test_initialised_on_what_is_there():
    """As on whole rows, where each column has the same values, only on other rows."""
    x = 3 * torch.randn(400, 2) + 7
    holes = torch.rand(400, 2) < 0.5
    flow = QuAR(2)
    assert flow.initialize(torch.where(holes, NAN, x), modelled=~holes)
    z = flow.actnorms()[0](x)
    for i in range(2):
        there = z[~holes[:, i], i]
        assert abs(there.mean()) < 1e-4
        assert abs(there.std() - 1) < 1e-2
    with pytest.raises(ValueError, match="NaN"):
        QuAR(2).initialize(torch.where(holes, NAN, x))
    nothing = torch.zeros(400, 2, dtype=torch.bool)
    assert QuAR(2).initialize(torch.full((400, 2), NAN), modelled=nothing)
