"""What must hold for every transform: exact diagonals and log-dets, true inverses, any shape."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TransformedDistribution

from quarflow.nn import ACTIVATIONS, Branch
from quarflow.transforms import Composed, Inverse, Permutation, QuARStep
from registry import TRANSFORMS, branch

every = pytest.mark.parametrize("case", TRANSFORMS.values(), ids=TRANSFORMS)
STEPS = {name: case for name, case in TRANSFORMS.items() if name.startswith("step")}
every_step = pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def jacobian(f, x):
    """Of each row: (N, D) to (N, D, D)."""
    return torch.stack([torch.autograd.functional.jacobian(f, row) for row in x])


@every
def test_ladj_is_slogdet_and_forbidden_side_is_zero(case):
    transform = case.build()
    x = case.points(transform, 7)
    z, ladj = transform.call_and_ladj(x)
    J = jacobian(transform, x)
    sign, logdet = torch.linalg.slogdet(J)

    assert z.shape == x.shape
    assert ladj.shape == (7,)
    torch.testing.assert_close(ladj, logdet, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, z), ladj)
    assert (sign == transform.sign).all()
    if case.triangular:
        forbidden = J.triu(1) if case.triangular == "lower" else J.tril(-1)
        if isinstance(transform, Inverse):
            assert forbidden.abs().max() < 1e-11  # from a solver, to its tolerance
        else:
            assert forbidden.abs().max() == 0


@every_step
def test_diagonal_is_autograds(case):
    step = case.build()
    x = case.points(step, 9, scale=4)
    J = jacobian(lambda x: step.branch(x)[0], x)
    d = step.call_and_diagonal(x)[1]

    torch.testing.assert_close(d, J.diagonal(dim1=-2, dim2=-1), rtol=0, atol=1e-10)
    assert (d.abs() <= step.branch.bound).all()
    if len(J[0]) > 1:
        assert (J.abs().amax(0) > 0).sum() == len(J[0]) * (len(J[0]) + 1) // 2  # nothing is lost


@every
def test_round_trip(case):
    transform = case.build()
    x = case.points(transform, 50)
    z, ladj = transform.call_and_ladj(x)
    back, inverse_ladj = transform.inv.call_and_ladj(z)

    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(transform(transform.inv(z)), z, rtol=1e-9, atol=1e-9)


@every
def test_second_derivatives_of_the_inverse(case):
    """Also those of its ladj; see test_flows.py for those to parameters."""
    transform = case.build()
    with torch.no_grad():
        z = transform(case.points(transform, 2))
    z.requires_grad_()

    def inverse(z):
        x, ladj = transform.inv.call_and_ladj(z)
        return (transform.inv(z) ** 2).sum(), (x.sin() + z * z).sum() + ladj.exp().sum()

    assert torch.autograd.gradgradcheck(inverse, z, fast_mode=True, atol=1e-4, rtol=1e-3)


@every
def test_inverse_of_inverse_is_itself(case):
    transform = case.build()

    assert transform.inv.inv == transform
    assert transform.inv == transform.inv
    assert hash(transform.inv) == hash(transform.inv)
    assert transform.inv != transform
    assert transform.bijective
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    assert transform.inv.domain.event_dim == transform.inv.codomain.event_dim == 1
    assert transform.forward_shape((4, case.features)) == (4, case.features)


@every
@given(shape=shapes)
def test_any_batch_shape(case, shape):
    transform = case.build()
    x = case.points(transform, *shape)
    z, ladj = transform.call_and_ladj(x)
    back, inverse_ladj = transform.inv.call_and_ladj(z)

    assert z.shape == back.shape == x.shape
    assert ladj.shape == inverse_ladj.shape == shape
    if x.numel():
        one = tuple(0 for _ in shape)
        torch.testing.assert_close(transform(x[one]), z[one])
        torch.testing.assert_close(transform.inv(z[one]), back[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [c for c in TRANSFORMS.values() if c.cast],
    ids=[n for n, c in TRANSFORMS.items() if c.cast],
)
def test_dtype_is_kept(case, dtype):
    transform = case.cast(dtype)
    x = torch.randn(5, case.features, dtype=dtype)

    for t in (transform, transform.inv):
        z, ladj = t.call_and_ladj(x)
        assert z.dtype == ladj.dtype == dtype


@every_step
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_steps_is_kept(case, dtype):
    double = case.build()
    options = {"features": case.features, "hidden_features": (8, 8), "reverse": [False]}
    step = QuARStep(Branch(**options).to(dtype).bind()[0])
    x = torch.randn(5, case.features, dtype=dtype)

    assert double.branch.bound.dtype == torch.float64
    for t in (step, step.inv):
        z, ladj = t.call_and_ladj(x)
        assert z.dtype == ladj.dtype == dtype


@every
def test_copies_and_pickles(case):
    transform = case.build()
    x = case.points(transform, 4)
    z = transform(x)

    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other(x), z)


@every
def test_repr_is_short_and_names_the_class(case):
    text = repr(case.build())

    assert len(text) < 600
    assert "tensor(" not in text
    assert "object at" not in text


@every
def test_works_inside_torch_distributions(case):
    transform = case.build()
    base = Normal(torch.zeros(case.features, dtype=torch.float64), 1.0)
    # torch's distributions go from noise to data.
    density = TransformedDistribution(base, [transform.inv], validate_args=False)
    x = case.points(transform, 6)
    z, ladj = transform.call_and_ladj(x)

    assert density.event_shape == (case.features,)
    torch.testing.assert_close(density.log_prob(x), base.log_prob(z).sum(-1) + ladj)
    assert density.sample((3,)).shape == (3, case.features)


@every
def test_vmap_of_gradient(case):
    transform = case.build()
    if isinstance(transform, Inverse) and "QuARStep" in repr(transform):
        pytest.skip("solvers choose by value what to go on with, which vmap cannot follow")
    x = case.points(transform, 5)
    by_row = torch.func.vmap(torch.func.grad(lambda x: transform.call_and_ladj(x)[1]))(x)
    x.requires_grad_()
    ladj = transform.call_and_ladj(x)[1].sum()
    at_once = torch.autograd.grad(ladj, x)[0] if ladj.requires_grad else torch.zeros_like(x)

    torch.testing.assert_close(by_row, at_once)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_give_their_derivative_and_are_lipschitz(name):
    x = torch.cat((torch.linspace(-60, 60, 20_001), torch.tensor([-1e30, 0.0, 1e30]))).double()
    x.requires_grad_()
    value, slope = ACTIVATIONS[name](x)
    (expected,) = torch.autograd.grad(value.sum(), x)
    inside = x.detach().abs() < 1e9

    torch.testing.assert_close(slope[inside], expected[inside])
    assert (slope.abs() <= 1).all()
    assert ACTIVATIONS[name](x.float())[1].abs().max() <= 1


def test_orientation():
    odd, even = Permutation(torch.tensor([1, 0, 2])), Permutation(torch.tensor([1, 2, 0]))

    assert (odd.sign, even.sign) == (-1, 1)
    assert (odd.inv.sign, Composed([odd, even]).sign, Composed([odd, odd]).sign) == (-1, -1, 1)


def test_permutation_refuses_repeats():
    with pytest.raises(ValueError, match="permutation"):
        Permutation(torch.tensor([0, 0, 2]))


def test_a_diagonal_below_minus_one_is_never_a_density():
    # A branch that is no branch: the diagonal is wrong, and log1p says so.
    bound = branch(features=2)
    bad = replace(bound, blocks=tuple(50 * b for b in bound.blocks))
    ladj = QuARStep(bad).call_and_ladj(torch.randn(500, 2, dtype=torch.float64))[1]

    assert ladj.isnan().any()


@pytest.mark.parametrize("norm", ["dimension", "operator"])
@pytest.mark.parametrize("hidden", [(7,), (9, 9)])
@pytest.mark.parametrize(
    ("x_shape", "c_shape"),
    [
        ((), (4,)),
        ((4,), ()),
        ((4,), (4,)),
        ((5, 4), (4,)),
        ((5, 1), (4,)),
        ((1,), (5, 4)),
        ((), ()),
    ],
)
def test_context_broadcasts(norm, hidden, x_shape, c_shape):
    made = Branch(3, hidden, [False], 2, norm=norm).double()
    c, x = torch.randn(*c_shape, 2).double(), torch.randn(*x_shape, 3).double()
    step = QuARStep(made.bind(c)[0])
    z, ladj = step.call_and_ladj(x)
    shape = torch.broadcast_shapes(x_shape, c_shape)

    assert z.shape == (*shape, 3)
    assert ladj.shape == shape
    rows, given = x.expand(*shape, 3).reshape(-1, 3), c.expand(*shape, 2).reshape(-1, 2)
    for row, one, at, value in zip(rows, given, z.reshape(-1, 3), ladj.flatten(), strict=True):
        alone = QuARStep(made.bind(one)[0]).call_and_ladj(row)
        torch.testing.assert_close(alone, (at, value))
    back, inverse_ladj = step.inv.call_and_ladj(z)
    torch.testing.assert_close(back, x.expand(*shape, 3))
    torch.testing.assert_close(inverse_ladj, -ladj)
    # one z for many contexts gives one x for each
    assert step.inv(torch.zeros(3).double()).shape == (*c_shape, 3)


@pytest.mark.parametrize("hidden", [(4,), (6, 4), (2, 2, 2)])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rows", [False, True])
def test_branch_pass_has_true_gradients(name, hidden, rows):
    """The hand-written backward pass, first and second derivatives, of x and of every weight."""
    made = Branch(2, hidden, [False], 1, activation=name).double()
    bound = made.bind(torch.randn(*(3,) * rows, 1).double())[0]
    layers = len(bound.weights)
    inputs = [
        t.detach().requires_grad_()
        for t in (torch.randn(3, 2).double(), *bound.weights, *bound.blocks, *bound.biases)
    ]

    def run(x, *rest):
        W, B, b = (rest[i * layers : (i + 1) * layers] for i in range(3))
        return replace(bound, weights=W, blocks=B, biases=b)(x)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, atol=1e-4)
    for output in (0, 1):  # with the gradient of the other missing
        assert torch.autograd.gradcheck(
            lambda *a, output=output: run(*a)[output], inputs, fast_mode=True
        )


def test_branch_pass_under_func_transforms():
    bound = branch(features=3, hidden=(6, 6))
    x = torch.randn(4, 3, dtype=torch.float64)

    def total(x):
        F, d = bound(x)
        return (F.sin() + d.exp()).sum()

    one = torch.autograd.functional.hessian(total, x[0])
    hessian = torch.func.jacrev(torch.func.jacrev(total))
    torch.testing.assert_close(hessian(x[0]), one)
    torch.testing.assert_close(torch.func.vmap(hessian)(x)[0], one)
    torch.testing.assert_close(torch.func.jacrev(total)(x), torch.func.grad(total)(x))
