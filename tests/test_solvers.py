"""Every method finds the root or raises; never a residual above the tolerance in silence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quarflow import InversionError, QuAR
from quarflow.nn import Branch
from quarflow.solvers import METHODS, Solution, default_tolerance, solve
from quarflow.transforms import QuARStep
from registry import branch, shaken

every_method = pytest.mark.parametrize("method", METHODS)


def affine(D, off=1.0, reverse=False, seed=0):
    """f(x) = A x with A triangular, slopes in (0.03, 1.97), entries beside it of this size."""
    generator = torch.Generator().manual_seed(seed)
    A = off * torch.randn(D, D, generator=generator, dtype=torch.float64).tril(-1)
    A += torch.diag(1 + 0.97 * (2 * torch.rand(D, generator=generator, dtype=torch.float64) - 1))
    A = A.mT.contiguous() if reverse else A
    slopes = A.diagonal()

    return A, lambda x, rows: (x @ A.mT, slopes.expand_as(x))


def strong(D, off, seed=0, dtype=torch.float64, **options):
    """A random QuAR step whose off-diagonal weights are blown up."""
    torch.manual_seed(seed)
    made = Branch(D, (max(16, 2 * D),), [False], **options).to(dtype)
    with torch.no_grad():
        for layer in made.layers:
            layer.off_diagonal.mul_(off)
        return QuARStep(made.bind()[0])


def solved(*arguments, **options):
    """The solution, or the error that says there is none."""
    try:
        return solve(*arguments, **options)
    except InversionError as error:
        return error


def honest(solution, f, y, tolerance):
    """The residual that is told is the true one, and within the tolerance."""
    rows = torch.arange(len(y))
    true = ((f(solution.x, rows)[0] - y).abs() / (1 + y.abs())).amax(-1)

    assert isinstance(solution, Solution)
    assert (solution.residual <= tolerance).all()
    # Up to rounding in another batch size, which strong weights can amplify.
    assert (true <= 100 * tolerance).all()


@every_method
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden", [(6,), (12, 12)])
def test_contractions(method, reverse, hidden):
    step = QuARStep(branch(features=3, hidden=hidden, reverse=reverse, norm="operator"))
    x = 2 * torch.randn(40, 3, dtype=torch.float64)
    z = step(x)
    step.solver = {"method": method}
    solution = step.solve(z)

    torch.testing.assert_close(solution.x, x, rtol=1e-9, atol=1e-9)
    honest(solution, lambda x, rows: (step(x), None), z, 1e-12)


@every_method
@given(
    y=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
    a=st.floats(-0.97, 0.97),
    w=st.floats(1e-3, 100),
)
def test_one_dimension(method, y, a, w):
    y = torch.tensor(y, dtype=torch.float64)[:, None]

    def f(x, rows):
        return x + a * torch.sin(w * x) / w, 1 + a * torch.cos(w * x)

    found = solved(f, y, method)
    if isinstance(found, InversionError):
        assert method == "fixed_point"  # slow where the slope is near 0.03
        assert found.residual > 1e-12
    else:
        honest(found, f, y, 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("D", [1, 2, 10, 64])
def test_newton_is_exact_for_affine_maps_in_D_sweeps(D, reverse):
    A, f = affine(D, 0.1, reverse)
    x = torch.randn(20, D, dtype=torch.float64)
    solution = solve(f, x @ A.mT, reverse=reverse)

    torch.testing.assert_close(solution.x, x, rtol=1e-8, atol=1e-8)
    assert solution.iterations.max() <= D + 1  # one more sweep sees that it is done


@pytest.mark.parametrize("method", ["newton", "gauss_seidel"])
@pytest.mark.parametrize(("D", "off"), [(5, 30.0), (64, 10.0), (300, 3.0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_hard_maps_converge_through_the_safeguard(method, D, off, reverse):
    step = strong(D, off)
    branch_ = step.branch
    if reverse:  # the same map with its variables in the opposite order
        f = lambda x, rows: tuple(part.flip(-1) for part in _f(branch_, x.flip(-1)))  # noqa: E731
    else:
        f = lambda x, rows: _f(branch_, x)  # noqa: E731
    x = torch.randn(10, D, dtype=torch.float64)
    y = f(x, None)[0]
    solution = solve(f, y, method, reverse=reverse)

    honest(solution, f, y, 1e-12)
    torch.testing.assert_close(solution.x, x, rtol=1e-5, atol=1e-5)


def _f(bound, x):
    value, d = bound(x)

    return x + value, 1 + d


@given(
    D=st.sampled_from([2, 7, 16]),
    off=st.sampled_from([1.0, 30.0, 1e3, 1e6]),
    scale=st.sampled_from([0.1, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    method=st.sampled_from(list(METHODS)),
    seed=st.integers(0, 20),
)
@settings(max_examples=25)
def test_converged_or_raised_never_silent(D, off, scale, dtype, method, seed):
    step = strong(D, off, seed, dtype)
    y = (scale * torch.randn(8, D)).to(dtype)
    tolerance = default_tolerance(dtype)

    def f(x, rows):
        return _f(step.branch, x)

    found = solved(f, y, method, max_iterations=300)
    if isinstance(found, InversionError):
        assert 1 <= found.failed <= 8
        assert found.residual > tolerance
        assert f"{found.failed} of 8 samples" in str(found)
        assert f"{found.residual:.1e}" in str(found)
        step.solver = {"method": method, "max_iterations": 300}
        with pytest.raises(InversionError):
            step.inv(y)
    else:
        honest(found, f, y, tolerance)
        assert found.iterations.max() <= 300


@pytest.mark.parametrize("claimed", [1e-3, 0.03, 1.97, 1e3])
@pytest.mark.parametrize("true", [0.03, 1.0, 1.97])
def test_the_bracket_holds_even_when_slopes_mislead(claimed, true):
    y = torch.tensor([[-70.0], [0.0], [1e-9], [3.0], [1e6]], dtype=torch.float64)

    def f(x, rows):
        return true * x, torch.full_like(x, claimed)

    solution = solve(f, y, "gauss_seidel")

    honest(solution, f, y, 1e-12)


def test_kinks_and_plateaus():
    """Slopes that jump between 0.03 and 1.97, as with ELU at its worst."""
    y = torch.linspace(-30, 30, 301, dtype=torch.float64)[:, None]

    def f(x, rows):
        whole = x.floor()
        steep = (x - whole) < 0.5
        value = torch.where(steep, whole + 1.97 * (x - whole), whole + 0.97 + 0.03 * (x - whole))
        return value, torch.where(steep, 1.97, 0.03).to(x)

    for method in ("newton", "gauss_seidel"):
        honest(solve(f, y, method), f, y, 1e-12)


def test_transient_growth_is_survived():
    # x_i depends on x_{i-1} by a factor of -3: simultaneous sweeps grow before they end.
    D = 24
    A = torch.eye(D, dtype=torch.float64) * 0.5 + torch.diag(torch.full((D - 1,), -1.5), -1)
    sizes = []

    def f(x, rows):
        value = x @ A.mT
        sizes.append(float((value - y[rows]).abs().max()))
        return value + 0.01 * torch.sin(x), 0.5 + 0.01 * torch.cos(x)

    y = 1e-4 * torch.randn(5, D, dtype=torch.float64)
    solution = solve(f, y, tolerance=1e-6)

    assert max(sizes) > 10 * sizes[0]
    assert (solution.residual <= 1e-6).all()


def test_converged_samples_leave_the_batch():
    w = torch.tensor([1e-3, 0.5, 5.0, 50.0], dtype=torch.float64)[:, None]
    asked = torch.zeros(4, dtype=torch.long)

    def f(x, rows):
        asked[rows] += 1
        return x + 0.9 * torch.sin(w[rows] * x) / w[rows], 1 + 0.9 * torch.cos(w[rows] * x)

    solution = solve(f, torch.full((4, 1), 10.0, dtype=torch.float64))

    assert torch.equal(solution.iterations, asked)
    assert len(set(asked.tolist())) > 1


@every_method
def test_start_at_the_root_takes_one_evaluation(method):
    _, f = affine(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    y = f(x, None)[0]
    most = {"newton": 1, "fixed_point": 1, "gauss_seidel": 3 + 1}  # one per chunk, one to tell

    assert solve(f, y, method, start=x).iterations.max() <= most[method]


@every_method
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_max_iterations_is_honoured(method, limit):
    asked = torch.zeros(6, dtype=torch.long)
    step = strong(12, 20.0)

    def f(x, rows):
        asked[rows] += 1
        return _f(step.branch, x)

    y = 3 * torch.randn(6, 12, dtype=torch.float64)
    with pytest.raises(InversionError) as caught:
        solve(f, y, method, max_iterations=limit)

    assert asked.max() <= limit
    assert caught.value.failed == 6


@pytest.mark.parametrize("limit", [0, -1])
def test_max_iterations_below_one_is_refused(limit):
    with pytest.raises(ValueError, match="max_iterations"):
        solve(affine(2)[1], torch.zeros(1, 2, dtype=torch.float64), max_iterations=limit)


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_right_sides_are_refused(method, bad):
    y = torch.zeros(3, 2, dtype=torch.float64)
    y[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        solve(affine(2)[1], y, method)


@every_method
def test_nonfinite_maps_raise(method):
    with pytest.raises(InversionError, match="2 of 2 samples"):
        solve(lambda x, rows: (x * float("nan"), torch.ones_like(x)), torch.zeros(2, 3), method)


@every_method
def test_a_map_without_a_root_raises(method):
    # Bounded: no x gives 5.
    with pytest.raises(InversionError) as caught:
        solve(
            lambda x, rows: (torch.tanh(x), 1 - torch.tanh(x) ** 2 + 1e-3),
            torch.tensor([[0.2], [5.0]], dtype=torch.float64),
            method,
        )
    assert caught.value.failed >= 1
    assert caught.value.residual > 0.1


@every_method
@pytest.mark.parametrize("shape", [(0, 3), (1, 1)])
def test_small_batches(method, shape):
    solution = solve(
        lambda x, rows: (x * 1.5, torch.full_like(x, 1.5)),
        torch.ones(shape, dtype=torch.float64),
        method,
    )

    assert solution.x.shape == shape
    assert solution.iterations.shape == solution.residual.shape == shape[:1]


def test_unknown_method():
    with pytest.raises(ValueError, match=r"fixed_point.*gauss_seidel.*newton"):
        solve(affine(2)[1], torch.zeros(1, 2), "bisection")


def test_fixed_point_raises_where_it_diverges():
    _, f = affine(6, 5.0)
    A = f(torch.eye(6, dtype=torch.float64), None)[0]
    assert A.abs().max() > 3
    step = strong(30, 60.0)
    with pytest.raises(InversionError):
        solve(
            lambda x, rows: _f(step.branch, x),
            torch.randn(5, 30, dtype=torch.float64),
            "fixed_point",
            max_iterations=40,
        )


def test_float32_flows_come_back():
    """With ordinary weights the float32 tolerance is well above the rounding floor."""
    for norm in ("dimension", "operator"):
        flow = shaken(QuAR(10, transforms=4, hidden_features=(64, 64), norm=norm), 0.02).float()
        x = 1.5 * torch.randn(5000, 10)
        with torch.no_grad():
            transform = flow().transform
            back = transform.inv(transform(x))

        assert ((back - x).abs() / (1 + x.abs())).max() < 1e-5


def test_double_flows_come_back():
    flow = shaken(QuAR(10, transforms=4, hidden_features=(64, 64)), 0.02)
    x = 1.5 * torch.randn(5000, 10, dtype=torch.float64)
    with torch.no_grad():
        transform = flow().transform
        z = transform(x)
        back = transform.inv(z)
        sweeps = [
            step.solve(step(x)).iterations.median()
            for step in transform.transforms
            if isinstance(step, QuARStep)
        ]

    assert ((back - x).abs() / (1 + x.abs())).max() < 1e-10
    assert max(sweeps) <= 15


def test_the_largest_slopes_in_float32():
    """Where d is near -0.97 over long ranges, x is far from y and F's rounding is what is left."""
    y = torch.linspace(-3, 3, 201)[:, None]
    step = strong(1, 1.0, dtype=torch.float32, activation="elu", trick=False)
    found = solved(lambda x, rows: _f(step.branch, x), y)
    if isinstance(found, InversionError):
        assert found.residual < 1e-4  # nearly there, and said so
    else:
        assert (found.residual <= 1e-6).all()
