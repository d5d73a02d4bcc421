"""Discrete columns as probabilities, densities at bounds, and what is said about columns."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from quarflow import QuARDensity
from quarflow.data.column_levels import OtherValues
from quarflow.data.column_notices import dependence
from quarflow.data.columns import Column, Columns

SMALL = {"transforms": 2, "hidden_features": (16,), "random_state": 0}


def fit1(x, **options):
    return Columns.fit(np.asarray(x, dtype=float)[:, None], ["a"], **options)


def log_prob_of(columns, bend=0.0):
    """Log-density of rows whose z is normal after z + bend sin z, discrete columns measured."""
    transform, cells = columns.transform(), columns.cells()

    def log_prob(x):
        z, ladj = transform.call_and_ladj(x)
        w, slope = z + bend * torch.sin(2 * z), 1 + 2 * bend * torch.cos(2 * z)
        normal = (slope.log() - 0.5 * w**2 - 0.5 * np.log(2 * np.pi)).sum(-1)
        return normal + ladj + (cells.log_measure(x) if cells.discrete else 0)

    return log_prob


def scores(columns, x, bend=0.0):
    """As the estimator scores rows, for a flow that bends."""
    x = torch.tensor(np.asarray(x, dtype=float))
    x = x[:, None] if x.ndim == 1 else x
    log_prob, cells = log_prob_of(columns, bend), columns.cells()
    found, rows = log_prob(x), cells.needed(x)
    if rows.any():
        found[rows] = cells.average(x[rows], log_prob)
    return found.numpy()


# Ties


rng = np.random.default_rng(0)
n = 6000
LARGE = {
    "ages": np.where(rng.random(n) < 0.02, 999_999, rng.integers(18, 90, n)),
    "stars": np.where(rng.random(n) < 0.03, rng.integers(10**5, 10**6, n), rng.integers(1, 6, n)),
    "counts": np.where(rng.random(n) < 0.005, rng.integers(10**4, 10**5, n), rng.poisson(2, n)),
    "mixed": np.where(rng.random(n) < 0.6, rng.integers(10**5, 10**6, n), rng.integers(0, 40, n)),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_values_do_not_merge_small_ones(name):
    assert fit1(LARGE[name]).columns[0].step == 1


def test_halves_beside_large_values_stay_apart():
    x = np.where(rng.random(n) < 0.3, 1e6 * rng.random(n), rng.integers(0, 9, n) / 2)
    assert fit1(x).columns[0].step <= 0.5


# Levels


def test_few_values_become_levels():
    x = rng.choice([1, 2, 5, 10], 3000, p=[0.4, 0.3, 0.2, 0.1])
    columns = fit1(x)
    column = columns.columns[0]
    assert column.levels == (1, 2, 5, 10)
    assert sum(column.masses) == pytest.approx(1)
    assert np.allclose(column.masses, [(x == v).mean() for v in column.levels], atol=1e-3)
    assert "takes 4 whole numbers (1, 2, 5, 10)" in columns.describe()[0]
    noisy = columns.dequantise(torch.tensor(x)[:, None].double(), torch.Generator().manual_seed(0))
    z = columns.transform()(noisy)[:, 0].numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert np.array_equal(columns.snap(noisy)[:, 0], x)
    far = columns.snap(columns.transform().inv(torch.linspace(-30, 30, 99)[:, None].double()))
    assert set(far[:, 0].tolist()) == {1, 2, 5, 10}


@pytest.mark.parametrize(
    ("x", "levels"),
    [
        (LARGE["ages"], 73),
        (np.repeat([0.1, 0.37, 2.9], 30), 3),
        (np.eye(2000)[0] + 7, 2),
        (rng.poisson(200, 3000), 0),
        (rng.integers(0, 10**6, 40), 0),  # whole numbers, none of them twice
        (np.where(rng.random(60) < 0.4, 0.0, rng.normal(size=60)), 0),
    ],
)
def test_which_columns_have_levels(x, levels):
    assert len(fit1(x).columns[0].levels) == levels


def test_columns_of_old_files_have_no_levels():
    old = {"name": "a", "step": 1.0, "grid": 1.0, "mean": 0.5, "scale": 0.5}
    column = Column.model_validate(old)
    assert (column.levels, column.shape, column.seen) == ((), None, None)


@pytest.mark.parametrize("bend", [0.0, 0.15, -0.2])
@pytest.mark.parametrize("many", [1, 2, 3])
def test_masses_add_up_to_one(bend, many):
    X = np.stack(
        [rng.random(4000) < 0.01, rng.choice([1, 2, 5, 10], 4000), rng.poisson(1, 4000)], 1
    ).astype(float)[:, :many]
    columns = Columns.fit(X, list("abc")[:many])
    values = np.meshgrid(*[c.levels for c in columns.columns], indexing="ij")
    total = np.exp(scores(columns, np.stack(values, -1).reshape(-1, many), bend)).sum()
    assert total == pytest.approx(1, abs=5e-3)


def test_lattices_add_up_to_one_too():
    columns = fit1(rng.poisson(100, 4000) / 10)
    assert columns.columns[0].lattice
    found = np.exp(scores(columns, np.arange(-200, 400) / 10, 0.3))
    assert 0.1 * found.sum() == pytest.approx(1, 1e-3)


def test_values_never_seen():
    columns = fit1(rng.choice([1, 2, 5, 10], 3000, p=[0.4, 0.3, 0.2, 0.1]))
    x = np.array([3.0, 11, -1, 2.5, 3.001, 10**9])
    found = scores(columns, x)
    assert np.isfinite(found[[0, 1, 2]]).all()
    assert (found[[0, 1, 2]] < np.log(1e-4)).all()
    assert np.isneginf(found[[3]]).all()
    assert found[4] == pytest.approx(found[0])  # within a fiftieth of a step
    everything = np.exp(scores(columns, np.arange(-200, 200))).sum()
    assert everything == pytest.approx(1, abs=1e-6)


def test_values_never_seen_stay_within_bounds():
    column = fit1(rng.poisson(2, 3000), bounds={"a": (0, 20)}).columns[0]
    share = np.exp(OtherValues(column).log_share(np.array([-1.0, 15.0, 20.0, 21.0])))
    assert ((share > 0) == [False, True, True, False]).all()
    free = Column(name="a", step=0.1, levels=(0.1, 0.37), masses=(0.5, 0.5), unseen=0.1)
    assert np.isneginf(OtherValues(free).log_share(np.array([0.2]))).all()


def test_probabilities_and_samples_of_a_fit():
    n = 2000
    flag, level = rng.random(n) < 0.3, rng.choice([1, 2, 5, 10], n)
    X = np.stack([flag, level, rng.normal(size=n) + 2 * flag], 1).astype(float)
    density = QuARDensity(**SMALL, max_epochs=5).fit(X)
    y = np.linspace(-6, 9, 121)
    grid = np.stack(np.meshgrid([0, 1], [1, 2, 5, 10], y, indexing="ij"), -1).reshape(-1, 3)
    assert np.exp(density.score_samples(grid)).sum() * (y[1] - y[0]) == pytest.approx(1, abs=5e-3)
    samples = density.sample(2000, random_state=0)
    assert set(samples[:, 0]) <= {0, 1}
    assert set(samples[:, 1]) <= {1, 2, 5, 10}
    assert abs(samples[:, 0].mean() - 0.3) < 0.06
    assert np.allclose(density.inverse_transform(density.transform(X)), X, atol=1e-8)
    # what training reports bounds what scoring gives
    assert -density.score_samples(X).mean() < density.metrics_["valid_nats"] + 0.15


# Bounds


TRUE = {
    "exponential": (stats.expon(), (0, None), 1),
    "gamma": (stats.gamma(2), (0, None), 1),
    "uniform": (stats.uniform(), (0, 1), 1),
    "arcsine": (stats.beta(0.5, 0.5), (0, 1), 1),
    "upper": (stats.expon(), (None, 0), -1),
}


@pytest.mark.parametrize("name", TRUE)
def test_the_reference_is_right_from_the_bound_to_the_tail(name):
    truth, bounds, sign = TRUE[name]
    x = truth.rvs(size=5000, random_state=np.random.default_rng(0))
    columns = fit1(sign * x, bounds={"a": bounds})
    at = np.concatenate([[1e-300, 1e-12, 1e-6], truth.ppf([0.001, 0.01, 0.1, 0.5, 0.9, 0.999])])
    assert np.abs(scores(columns, sign * at) - truth.logpdf(at)).max() < 0.11
    # a flow may bend as it likes: near the bound the density keeps its course
    bent = scores(columns, sign * at[:4], 0.4) - truth.logpdf(at[:4])
    assert np.ptp(bent) < 0.01
    whole = columns.transform().inv(torch.linspace(-7, 7, 4001)[:, None].double())[:, 0]
    inside = whole[(sign * whole > 0) & (whole < (bounds[1] or np.inf))].numpy()
    density = np.exp(scores(columns, inside, 0.2))
    assert np.trapezoid(density, inside) == pytest.approx(1, abs=2e-3)


def test_other_shapes_keep_the_logarithm():
    column = fit1(rng.lognormal(size=4000), bounds={"a": (0, None)}).columns[0]
    assert column.shape is None
    assert column.edge_lower is not None


def test_samples_in_the_strip_follow_its_density():
    columns = fit1(rng.exponential(size=5000), bounds={"a": (0, None)})
    width = columns.columns[0].edge_lower[0]
    x = torch.full((4000, 1), width / 3, dtype=torch.float64)
    drawn = columns.cells().settle(x, torch.Generator().manual_seed(0))[:, 0].numpy()
    assert stats.kstest(drawn, stats.truncexpon(width).cdf).pvalue > 1e-3
    out = torch.full((3, 1), 2 * width, dtype=torch.float64)
    assert torch.equal(columns.cells().settle(out, torch.Generator()), out)


# Notices


def test_columns_that_others_determine_are_named():
    a, b, noise = rng.normal(size=(3, 500))
    columns = Columns.fit(np.stack([a, b, 2 * a + 3, a + b, noise], 1), list("abcde"))
    X = np.stack([a, b, 2 * a + 3, a + b, noise], 1)
    told = dependence(X, columns.columns)
    assert "'c' by 'a'; 'd' by 'a' and 'b'." in told
    assert dependence(X[:, [0, 1, 4]], columns.columns) is None
    assert dependence(X[:, :2] + 1e-4 * X[:, 4:], columns.columns) is None
    hot = np.eye(3)[rng.integers(0, 3, 500)]
    assert dependence(hot, Columns.fit(hot, list("abc")).columns) is None
    with pytest.warns(UserWarning, match="'x1' by 'x0'"):
        QuARDensity(**SMALL, max_epochs=1).fit(X[:, [0, 2]])


def test_contexts_far_away_are_named():
    c = np.stack([rng.normal(size=300), np.full(300, 7.0)], 1)
    density = QuARDensity(**SMALL, max_epochs=1).fit(
        c[:, :1] + rng.normal(size=(300, 1)), context=c
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.sample(10, context=[0.5, 7.0])
    for use in (density.score_samples, density.transform, density.inverse_transform):
        with pytest.warns(UserWarning, match=r"far outside.*'c0' \(from -"):
            use(c[:2, :1], context=[90.0, 7.0])
    with pytest.warns(UserWarning, match="'c1'"):
        density.sample(2, context=[0.5, 8.0])


@pytest.mark.parametrize("step", [1.0, 0.25])
def test_scores_have_the_units_of_the_data(step):
    """Standardising a table moves its scores as it moves any density: by the log of the scale."""
    rng = np.random.default_rng(0)
    whole = np.stack([rng.poisson(3, 800), rng.integers(0, 300, 800)], axis=1).astype(float)
    names = ["few", "many"]
    few, many = Columns.fit(whole * step, names).columns
    assert few.levels
    assert many.lattice
    assert few.unit == many.unit == step
    cells = Columns((few, many)).cells()
    expected = Columns.fit(whole, names).cells().log_measure(torch.tensor(whole))
    torch.testing.assert_close(cells.log_measure(torch.tensor(whole * step)), expected)


def test_levels_without_a_step_score_probabilities():
    x = np.random.default_rng(0).choice([0.1, np.pi, 7.31], 500)
    (column,) = Columns.fit(x[:, None], ["x"], discrete=["x"]).columns
    assert column.unit == 1
