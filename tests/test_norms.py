"""Bounds on norms are bounds; abs(d) stays below sigma whatever the weights."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quarflow import QuAR
from quarflow.nn import ACTIVATIONS, Branch, spectral_bound
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
        for part in branch.bind():
            size = 10 ** (6 * torch.rand(200, 1, generator=generator) - 4)
            x = (size * torch.randn(200, features, generator=generator)).to(dtype)
            F, d = part(x)

            assert F.isfinite().all()
            assert d.abs().max() <= sigma  # NaN would fail too
            assert part.bound.max() <= sigma
            assert (d.abs() <= part.bound * (1 + 1e-6) + 1e-20).all()  # a bound may underflow


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
