"""Autoregressive, planar, radial and Sylvester: strict masks, few sweeps, constraints."""

import pytest
import torch

from quarflow import Autoregressive, PlanarFlow, QuAR, RadialFlow, ResidualFlow, SylvesterFlow
from quarflow.nn import MADE
from quarflow.transforms import (
    AutoregressiveStep,
    LogDet,
    PlanarStep,
    RadialStep,
    ResidualStep,
    SylvesterStep,
)
from quarflow.transforms.slopes import LEAST_SLOPE, above_minus_one
from registry import shaken

FLOWS = (Autoregressive, PlanarFlow, RadialFlow, SylvesterFlow)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def made(features=4, hidden=(12, 12), reverse=False, context=0, size=1.0, c=None, **options):
    network = shaken(MADE(features, hidden, [reverse], context=context, **options), size)

    return network.bind(c)[0]


# Masks


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", [(3,), (16,), (9, 7, 12)])
@pytest.mark.parametrize("D", [1, 2, 5])
def test_outputs_depend_on_earlier_variables_only(D, hidden, context, reverse):
    network = made(D, hidden, reverse, context, outputs=3, c=double(context) if context else None)
    J = torch.func.jacrev(network)(double(D)).reshape(3, D, D)
    forbidden = J.tril() if reverse else J.triu()

    assert (forbidden == 0).all()
    if min(hidden) >= D:
        allowed = J.triu(1) if reverse else J.tril(-1)
        assert (allowed != 0).sum() == 3 * D * (D - 1) // 2  # nothing is lost


def test_first_variable_depends_on_the_context_beyond_linearly():
    network = shaken(MADE(3, (16,), [False], context=1))
    c = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    out = network.bind(c)[0](torch.zeros(50, 3, dtype=torch.float64))[:, 0]
    line = torch.cat((c, torch.ones_like(c)), -1)

    assert (out - line @ torch.linalg.lstsq(line, out[:, None]).solution[:, 0]).abs().max() > 0.01


# Autoregressive steps


@pytest.mark.parametrize("reverse", [False, True])
def test_log_scale_is_clamped_softly(reverse):
    step = AutoregressiveStep(made(3, reverse=reverse, size=30.0), reverse, limit=2.0)
    x = 100 * double(500, 3)
    x.requires_grad_()
    slopes = step._call_and_slope(x)[1]

    assert slopes.log().abs().max() < 2
    assert slopes.log().abs().max() > 1.9
    assert step.inv(step(x)).isfinite().all()
    (gradient,) = torch.autograd.grad(slopes.log().sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()  # no saturation, even here


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("D", [1, 2, 8, 30])
def test_newton_needs_at_most_as_many_sweeps_as_there_are_variables(D, reverse):
    step = AutoregressiveStep(made(D, (40,), reverse, size=0.1), reverse)
    newton = AutoregressiveStep(step.network, reverse, method="newton")
    x = double(50, D)
    z = step(x)
    solution = newton.solve(z)

    assert solution.iterations.max() <= D + 1  # and one to see that it has converged
    torch.testing.assert_close(solution.x, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(step.inv(z), x, rtol=1e-8, atol=1e-8)


def test_newton_needs_few_sweeps_for_weak_couplings():
    network = made(64, (64,), size=0.0)
    step = AutoregressiveStep(network, method="newton")
    solution = step.solve(double(100, 64))

    assert solution.iterations.max() < 20


@pytest.mark.parametrize("method", ["sequential", "newton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_inverses_agree_and_keep_the_type(method, dtype):
    flow = shaken(Autoregressive(5, transforms=4, hidden_features=(20,), method=method), 0.05)
    flow = flow.to(dtype)
    z = torch.randn(200, 5, dtype=dtype)
    x, ladj = flow().transform.inv.call_and_ladj(z)

    assert x.dtype == ladj.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    back, forward = flow().transform.call_and_ladj(x)
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(forward, -ladj, rtol=tolerance, atol=tolerance)


def test_inverse_flag_swaps_directions():
    maf = shaken(Autoregressive(3, 2, transforms=2, hidden_features=(8,)))
    iaf = Autoregressive(**maf.arguments | {"inverse": True}).double()
    iaf.load_state_dict(maf.state_dict())
    c = double(2)
    forward, backward = (f(c).transform.transforms[1] for f in (maf, iaf))
    x = double(5, 3)

    torch.testing.assert_close(forward(x), backward.inv(x))
    torch.testing.assert_close(iaf(c).transform.inv(iaf(c).transform(x)), x)


def test_alternate_order_makes_the_jacobian_dense():
    x = double(3)
    for order, dense in (("alternate", True), ("fixed", False)):
        flow = shaken(Autoregressive(3, transforms=2, hidden_features=(9,), order=order))
        J = torch.func.jacrev(flow().transform)(x)
        assert bool((J.triu(1) != 0).any()) is dense


def test_sequential_inverse_survives_what_the_other_variables_would_be():
    # Values that are not known yet must not overflow into those that are.
    step = AutoregressiveStep(made(6, size=3.0), limit=50.0)
    x, ladj = step.inv.call_and_ladj(1e3 * double(100, 6))

    assert x[:, 0].isfinite().all()
    assert not ladj.isnan().any()


# Planar, radial, Sylvester


def test_above_minus_one():
    a = torch.linspace(-1e4, 1e4, 100_001, dtype=torch.float64)
    found = above_minus_one(a)

    assert found.min() >= -1 + LEAST_SLOPE
    assert (found.diff() >= 0).all()
    assert above_minus_one(torch.zeros(1, dtype=torch.float64)).abs() < 1e-12


def planar(batch, D, size):
    return PlanarStep(size * double(*batch, D), double(*batch, D), double(*batch, 1))


def radial(batch, D, size):
    return RadialStep(double(*batch, D), size * double(*batch, 1), size * double(*batch, 1))


def sylvester(batch, D, size):
    M = max(1, D - 1)
    q = torch.linalg.qr(double(D, M))[0]

    return SylvesterStep(q, size * double(*batch, M, M), double(*batch, M, M), double(*batch, M))


@pytest.mark.parametrize("make", [planar, radial, sylvester])
@pytest.mark.parametrize("size", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("D", [1, 2, 6])
def test_invertible_whatever_the_parameters(make, size, D):
    for seed in range(5):
        torch.manual_seed(seed)
        step = make((), D, size)
        x = 3 * double(100, D)
        z, ladj = step.call_and_ladj(x)
        J = torch.func.vmap(torch.func.jacrev(step))(x)
        sign, logdet = torch.linalg.slogdet(J)

        assert (sign > 0).all()
        torch.testing.assert_close(ladj, logdet, rtol=1e-7, atol=1e-7)
        # where the map is nearly flat, the inverse is as bad as the slope is small
        torch.testing.assert_close(step(step.inv(z)), z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.inv(z), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [planar, radial, sylvester])
@pytest.mark.parametrize(
    ("x_shape", "c_shape"),
    [((4,), ()), ((), (4,)), ((4,), (4,)), ((5, 1), (4,)), ((1,), (5, 4)), ((0,), ())],
)
def test_parameters_broadcast(make, x_shape, c_shape):
    step = make(c_shape, 3, 1.0)
    x = double(*x_shape, 3)
    z, ladj = step.call_and_ladj(x)
    back, inverse_ladj = step.inv.call_and_ladj(z)
    shape = torch.broadcast_shapes(x_shape, c_shape)

    assert z.shape == back.shape == (*shape, 3)
    assert ladj.shape == inverse_ladj.shape == shape
    torch.testing.assert_close(back, x.expand(*shape, 3))
    torch.testing.assert_close(ladj, -inverse_ladj)
    assert step.inv(torch.zeros(3).double()).shape == (*c_shape, 3)


@pytest.mark.parametrize("make", [planar, radial, sylvester])
def test_far_out_and_at_the_centre(make):
    step = make((), 3, 1.0)
    for x in (1e6 * double(10, 3), torch.zeros(10, 3, dtype=torch.float64)):
        x.requires_grad_()
        z, ladj = step.call_and_ladj(x)
        assert torch.autograd.grad((z.sum() + ladj.sum()), x)[0].isfinite().all()
        torch.testing.assert_close(step.inv(z), x, rtol=1e-7, atol=1e-7)
    if make is radial:
        at = step.center.clone().requires_grad_()
        z, ladj = step.call_and_ladj(at)
        assert torch.autograd.grad(z.sum() + ladj, at)[0].isfinite().all()


@pytest.mark.parametrize("flow", [PlanarFlow, RadialFlow, SylvesterFlow])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_closed_form_flows_in_both_directions(flow, inverse, context):
    built = shaken(flow(3, context, transforms=4, inverse=inverse), 0.2)
    given = (double(7, context),) if context else ()
    x = double(7, 3)
    built.initialize(x, *given)
    z, ladj = built(*given).transform.call_and_ladj(x)
    back, inverse_ladj = built(*given).transform.inv.call_and_ladj(z)

    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ladj, -inverse_ladj, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    if context:
        assert not torch.allclose(built(-given[0]).transform(x), z)


# What all flows share


@pytest.mark.parametrize("flow", [*FLOWS, ResidualFlow])
@pytest.mark.parametrize("context", [0, 2])
def test_arguments_rebuild_the_flow(flow, context):
    options = {"logdet": "exact"} if flow is ResidualFlow else {}
    one = shaken(flow(3, context, transforms=2, hidden_features=(6,), **options), 0.2)
    other = flow(**one.arguments).double()
    other.load_state_dict(one.state_dict())
    given = (double(4, context),) if context else ()
    x = double(4, 3)

    assert torch.equal(one(*given).log_prob(x), other(*given).log_prob(x))


@pytest.mark.parametrize("flow", [*FLOWS, ResidualFlow, QuAR])
def test_initialisation_standardises_once(flow):
    built = flow(2, 1, transforms=3)
    x, c = 5 + 3 * torch.randn(500, 2), torch.randn(500, 1)

    assert built.initialize(x, c)
    z = built(c).transform(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0), torch.ones(2), rtol=1e-2, atol=0)
    assert not built.initialize(x + 1, c)


@pytest.mark.parametrize("flow", FLOWS)
def test_trains(flow):
    torch.manual_seed(0)
    x = torch.randn(512, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]])
    built = flow(2, transforms=4, hidden_features=(16,))
    built.initialize(x)
    adam = torch.optim.Adam(built.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        adam.zero_grad()
        loss = -built().log_prob(x).mean()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("flow", "options", "word"),
    [
        *((f, {"features": 0}, "features") for f in FLOWS),
        *((f, {"context": -1}, "context") for f in FLOWS),
        *((f, {"transforms": 0}, "transforms") for f in FLOWS),
        *((f, {"hidden_features": (0,)}, "hidden_features") for f in FLOWS),
        *((f, {"base": "cauchy"}, "base") for f in FLOWS),
        (Autoregressive, {"order": "random"}, "order"),
        (Autoregressive, {"activation": "relu"}, "activation"),
        (Autoregressive, {"limit": 0.0}, "limit"),
        (Autoregressive, {"method": "fixed_point"}, "method"),
        (SylvesterFlow, {"ridges": 3}, "ridges"),
        (SylvesterFlow, {"ridges": 0}, "ridges"),
    ],
)
def test_bad_arguments(flow, options, word):
    with pytest.raises(ValueError, match=word):
        flow(**{"features": 2} | options)


def test_reprs_are_short():
    flows = [flow(3, 2, transforms=2) for flow in (*FLOWS, ResidualFlow)]
    for flow in flows:
        for transform in flow(torch.zeros(2)).transform.transforms:
            assert len(repr(transform)) < 80
    assert "exact" in repr(ResidualStep(ResidualFlow(2).branches.bind()[0], LogDet("exact")))
