"""Preprocessing of columns: exact, invertible, and right about what it detects."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quarflow.data import column_detect
from quarflow.data.columns import Column, Columns

KINDS = {
    "plain": Column(name="a", mean=3.0, scale=2.0),
    "whole": Column(name="a", step=1.0, grid=1.0, mean=3.0, scale=2.0),
    "lower": Column(name="a", lower=1.0, mean=0.5, scale=0.7),
    "upper": Column(name="a", upper=4.0, mean=0.5, scale=0.7),
    "both": Column(name="a", lower=-1.0, upper=2.0, mean=0.3, scale=1.4),
    "counts": Column(name="a", step=1.0, grid=1.0, lower=0.0, mean=0.5, scale=0.7),
    "tails": Column(name="a", center=0.5, spread=0.1, mean=0.2, scale=1.5),
    "lower tails": Column(name="a", lower=0.0, center=-1.0, spread=0.4, mean=0.2, scale=0.6),
    "both tails": Column(name="a", lower=0.0, upper=1.0, center=0.3, spread=0.4, scale=0.6),
    "levels": Column(name="a", step=1, grid=1, levels=(1, 2, 5), masses=(0.2, 0.5, 0.3)),
    "gamma": Column(name="a", lower=0.0, shape=(1.3, 0.7, 2.0), edge_lower=(0.1, 0.91)),
    "mirrored": Column(name="a", upper=3.0, shape=(0.8, 2.5, 0.5), scale=1.1),
    "beta": Column(name="a", lower=-1.0, upper=2.0, shape=(1.5, 1.0, 0.8), mean=0.1),
}
everything = Columns(
    tuple(c.model_copy(update={"name": f"c{i}"}) for i, c in enumerate(KINDS.values()))
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def real_table(name, key="X"):
    """An array from the folder of real data; the test is skipped where there is none."""
    root = Path(__file__).resolve().parents[1]
    for folder in (
        os.environ.get("QUARFLOW_DATA"),
        root.parent / "shared/data",
        root / "shared/data",
    ):
        path = Path(folder) / "tabular" / name if folder else None
        if path and path.exists():
            return np.load(path)[key].astype(float)
    pytest.skip("The real tables are not here; set QUARFLOW_DATA to their folder to run this.")


# --- the transform -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(z=st.lists(st.floats(-4, 4), min_size=1, max_size=5))
def test_round_trip(kind, z):
    t = Columns((KINDS[kind],)).transform()
    z = torch.tensor(z, dtype=torch.float64)[:, None]
    x = t.inv(z)
    back, ladj = t.call_and_ladj(x)
    assert torch.isfinite(ladj).all()
    assert ((back - z).abs() <= 1e-9 * (1 + z.abs())).all()
    assert ((t.inv(back) - x).abs() <= 1e-12 * (1 + x.abs())).all()


@pytest.mark.parametrize("kind", KINDS)
def test_ladj_is_autograds(kind):
    t = Columns((KINDS[kind],)).transform()
    x = t.inv(torch.linspace(-3, 3, 31, dtype=torch.float64)[:, None])
    for row in x:
        jacobian = torch.autograd.functional.jacobian(t, row)
        _, ladj = t.call_and_ladj(row)
        assert ladj.shape == ()
        assert (ladj - jacobian.abs().log()[0, 0]).abs() < 1e-10
    z = t(x)
    torch.testing.assert_close(t.inv.call_and_ladj(z)[1], -t.call_and_ladj(x)[1])
    torch.testing.assert_close(t.log_abs_det_jacobian(x, z), t.call_and_ladj(x)[1])


def test_ladj_of_all_kinds_at_once_and_any_batch_shape():
    t = everything.transform()
    z = torch.randn(2, 3, len(everything), dtype=torch.float64, generator=generator())
    x = t.inv(z)
    back, ladj = t.call_and_ladj(x)
    assert back.shape == x.shape
    assert ladj.shape == (2, 3)
    torch.testing.assert_close(back, z)
    jacobian = torch.autograd.functional.jacobian(t, x[1, 2])
    assert (torch.linalg.slogdet(jacobian)[1] - ladj[1, 2]).abs() < 1e-10
    assert (jacobian - torch.diag(jacobian.diagonal())).abs().max() == 0
    assert t.sign == 1
    assert (jacobian.diagonal() > 0).all()
    assert t.bijective
    assert t.domain.event_dim == t.codomain.event_dim == 1
    torch.testing.assert_close(t(x[0, 0].float()), z[0, 0], rtol=1e-3, atol=1e-4)
    assert t(x.float()).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(kind):
    t = Columns((KINDS[kind],)).transform()
    # trapezoids between the images of an even grid: they follow the density wherever it is
    x = t.inv(torch.linspace(-9, 9, 40001, dtype=torch.float64)[:, None])
    z, ladj = t.call_and_ladj(x)
    density = (-0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) + ladj).exp()
    within = 1e-3 if KINDS[kind].levels else 1e-5  # trapezoids across a step
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=within)


def test_outside_the_support_the_density_is_zero():
    t = Columns((KINDS["both"], KINDS["lower"], KINDS["counts"])).transform()
    x = torch.tensor(
        [[0.0, 2.0, 0.0], [-1.0, 2, 0], [5, 2, 0], [0, 1, 0], [0, 2, -1], [0, math.nan, 0]],
        dtype=torch.float64,
    )
    z, ladj = t.call_and_ladj(x)
    assert torch.isfinite(z[:5]).all()
    assert torch.isfinite(ladj[0])
    assert (ladj[1:5] == -torch.inf).all()
    assert ladj[5].isnan()
    with pytest.raises(ValueError, match="have 2 columns, but 3"):
        t(x[:, :2])


def test_gradients_stay_finite_beside_the_support():
    t = Columns((KINDS["both"], KINDS["tails"])).transform()
    x = torch.tensor([[9.0, 1e200], [0.5, -3.0]], dtype=torch.float64, requires_grad=True)
    t(x).sum().backward()
    assert torch.isfinite(x.grad).all()


# --- noise and rounding --------------------------------------------------------------------


def test_dequantise_touches_discrete_columns_only():
    columns = Columns((KINDS["plain"], Column(name="b", step=0.5, grid=0.5)))
    x = torch.tensor([[1.25, 0.5]], dtype=torch.float64).expand(20000, 2)
    noisy = columns.dequantise(x, generator())
    assert (noisy[:, 0] == 1.25).all()
    assert ((noisy[:, 1] - 0.5).abs() <= 0.25).all()
    assert noisy[:, 1].mean().item() == pytest.approx(0.5, abs=0.005)
    assert noisy[:, 1].std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.02)
    assert torch.equal(noisy, columns.dequantise(x, generator()))
    assert torch.equal(columns.snap(noisy), x)
    assert columns.dequantise(x[0].float(), generator()).dtype == torch.float64


def test_noise_at_a_bound_keeps_the_density_finite():
    columns = Columns((Column(name="a", step=1.0, grid=1.0, lower=0, upper=1),))
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(50000, 1)
    noisy = columns.dequantise(x, generator())
    assert torch.isfinite(columns.transform().call_and_ladj(noisy)[1]).all()
    assert torch.equal(columns.snap(noisy), x)
    assert columns.snap(torch.tensor([-3.0, 9.0])[:, None]).tolist() == [[0], [1]]


def test_snap_keeps_continuous_values_within_open_bounds():
    columns = Columns((Column(name="a", lower=0.0, upper=1.0),))
    x = columns.snap(torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64))
    assert (x > 0).all()
    assert (x < 1).all()
    assert x[1] == 0.3


# --- fitting -------------------------------------------------------------------------------


numbers = st.one_of(
    st.floats(-1e90, 1e90),
    st.floats(-1, 1),
    st.integers(-5, 5).map(float),
    st.integers(-(10**6), 10**6).map(lambda i: i / 100),
)


@settings(max_examples=100, deadline=None)
@given(x=st.lists(numbers, min_size=2, max_size=40), repeats=st.integers(1, 5))
def test_whatever_the_column_fitting_works_or_says_why(x, repeats):
    x = np.repeat(np.array(x), repeats)[:, None]
    try:
        columns = Columns.fit(x, ["a"])
    except ValueError as error:
        if "Column 'a'" not in str(error):
            raise
        return
    noisy = columns.dequantise(torch.tensor(x), generator())
    z, ladj = columns.transform().call_and_ladj(noisy)
    assert z.isfinite().all()
    assert ladj.isfinite().all()
    back = columns.transform().inv(z)
    assert ((back - noisy).abs() <= 1e-9 * (noisy.abs() + np.abs(x).max())).all()
    assert columns.snap(back).isfinite().all()


def fit1(x, **options):
    return Columns.fit(np.asarray(x, dtype=float)[:, None], ["a"], **options).columns[0]


rng = np.random.default_rng(7)
normal = rng.normal(size=4000)


@pytest.mark.parametrize(
    ("x", "step"),
    [
        (rng.poisson(3.0, 2000), 1),
        (rng.integers(0, 2, 500), 1),
        (rng.choice([0, 1.0865, 2.173], 2000), 1.0865),
        (rng.choice([3.0, 17.5], 100), 14.5),
        (np.round(rng.gamma(2.0, 15.0, 20000), 2), 0.01),
        (np.round(normal * 20) / 20, 0.05),
        ((np.round(normal * 20) / 20 - 0.1234) / 1.789, 0.05 / 1.789),
        ((np.round(normal * 20) / 20).astype(np.float32), 0.05),
        (10 * rng.integers(0, 50, 900) + 3, 10),
        (rng.integers(0, 10**12, 1000), None),  # ids: whole numbers, whatever their step
    ],
)
def test_lattices_are_found(x, step):
    column = fit1(x)
    assert column.grid == column.step
    if step is None:
        assert column.step >= 1
    else:
        assert column.step == pytest.approx(step, rel=1e-5)
    x = torch.tensor(np.asarray(x, dtype=float))[:, None]
    columns = Columns((column,))
    snapped = columns.snap(columns.dequantise(x, generator()))
    torch.testing.assert_close(snapped, x, atol=0.02 * column.step, rtol=0)


@pytest.mark.parametrize(
    "x",
    [
        normal,
        normal.astype(np.float32),
        np.concatenate([normal, normal[:40]]),  # a handful of ties
        np.round(normal, 6),
        rng.uniform(size=20000).astype(np.float32),
        np.exp(3 * normal),
        rng.standard_cauchy(3000),
        1e12 + 1e3 * normal,
        np.array([0.3, 0.5, 0.5, 1.7]),
    ],
)
def test_continuous_columns_are_left_alone(x):
    assert fit1(x).step is None


def test_odd_values_do_not_refine_the_lattice():
    x = np.round(rng.gamma(2.0, 0.1, 5000), 2)
    x[:3] = [0.0019, 0.1237, 0.3333]
    assert fit1(x).step == pytest.approx(0.01)


def test_an_atom_gets_a_width():
    x = np.where(rng.uniform(size=5000) < 0.3, 0.0, rng.lognormal(size=5000))
    column = fit1(x)
    spread = np.subtract(*np.percentile(x[x > 0], [75, 25]))
    assert 1e-4 * spread < column.step < 1e-2 * spread
    assert column.atoms == (0.0,)
    assert column.grid is None
    columns = Columns((column,))
    x = torch.tensor(x)[:, None]
    snapped = columns.snap(columns.dequantise(x, generator()))
    assert ((snapped == 0) == (x == 0)).float().mean() > 0.999
    assert "often takes exactly 0" in columns.describe()[0]


def test_several_atoms_each_take_their_neighbourhood():
    column = Column(name="a", step=0.2, atoms=(0.0, 1.0, 2.5))
    x = torch.tensor([-5, -0.09, 0.05, 0.5, 0.95, 1.2, 2.45, 9.0])[:, None]
    want = [-5, 0, 0, 0.5, 1, 1.2, 2.5, 9]
    torch.testing.assert_close(
        Columns((column,)).snap(x)[:, 0], torch.tensor(want, dtype=torch.float64)
    )


def test_discrete_can_be_chosen():
    X = np.stack([rng.poisson(3.0, 500), normal[:500]], axis=1)
    assert [c.step for c in Columns.fit(X, ["n", "e"], discrete="none").columns] == [None, None]
    chosen = Columns.fit(X, ["n", "e"], discrete=["e"]).columns
    assert chosen[0].step is None
    assert chosen[1].step > 0


@pytest.mark.parametrize(
    ("x", "tamed"),
    [
        (normal, False),
        (rng.uniform(size=3000), False),
        (rng.standard_t(2, 5000), True),
        (rng.standard_cauchy(5000), True),
        (np.exp(1.5 * normal), True),
        (-np.exp(1.5 * normal), True),
        (normal[:20], False),
    ],
)
def test_tails(x, tamed):
    column = fit1(x)
    assert (column.spread is not None) == tamed
    assert fit1(x, tails="none").spread is None
    z = Columns((column,)).transform()(torch.tensor(x)[:, None])
    assert z.mean().item() == pytest.approx(0, abs=1e-9)
    assert z.std(correction=0).item() == pytest.approx(1)
    if tamed:
        assert z.abs().max() < 12
    assert column == fit1(x)  # deterministic


def test_taming_raises_the_likelihood_of_the_gaussian():
    x = rng.standard_t(2, 5000)
    scores = {}
    for tails in ("auto", "none"):
        z, ladj = (
            Columns((fit1(x, tails=tails),)).transform().call_and_ladj(torch.tensor(x)[:, None])
        )
        scores[tails] = (ladj - 0.5 * z[:, 0] ** 2).mean().item()
    assert scores["auto"] > scores["none"] + 0.2


def test_fit_with_bounds():
    X = np.stack([rng.gamma(1.0, 2.0, 3000), rng.beta(0.5, 2, 3000), -rng.poisson(2, 3000)], 1)
    bounds = {"rate": (0, None), "share": (0.0, 1.0), "loss": (None, 0)}
    columns = Columns.fit(X, ["rate", "share", "loss"], bounds=bounds)
    x = columns.dequantise(torch.tensor(X), generator())
    z, ladj = columns.transform().call_and_ladj(x)
    assert torch.isfinite(ladj).all()
    assert z.mean(0).abs().max() < 0.03
    samples = columns.snap(
        columns.transform().inv(3 * torch.randn(3000, 3, generator=generator()))
    )
    for value, column in zip(samples.T, columns.columns, strict=True):
        lower, upper = column.support
        assert ((value > lower) & (value < upper)).all()
    assert torch.isfinite(columns.transform().call_and_ladj(samples)[1]).all()
    assert "lies above 0" in columns.describe()[0]


def test_json_round_trip_is_exact():
    X = np.stack([rng.gamma(1.0, 2.0, 500), rng.poisson(2, 500)], 1)
    X[:100, 0] = 0.125
    columns = Columns.fit(X, ["π <b>", "n"], bounds={"n": (0, None)})
    texts = [column.model_dump_json() for column in columns.columns]
    again = Columns(tuple(Column.model_validate_json(text) for text in texts))
    assert again == columns
    assert again.names == ["π <b>", "n"]
    assert len(again) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "(?s)scale.*greater than 0"),
        ({"scale": math.nan}, "scale"),
        ({"mean": math.inf}, "(?s)mean.*finite"),
        ({"step": -1.0}, "step"),
        ({"spread": 0}, "spread"),
        ({"spread": "wide"}, "spread"),
        ({"name": 3}, "name"),
        ({"lower": 2.0, "upper": 1.0}, "lower must be less than upper"),
        ({"grid": 1.0}, "need a step"),
        ({"surprise": 1}, "surprise"),
        ({"levels": (0.0, 1.0)}, "levels and masses"),
        ({"levels": (0.0, 1.0), "masses": (0.5, 0.5)}, "levels need a step"),
        ({"step": 1.0, "levels": (1.0, 0.0), "masses": (0.5, 0.5)}, "levels must increase"),
        ({"step": 1.0, "levels": (0.0, 1.0), "masses": (0.5, 0.6)}, "masses must add up"),
        ({"shape": (1.0, 1.0, 1.0)}, "a shape needs a bound"),
        ({"edge_lower": (0.1, 1.0)}, "an edge needs a bound"),
    ],
)
def test_hostile_json(change, message):
    with pytest.raises(ValueError, match=message):
        Column.model_validate({"name": "a", "mean": 0.0, "scale": 1.0, **change})


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        ([[1.0], [1.0]], {}, r"Column 'a' is constant \(1 in every row\)"),
        (1e9 + 1e-6 * rng.uniform(size=(50, 1)), {}, "'a' is constant but for rounding"),
        ([[1.0], [1e200]], {}, "'a' goes from 1 to 1e.200, too large or too small"),
        ([[1.0]], {}, "at least 2 rows, and there is 1"),
        (np.empty((0, 1)), {}, "at least 2 rows"),
        ([[1.0], [np.nan]], {}, "'a' contains NaN in row 2"),
        ([[1.0], [-np.inf]], {}, "'a' contains infinity in row 2"),
        ([1.0, 2.0], {}, "rows x columns"),
        ([[1.0, 2.0], [3.0, 4.0]], {}, "1 names for 2 columns"),
        (normal[:, None], {"bounds": {"a": (-9, 1.25)}}, r"'a' is \S+ in row \d+, .* below 1.25"),
        ([[0.0], [0.5], [0.7]], {"bounds": {"a": (0, 1)}}, "'a' is 0 in row 1.*must lie above 0"),
        ([[0.0], [-1.0], [3.0]], {"bounds": {"a": (0, None)}}, "is -1 in row 2.*at or above 0"),
        ([[0.0], [1.0]], {"bounds": {"a": (1, 0)}}, "lower < upper"),
        ([[0.0], [1.0]], {"bounds": {"a": (np.nan, 0)}}, "finite"),
        ([[0.0], [1.0]], {"bounds": {"a": 3}}, "must be a pair"),
        ([[0.0], [1.0]], {"bounds": {"b": (0, 1)}}, "bounds names the column 'b'.*are 'a'"),
        ([[0.0], [1.0]], {"discrete": ["b"]}, "discrete names the column 'b'"),
        ([[0.0], [1.0]], {"discrete": "yes"}, "discrete must be"),
        ([[0.0], [1.0]], {"tails": "yes"}, "tails must be"),
    ],
)
def test_bad_input(X, options, message):
    with pytest.raises(ValueError, match=message):
        Columns.fit(np.asarray(X), ["a"], **options)


def test_boundary_values_of_discrete_columns_are_legal():
    assert fit1([0, 1, 2, 3], bounds={"a": (0, 3)}).support == (-0.5, 3.5)
    with pytest.raises(ValueError, match="Two columns are called 'a'"):
        Columns.fit(np.eye(2), ["a", "a"])


# --- real tables ---------------------------------------------------------------------------


def test_higgs():
    X = real_table("higgs_small_35k.npz", "X_test")
    columns = Columns.fit(X, [f"x{j}" for j in range(X.shape[1])]).columns
    btags = [columns[j] for j in (8, 12, 16, 20)]  # three values each
    assert all(1 < column.step < 1.6 for column in btags)
    assert all(columns[j].step is None for j in (3, 4, 21, 22, 23, 24, 25, 26, 27))
    # the others lie on lattices too fine to matter, if on any
    assert all((c.step or 0) < 2e-3 for j, c in enumerate(columns) if j not in (8, 12, 16, 20))


def test_magic():
    X = real_table("adbench/22_magic.gamma.npz")
    columns = Columns.fit(X, [f"x{j}" for j in range(10)]).columns
    assert [j for j, c in enumerate(columns) if c.step] == [1, 2, 3, 4]
    assert all((c.step or 0) <= 1e-3 for c in columns)


@pytest.mark.parametrize(
    ("name", "key", "steps"),
    [
        ("diamonds.npz", "X", [0.01, 0.1, 1, 1, 0.01, 0.01, 0.01]),
        ("adbench/32_shuttle.npz", "X", [1, 1, 1, 1, 2, 1, 1, 1, 2]),
        ("power_2007h1.npz", "sub_metering", [1, 1, 1]),
    ],
)
def test_lattices_of_real_tables(name, key, steps):
    X = real_table(name, key)
    columns = Columns.fit(X, [f"x{j}" for j in range(X.shape[1])], tails="none").columns
    assert [column.step for column in columns] == pytest.approx(steps)
    assert all(column.grid == column.step for column in columns)


def test_house_has_atoms_at_zero():
    X = real_table("pmlb_house_16H.npz")
    columns = Columns.fit(X, [f"x{j}" for j in range(X.shape[1])]).columns
    assert all(columns[j].atoms == (0.0,) for j in (2, 6, 8, 9, 11))
    assert columns[0].step == columns[0].grid == 1


def test_the_quick_look_at_tails_chooses_as_the_whole_grid_does(monkeypatch):
    rng = np.random.default_rng(3)
    columns = [
        rng.normal(size=900),
        np.exp(2 * rng.normal(size=900)),
        1e-7 * rng.standard_t(1, 5000),
        1e8 + rng.gamma(0.2, size=300),
        np.append(1e-9 * rng.normal(size=50), 1e9),  # seen from 1e9 the rest is one point
        np.append(rng.normal(size=40) - 1e6, rng.normal(size=60) + 1e6),
        np.array([0.0, 1.0, 5.0]),
    ]
    quick = [column_detect.find_tails(column) for column in columns]
    whole = lambda v, centers, spreads: list(itertools.product(centers, spreads))  # noqa: E731
    monkeypatch.setattr(column_detect, "_promising", whole)
    assert quick == [column_detect.find_tails(column) for column in columns]
    assert any(found is None for found in quick)
    assert not all(found is None for found in quick)
