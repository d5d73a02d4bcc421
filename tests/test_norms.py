"""Bounds on norms are bounds; abs(d) stays below sigma whatever the weights."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quarflow import QuAR
from quarflow.nn import (
    ACTIVATIONS,
    Branch,
    ConvBranch,
    LipschitzConvNet,
    LipschitzMLP,
    spectral_bound,
)
from registry import shaken

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (40, 3), (3, 40), (16, 16), (1, 500), (500, 1), (64, 64)]
SCALES = [0.0, 1e-30, 1e-19, 1e-6, 1.0, 100.0, 1e4, 1e19, 1e30]


def matrix(shape, scale, rank, seed, dtype):
    """A random matrix of at most this rank; in float64 it may span many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    if rank:
        left = torch.randn(m, rank, generator=generator, dtype=torch.float64)
        made = left @ torch.randn(rank, n, generator=generator, dtype=torch.float64)
    else:
        size = 10 ** (6 * torch.rand(m, n, generator=generator, dtype=torch.float64))
        made = size * torch.randn(m, n, generator=generator, dtype=torch.float64)

    return (scale * made / made.abs().max()).to(dtype)


@given(
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from(SCALES),
    rank=st.sampled_from([0, 1, 2, 5]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=300)
def test_spectral_bound_is_above_and_close(shape, scale, rank, seed, dtype):
    W = matrix(shape, scale, rank, seed, dtype)
    bound = spectral_bound(W)
    norm = torch.linalg.matrix_norm(W.double(), 2)
    r = min(shape)
    inflation = r ** (2**-6 / 4)  # as the docstring says

    assert bound.isfinite()
    assert bound >= norm * (1 - 1e-12)
    rounding = 1 + 4 * (max(shape) + 3) * torch.finfo(torch.float32).eps
    assert bound <= norm * inflation * rounding + 1e-37


@given(
    scale=st.sampled_from(SCALES),
    rank=st.sampled_from([0, 1, 3]),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=80)
def test_spectral_bound_has_finite_gradients(shape, scale, rank, dtype):
    W = matrix(shape, scale, rank, 0, dtype).requires_grad_()
    (grad,) = torch.autograd.grad(spectral_bound(W), W)

    assert grad.isfinite().all()
    assert torch.linalg.matrix_norm(grad.double(), 2) < 1.1  # of a norm, it is at most about 1


def test_spectral_bound_gradcheck_and_batches():
    W = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(spectral_bound, W)
    assert spectral_bound(W).shape == (2, 3)
    torch.testing.assert_close(spectral_bound(W)[1, 2], spectral_bound(W[1, 2]))
    assert torch.equal(spectral_bound(W), spectral_bound(W))  # no hidden state


def test_block_triangular_is_not_its_diagonal():
    W = torch.tensor([[2.0, 3.0], [0.0, 1.0]], dtype=torch.float64)

    assert 3.70 < spectral_bound(W) < 3.72


# abs(d) <= sigma


def scaled(branch, kind, scale, generator):
    """Adversarial weights: scaled, zero, or with single huge entries."""
    for p in branch.parameters():
        if kind == "all":
            p.mul_(scale)
        elif kind == "spikes":
            flat = p.view(-1)
            if len(flat):
                at = torch.randint(len(flat), (max(1, len(flat) // 10),), generator=generator)
                flat[at] = scale * torch.sign(torch.randn(len(at), generator=generator)).to(p)
        elif kind == "noise":
            p.copy_(scale * torch.randn(p.shape, generator=generator))
        elif kind == "ones":
            p.fill_(scale)


@given(
    kind=st.sampled_from(["all", "spikes", "noise", "ones"]),
    scale=st.sampled_from([0.0, 1e-12, 1e-6, 1.0, 100.0, 1e4, 1e8]),
    norm=st.sampled_from(["dimension", "operator"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    trick=st.booleans(),
    sigma=st.sampled_from([0.5, 0.97, 0.9999]),
    features=st.sampled_from([1, 3, 20]),
    hidden=st.sampled_from([(6,), (40, 20), (8, 8, 8)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 50),
)
@example("noise", 1e8, "dimension", "sin", False, 0.9999, 20, (40, 20), torch.float32, 3)
@settings(max_examples=250)
def test_diagonal_never_exceeds_sigma(
    kind, scale, norm, activation, trick, sigma, features, hidden, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    branch = Branch(
        features, hidden, [False, True], activation=activation, norm=norm, sigma=sigma, trick=trick
    ).to(dtype)
    with torch.no_grad():
        scaled(branch, kind, scale, generator)
        if trick and branch.theta_raw is not None:
            branch.theta_raw.clamp_(-50, 50)
        try:
            parts = branch.bind()
        except ValueError as error:
            assert "too large" in str(error)  # noqa: PT017
            assert scale == 1e8
            assert dtype == torch.float32
            return
        for part in parts:
            size = 10 ** (6 * torch.rand(200, 1, generator=generator) - 4)
            x = (size * torch.randn(200, features, generator=generator)).to(dtype)
            F, d = part(x)

            assert F.isfinite().all()
            assert d.abs().max() <= sigma  # NaN would fail too
            assert part.bound.max() <= sigma
            assert (d.abs() <= part.bound * (1 + 1e-6) + 1e-20).all()  # a bound may underflow


# Every finite weight, or a refusal


def weights_of(branch, kind, exponent, generator):
    """Set weights of one magnitude, of magnitudes apart, or single ones."""
    for i, p in enumerate(p for n, p in branch.named_parameters() if "theta" not in n):
        most = torch.finfo(p.dtype).max
        sign = -1 if kind == "alternate" and i % 2 else 1
        size = 10.0 ** max(-320.0, min(300.0, sign * exponent))
        new = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if kind == "single":
            new = torch.where(torch.rand(p.shape, generator=generator) < 0.1, size, new)
        else:
            new = new * size
        p.copy_(new.clamp(-most, most))


@given(
    exponent=st.floats(-46, 39),
    kind=st.sampled_from(["all", "alternate", "single"]),
    norm=st.sampled_from(["dimension", "operator"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    trick=st.booleans(),
    hidden=st.sampled_from([(6,), (40, 20), (8, 8, 8)]),
    wide=st.booleans(),
    native=st.booleans(),
    seed=st.integers(0, 50),
)
@example(19.0, "alternate", "dimension", "elu", False, (6,), False, True, 0)
@example(18.0, "all", "dimension", "lipswish", True, (8, 8, 8), False, True, 0)
@example(38.0, "single", "dimension", "lipswish", True, (40, 20), False, True, 1)
@settings(max_examples=80)
def test_every_finite_weight_keeps_the_promise_or_is_refused(
    exponent, kind, norm, activation, trick, hidden, wide, native, seed
):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if wide else torch.float32
    reverse = [False, True]
    branch = Branch(3, hidden, reverse, 0, activation, norm, 0.95, trick).to(dtype)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        weights_of(branch, kind, exponent * (8 if wide else 1), generator)
        if not native:
            patch.setattr("quarflow.ops.backend.BACKENDS", ())
        try:
            parts = branch.bind()
        except ValueError as error:
            assert "too large" in str(error)  # noqa: PT017
            assert abs(exponent) > 5
            return
        for part in parts:
            size = 10 ** (6 * torch.rand(100, 1, generator=generator) - 4)
            F, d = part((size * torch.randn(100, 3, generator=generator)).to(dtype))
            assert F.isfinite().all()
            assert (d.abs() <= part.bound).all()
            assert (part.bound <= 0.95).all()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_no_slope_is_above_one_however_large_its_argument(
    activation, dtype, native, kernels, monkeypatch
):
    """One unit, F(x) = v phi(w x): of the largest numbers too."""
    if not native:
        monkeypatch.setattr("quarflow.ops.backend.BACKENDS", ())
    x = 10 ** torch.linspace(-44, 38.5 if dtype == torch.float32 else 308, 2000).double()
    x = torch.cat((x, -x, torch.linspace(-800, 800, 4001).double())).to(dtype)[:, None]
    branch = Branch(1, (1,), [False], activation=activation, sigma=0.95, trick=False).to(dtype)
    with torch.no_grad():
        for layer in branch.layers:
            layer.diagonal.fill_(1.0)
            layer.bias.zero_()
        F, d = branch.bind()[0](x)
        exact = ACTIVATIONS[activation](x.double())[1] * 0.95
    assert x.isfinite().all()
    assert F.isfinite().all()
    assert d.abs().max() <= 0.95
    torch.testing.assert_close(d.double(), exact, rtol=1e-4, atol=1e-5)


def test_weights_of_half_precision_are_refused():
    for dtype in (torch.float16, torch.bfloat16):
        for module in (Branch(2, (4,), [False]), LipschitzMLP(2, (4,), 1)):
            with pytest.raises(ValueError, match=r"float16.*autocast"):
                module.to(dtype).bind()


def test_weights_that_are_too_large_are_refused_by_a_flow():
    flow = QuAR(2, transforms=1, hidden_features=(8, 8, 8)).requires_grad_(False)
    for layer in flow.branches.layers:
        layer.diagonal.fill_(1e18)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"float32, up to 1.0e\+18"),
    ):
        flow().log_prob(torch.zeros(1, 2))
    with torch.no_grad():
        assert flow.double()().log_prob(torch.zeros(1, 2).double()).isfinite().all()


# One model, whatever its type

MODULES = {
    "dense": lambda: Branch(5, (20, 30), [False, True]),
    "wide": lambda: Branch(2, (70, 70), [False, True]),  # blocks too large for the kernel
    "operator": lambda: Branch(5, (20, 30), [False, True], norm="operator", trick=False),
    **{
        f"images, {norm}": lambda norm=norm: ConvBranch(
            (3, 4, 5), 12, [False, True], [True, False], norm=norm
        )
        for norm in ConvBranch.norms
    },
    "residual": lambda: LipschitzMLP(4, (16, 16), 2),
    "residual images": lambda: LipschitzConvNet((3, 4, 5), 8, [True, False]),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_scale_does_not_depend_on_the_type(kind, scale, native, kernels, monkeypatch):
    if not native:
        monkeypatch.setattr("quarflow.ops.backend.BACKENDS", ())
    module = MODULES[kind]().requires_grad_(False)
    for p in module.parameters():
        p.mul_(scale)

    def found(module):
        if "residual" in kind:
            pairs = [
                layer.effective() for layer in module.modules() if hasattr(layer, "effective")
            ]
            return [t for pair in pairs for t in pair]
        return [t for b in module.bind() for t in (b.bound, b.weights[-1], b.blocks[-1])]

    with torch.no_grad():
        single = found(module)
        double = found(module.double())
    assert single
    for one, other in zip(single, double, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other.float())


@pytest.mark.parametrize(("features", "hidden"), [(3, 64), (8, 64), (43, 128)])
@pytest.mark.parametrize("grow", [1.0, 4.0])
def test_float32_and_float64_are_the_same_model(features, hidden, grow):
    flow = QuAR(features, transforms=4, hidden_features=(hidden, hidden)).requires_grad_(False)
    x = torch.randn(500, features)
    flow.initialize(x)
    for p in flow.branches.parameters():
        p += 0.03 * torch.randn_like(p)
    for layer in flow.branches.layers:
        layer.diagonal *= grow
    single = flow().log_prob(x).double()
    double = flow.double()().log_prob(x.double())
    assert (single - double).abs().max() < 1e-4
    assert (single - double).abs().mean() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["dimension", "operator"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradient_ascent_finds_no_point_above_sigma(norm, scale, dtype):
    # One hidden unit chain per dimension and theta -> 0 come closest to the bound.
    torch.manual_seed(3)
    flow = shaken(QuAR(2, transforms=2, hidden_features=(8, 8), norm=norm)).to(dtype)
    with torch.no_grad():
        for p in flow.branches.parameters():
            p.mul_(scale)
        flow.branches.theta_raw.fill_(-30.0)  # theta = 0: all of the budget
        steps = flow.branches.bind()
    worst = 0.0
    for step in steps:
        x = (3 * torch.randn(1000, 2, dtype=dtype) / scale).requires_grad_()
        ascent = torch.optim.Adam([x], lr=0.05 / scale)
        for _ in range(200):
            d = step(x)[1]
            worst = max(worst, float(d.detach().abs().max()))
            ascent.zero_grad()
            (-d.abs().sum()).backward()
            ascent.step()

    assert worst <= 0.97
    assert worst > 0.1  # the ascent did look for it


def test_ascent_on_a_trained_flow():
    torch.manual_seed(0)
    flow = QuAR(2, transforms=2, hidden_features=(16, 16))
    angle = 6 * torch.rand(1000)
    data = torch.stack((angle.cos(), angle.sin()), 1) + 0.05 * torch.randn(1000, 2)
    flow.initialize(data)
    adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        adam.zero_grad()
        (-flow().log_prob(data).mean()).backward()
        adam.step()
    with torch.no_grad():
        steps = flow.branches.bind()
    for step, certified in zip(steps, flow.certificate(data), strict=True):
        x = (2 * torch.randn(1000, 2)).requires_grad_()
        ascent = torch.optim.Adam([x], lr=0.05)
        for _ in range(200):
            d = step(x)[1]
            assert d.abs().max() <= certified.bound <= certified.sigma
            ascent.zero_grad()
            (-d.abs().sum()).backward()
            ascent.step()
        assert certified.measured <= certified.bound


def test_operator_norm_is_a_contraction_and_dimension_need_not_be():
    def lipschitz(norm):
        torch.manual_seed(0)
        branch = shaken(Branch(4, (16, 16), [False], norm=norm), 3.0)
        step = branch.bind()[0]
        x = torch.randn(50, 4, dtype=torch.float64)
        J = torch.func.vmap(torch.func.jacrev(lambda x: step(x)[0]))(x)
        return torch.linalg.matrix_norm(J, 2).max()

    assert lipschitz("operator") <= 0.97
    assert lipschitz("dimension") > 1


@pytest.mark.parametrize("sigma", [0.0, 1.0, -0.5, 0.99999, float("nan"), float("inf")])
def test_sigma_outside_its_range_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        Branch(2, (4,), [False], sigma=sigma)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": 0}, "features"),
        ({"context": -1}, "context"),
        ({"hidden_features": ()}, "hidden_features"),
        ({"hidden_features": (0,)}, "hidden_features"),
        ({"norm": "frobenius"}, "norm"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_branch_refuses(options, word):
    with pytest.raises(ValueError, match=word):
        Branch(**{"features": 2, "hidden_features": (4,), "reverse": [False]} | options)
