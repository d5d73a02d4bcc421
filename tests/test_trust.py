"""Inverses converge to what their dtype can resolve; how far they amplify rounding is told."""

import warnings

import numpy as np
import pytest
import torch

from quarflow import Autoregressive, InversionError, QuAR, QuARDensity
from quarflow.flows import ResidualFlow
from registry import TRANSFORMS

PROMISED = {torch.float32: 1e-5, torch.float64: 1e-10}


def steep(gain: float, dtype: torch.dtype, seed: int = 0) -> QuAR:
    """A flow whose inverse amplifies the more, the larger the off-diagonal weights."""
    torch.manual_seed(seed)
    flow = QuAR(8, transforms=3, hidden_features=(24,)).to(dtype)
    with torch.no_grad():
        for layer in flow.branches.layers:
            layer.off_diagonal.mul_(gain)

    return flow


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("gain", [1.0, 5.0, 12.0, 25.0])
def test_what_a_checked_inverse_returns_is_right(dtype, gain):
    p = steep(gain, dtype)()
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    wrong = 0
    with torch.no_grad():
        z = p.transform(x)
        for row, image in zip(x, z, strict=True):
            try:
                back = p.transform.checked.inv(image)
            except InversionError:
                continue
            error = ((back - row).abs() / (1 + row.abs())).max()
            wrong += bool(error > PROMISED[dtype])
            assert error <= 10 * PROMISED[dtype]

    assert wrong <= 1  # the check is a probe in two directions


@pytest.mark.parametrize("dtype", PROMISED)
def test_gentle_inverses_never_raise(dtype):
    p = steep(0.3, dtype)()
    x = torch.randn(2000, 8, dtype=dtype)
    with torch.no_grad():
        p.transform.checked.inv(p.transform(x))
        p.transform.checked.inv.call_and_ladj(p.transform(x))


def test_what_a_steep_inverse_says_only_when_asked():
    p = steep(25.0, torch.float32)()
    with torch.no_grad():
        z = p.transform(torch.randn(200, 8))
        with pytest.raises(InversionError, match=r"of 200 samples .*\(row") as caught:
            p.transform.checked.inv(z)
        assert 0 < caught.value.failed <= 200
        assert caught.value.residual > 1e-5
        assert p.transform.inv(z).isfinite().all()
        condition = p.transform.inv.condition(z)
        assert condition.shape == (200,)
        assert ((condition * 6e-8 > 1e-5).sum() - caught.value.failed).abs() <= 3
        assert p.sample((200,)).isfinite().all()


@pytest.mark.parametrize("dtype", PROMISED)
def test_condition_is_that_of_an_affine_map(dtype):
    from quarflow.transforms import Affine, Composed

    log_scale = torch.tensor([-8.0, 0.0], dtype=dtype)  # x = exp(8) z
    map_ = Composed([Affine(torch.zeros(2, dtype=dtype), log_scale)], exact=True)
    z = torch.tensor([1e-6, 0.0], dtype=dtype)
    # float32 rounds relative to abs(z), float64 is nudged relative to 1 + abs(z)
    x, rounded = np.exp(8) * 1e-6, (1e-6 if dtype == torch.float32 else 1.0)

    assert float(map_.inv.condition(z)) == pytest.approx(np.exp(8) * rounded / (1 + x), rel=1e-2)


@pytest.mark.parametrize(
    "name", ["conv step", "columns", "composed nothing", "multiscale", "radial"]
)
def test_condition_is_known_for_every_kind_of_map(name):
    case = TRANSFORMS[name]
    map_ = case.build()
    z = map_(case.points(map_, 3))

    assert (map_.inv.condition(z) > 0).all()
    assert map_.inv.condition(z).shape == (3,)


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Autoregressive(6),
        lambda: Autoregressive(6, method="newton"),
        lambda: QuAR(6, mix="lu"),
        lambda: QuAR(6),
    ],
)
def test_untrained_flows_come_back_without_a_word(make, dtype):
    torch.manual_seed(0)
    p = make().to(dtype)()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        z = p.transform(torch.randn(256, 6, dtype=dtype))
        assert p.transform.inv(z).isfinite().all()


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("flow", [QuAR, ResidualFlow, Autoregressive])
def test_samples_at_a_far_context_are_what_the_dtype_can_resolve(flow, far, dtype):
    torch.manual_seed(3)
    options = {"method": "newton"} if flow is Autoregressive else {}
    p = flow(4, 2, transforms=3, hidden_features=(24,), **options).to(dtype)(
        far * torch.ones(2, dtype=dtype)
    )
    with torch.no_grad():
        z = torch.randn(400, 4, dtype=dtype)
        x = p.transform.inv(z)
        assert p.sample((400,)).isfinite().all()
        if flow is Autoregressive:  # scales of exp(5) and rounding of x: it need not come back
            return
        unit = torch.finfo(dtype).eps * far
        assert (p.transform(x) - z).abs().max() <= 1e4 * unit


def fitted(**options):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    X[:, 1] = X[:, 1] ** 5  # tails are tamed by an asinh, whose inverse overflows

    return QuARDensity(
        max_epochs=1, transforms=2, hidden_features=(8,), start="none", random_state=0, **options
    ).fit(X, context=X[:, :1])


def test_the_estimator_names_rows_that_overflow_and_warns_of_steep_ones():
    density = fitted()
    Z = np.zeros((6, 2))
    Z[4] = 1e4
    with pytest.raises(InversionError, match=r"1 of 6 samples have no finite inverse \(row 4\)"):
        density.inverse_transform(Z, context=[[0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is there one about read-only memory
        for context in ([0.0], np.zeros((1, 1)), np.broadcast_to(np.zeros((1, 1)), (4, 1))):
            assert np.isfinite(density.inverse_transform(Z[:4], context)).all()
            assert np.isfinite(density.sample(4, context=context, random_state=0)).all()
            density.score_samples(np.zeros((1, 2)), context=np.zeros((1, 1)))
    with torch.no_grad():
        for layer in density.flow_.branches.layers:
            layer.off_diagonal.mul_(100)
    Z = np.random.default_rng(1).normal(size=(50, 2))
    with pytest.warns(UserWarning, match=r"of 50 rows of Z .*: row"):
        density.inverse_transform(Z, context=[0.0])
    with pytest.raises(InversionError, match=r"of 50 rows of Z .*: row"):
        density.inverse_transform(Z, context=[0.0], checked=True)


def test_spiky_columns_are_told_from_smooth_ones():
    torch.manual_seed(0)
    spiky = torch.randint(3, (2000, 1)) + 0.01 * torch.randn(2000, 1)
    x = torch.cat((spiky, torch.randn(2000, 1)), dim=1)
    flow = QuAR(2, hidden_features=(16,), transforms=2)
    before = flow.branches.layers[0].diagonal.clone()
    flow.initialize(x)
    ratio = (flow.branches.layers[0].diagonal / before).squeeze(-1)

    assert ratio[:, 0].amax() > 10
    torch.testing.assert_close(ratio[:, 1], torch.ones_like(ratio[:, 1]))
    assert max(step.bound for step in flow.certificate()) <= 0.97
