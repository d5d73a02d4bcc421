"""The scikit-learn contract, frames, contexts, reproducibility, and what is refused."""

import json
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from quarflow import QuARDensity

SMALL = {"transforms": 2, "hidden_features": (8,), "max_epochs": 3, "random_state": 0}


def table(n=200, seed=0):
    """Three dependent columns of different units."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))

    return np.stack((5 + 2 * a, 1e3 * (a + 0.3 * b), -1e-2 * c**2 + 1e-3 * b), axis=1)


@pytest.fixture(scope="module")
def fitted():
    return QuARDensity(**SMALL).fit(table())


@parametrize_with_checks([QuARDensity(max_epochs=2)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_density_integrates_to_one_in_data_units():
    rng = np.random.default_rng(0)
    X = np.exp(rng.normal(size=(300, 1))) * 1e4 + 7
    for options in ({}, {"bounds": {"x0": (0, None)}}, {"tails": "none", "base": "student-t"}):
        density = QuARDensity(**SMALL | {"max_epochs": 10} | options).fit(X)
        u = np.linspace(-1, 1, 8_001)
        Z = np.sinh(u * np.arcsinh(9.0 if "base" not in options else 1e3))[:, None]
        x = density.inverse_transform(Z)
        assert abs(np.trapezoid(np.exp(density.score_samples(x)), x[:, 0]) - 1) < 1e-3


def test_ten_thousand_samples_come_back(fitted):
    X = fitted.sample(10_000, random_state=1)
    back = fitted.inverse_transform(fitted.transform(X))
    assert np.max(np.abs(back - X) / (1 + np.abs(X))) < 1e-10

    flow = fitted.flow_  # float32, as trained
    with torch.no_grad():
        p = flow()
        x = p.sample((10_000,))
        back = p.transform.inv(p.transform(x))
    assert ((back - x).abs() / (1 + x.abs())).max() < 1e-5


def test_scoring_is_repeatable_and_does_not_depend_on_the_batch(fitted):
    X = table(600, seed=1)
    scores = fitted.score_samples(X)

    assert scores.dtype == np.float64
    assert np.array_equal(fitted.score_samples(X), scores)
    for size in (1, 7, 256):
        parts = [fitted.score_samples(X[i : i + size]) for i in range(0, len(X), size)]
        assert np.max(np.abs(np.concatenate(parts) - scores)) < 1e-9
    order = np.random.default_rng(0).permutation(len(X))
    assert np.max(np.abs(fitted.score_samples(X[order]) - scores[order])) < 1e-9
    assert fitted.score(X) == pytest.approx(scores.sum())


def test_scoring_in_chunks(fitted, monkeypatch):
    X = table(100)
    scores = fitted.score_samples(X)
    monkeypatch.setattr("quarflow.density.table_use.CHUNK", 33)

    assert np.allclose(fitted.score_samples(X), scores, rtol=0, atol=1e-9)
    assert fitted.sample(100, random_state=0).shape == (100, 3)


def test_change_of_units_changes_the_density_by_its_logarithm():
    X = table()
    one = QuARDensity(**SMALL).fit(X).score_samples(X)
    units = np.array([1e-3, 25.0, 1e6])
    other = QuARDensity(**SMALL).fit(X * units + 3).score_samples(X * units + 3)

    assert np.allclose(other + np.log(units).sum(), one, atol=2e-2)


def test_samples():
    X = table(2000)
    density = QuARDensity(**SMALL | {"max_epochs": 20}).fit(X)
    one, same, other = (density.sample(500, random_state=s) for s in (0, 0, 1))

    assert one.shape == (500, 3)
    assert one.dtype == np.float64
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert density.sample().shape == (1, 3)
    many = density.sample(4000, random_state=np.random.RandomState(0))
    assert np.all(np.abs(many.mean(0) - X.mean(0)) < 0.3 * X.std(0))
    assert np.corrcoef(many.T)[0, 1] > 0.8


def test_random_state():
    X = table()
    before = torch.random.get_rng_state()
    one, same, other = (
        QuARDensity(**SMALL | {"random_state": s}).fit(X).score_samples(X) for s in (3, 3, 4)
    )

    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's numbers are touched


def test_attributes(fitted):
    assert fitted.n_features_in_ == 3
    assert fitted.columns_.names == ["x0", "x1", "x2"]
    assert fitted.context_columns_ is None
    assert {"transforms", "batch_size", "learning_rate", "seed"} <= set(fitted.settings_)
    # What is still "auto" is told by columns_.
    assert {k for k, v in fitted.settings_.items() if v == "auto"} <= {"discrete", "tails"}
    assert fitted.metrics_["rows"] == 200
    assert fitted.metrics_["train_rows"] + fitted.metrics_["valid_rows"] == 200
    assert fitted.history_[-1]["train_nats"] == fitted.history_[-1]["train_nats"]
    assert not hasattr(fitted, "feature_names_in_")


def test_fit_save_load(fitted, tmp_path):
    X = table(50, seed=2)
    fitted.save(tmp_path / "model")
    loaded = QuARDensity.load(tmp_path / "model")

    for other in (loaded, pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.score_samples(X), fitted.score_samples(X))
        assert np.array_equal(other.transform(X), fitted.transform(X))
        assert np.array_equal(other.sample(20, random_state=5), fitted.sample(20, random_state=5))
        assert json.dumps(other.settings_) == json.dumps(fitted.settings_)
        assert other.columns_ == fitted.columns_
    refitted = clone(loaded).fit(table())
    assert np.array_equal(refitted.score_samples(X), fitted.score_samples(X))


def test_inside_scikit_learn():
    X = table(60)
    quick = QuARDensity(**SMALL | {"max_epochs": 1})
    pipe = make_pipeline(StandardScaler(), quick).fit(X)

    assert np.isfinite(pipe.score_samples(X)).all()
    assert np.isfinite(cross_val_score(quick, X, cv=2)).all()
    search = GridSearchCV(quick, {"transforms": [1, 2]}, cv=2).fit(X)
    assert search.best_params_["transforms"] in (1, 2)


# Frames


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_frames(kind):
    X = table()
    names = ["length", "mass", "größe"]
    frame = kind(dict(zip(names, X.T, strict=True)))
    density = QuARDensity(**SMALL).fit(frame)

    assert list(density.feature_names_in_) == names
    assert density.columns_.names == names
    expected = QuARDensity(**SMALL).fit(X).score_samples(X)
    assert np.array_equal(density.score_samples(frame), expected)


@pytest.mark.parametrize("fit_kind", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("loaded", [False, True])
def test_frames_with_other_columns_are_refused(fit_kind, kind, loaded, tmp_path):
    data = dict(zip("abc", table().T, strict=True))
    density = QuARDensity(**SMALL).fit(fit_kind(data))
    if loaded:
        density.save(tmp_path / "m")
        density = QuARDensity.load(tmp_path / "m")

    density.score_samples(kind(data))
    for use in (density.score_samples, density.transform, density.score):
        with pytest.raises(ValueError, match="order"):
            use(kind({name: data[name] for name in "acb"}))
        with pytest.raises(ValueError, match=r"(?s)missing.*c"):
            use(kind({name: data[name] for name in "ab"}))
        with pytest.raises(ValueError, match="unseen"):
            use(kind({**data, "d": data["a"]}))


def test_integer_and_boolean_columns():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "count": rng.poisson(4, size=300),
            "flag": rng.random(300) < 0.3,
            "value": rng.normal(size=300),
        }
    )
    density = QuARDensity(**SMALL).fit(frame)
    samples = density.sample(100, random_state=0)

    assert np.array_equal(samples[:, :2], np.round(samples[:, :2]))
    assert np.isfinite(density.score_samples(frame)).all()
    assert any("count" in line for line in density.columns_.describe())
    assert QuARDensity(**SMALL | {"discrete": "none"}).fit(frame).columns_.columns[0].step is None


# Contexts


def test_context():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(800, 1)) * 10 + 3
    X = c / 10 + 0.1 * rng.normal(size=(800, 1))
    density = QuARDensity(**SMALL | {"max_epochs": 30}).fit(X, context=c)

    right, wrong = density.score(X, context=c), density.score(X, context=c[::-1].copy())
    assert right > wrong + 800
    samples = density.sample(200, random_state=0, context=[3.0])
    assert abs(samples.mean() - 0.3) < 0.1
    assert density.sample(800, random_state=0, context=c).shape == (800, 1)
    assert np.corrcoef(density.sample(800, context=c)[:, 0], c[:, 0])[0, 1] > 0.9
    Z = density.transform(X, context=c)
    assert np.allclose(density.inverse_transform(Z, context=c), X, rtol=1e-9, atol=1e-9)
    one = density.score_samples(X[:5], context=c[:1])
    assert np.allclose(one, density.score_samples(X[:5], context=np.repeat(c[:1], 5, 0)))


def test_context_mistakes():
    X, c = table(), np.random.default_rng(0).normal(size=(200, 2))
    density = QuARDensity(**SMALL).fit(X, context=c)
    plain = QuARDensity(**SMALL).fit(X)

    for use in (density.score_samples, density.transform, density.inverse_transform):
        with pytest.raises(ValueError, match="needs context"):
            use(X)
    with pytest.raises(ValueError, match="needs context"):
        density.sample(3)
    for bad in (c[:7], c[:, :1], np.ones((200, 3)), np.ones((2, 200, 2)), [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="context"):
            density.score_samples(X, context=bad)
    with pytest.raises(ValueError, match="without context"):
        plain.score_samples(X, context=c)
    with pytest.raises(ValueError, match="one row for each"):
        QuARDensity(**SMALL).fit(X, context=c[:5])
    holes = c.copy()
    holes[16, 1] = np.nan
    for use in (density.score_samples, QuARDensity(**SMALL).fit):
        with pytest.raises(ValueError, match=r"(?s)c1.*row 17"):
            use(X, context=holes)
    with pytest.raises(ValueError, match=r"season.*text"):
        QuARDensity(**SMALL).fit(X, context=pl.DataFrame({"season": ["dry"] * 200}))


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_context_frames_go_by_name(kind):
    X, c = table(), np.random.default_rng(0).normal(size=(200, 2))
    density = QuARDensity(**SMALL).fit(X, context=kind({"p": c[:, 0], "q": c[:, 1]}))
    expected = density.score_samples(X, context=kind({"p": c[:, 0], "q": c[:, 1]}))

    other_order = kind({"q": c[:, 1], "p": c[:, 0]})
    assert np.array_equal(density.score_samples(X, context=other_order), expected)
    with pytest.raises(ValueError, match="'q'"):
        density.score_samples(X, context=kind({"p": c[:, 0]}))


# Bounds


def test_bounds():
    rng = np.random.default_rng(0)
    X = np.stack((rng.exponential(size=300), rng.uniform(2, 3, size=300)), axis=1)
    density = QuARDensity(**SMALL, bounds={"x0": (0, None), "x1": (2, 3)}).fit(X)
    samples = density.sample(2000, random_state=0)

    assert (samples[:, 0] > 0).all()
    assert ((samples[:, 1] > 2) & (samples[:, 1] < 3)).all()
    outside = density.score_samples([[-1.0, 2.5], [1.0, 3.5], [1.0, 2.5]])
    assert np.array_equal(np.isneginf(outside), [True, True, False])
    with pytest.raises(ValueError, match="nothing"):
        QuARDensity(**SMALL, bounds={"nothing": (0, 1)}).fit(X)
    with pytest.raises(ValueError, match="x0"):
        QuARDensity(**SMALL, bounds={"x0": (1, None)}).fit(X)


# What is refused


def with_value(value, row=16, column=1):
    X = table()
    X[row, column] = value

    return X


REFUSED = {
    "NaN": (with_value(np.nan), r"'x1' contains NaN in row 17"),
    "infinity": (with_value(-np.inf), r"'x1' contains infinity in row 17"),
    "constant": (np.stack((table()[:, 0], np.full(200, 3.0)), 1), "(?i)x1.*(same|constant)"),
    "one row": (table()[:1], "1 sample"),
    "three rows": (table()[:3], "at least 4 rows"),
    "no rows": (np.empty((0, 3)), "0 sample"),
    "no columns": (np.empty((10, 0)), "0 feature"),
    "one dimension": (table()[:, 0], "2D"),
    "three dimensions": (np.ones((10, 3, 2)), "dim 3"),
    "text": (
        pl.DataFrame({"a": [1.0] * 9, "city": ["x"] * 9}),
        "'city' of X holds text.*not numbers",
    ),
    "text in pandas": (pd.DataFrame({"a": [1.0] * 9, "city": ["x"] * 9}), "'city'.*not numbers"),
    "dates": (
        pd.DataFrame({"a": np.arange(9.0), "when": pd.date_range("2020", periods=9)}),
        "'when'.*not numbers",
    ),
    "text in an array": (np.array([["a", "b"]] * 9), "'x0' of X holds text"),
    "complex": (table() * 1j, "(?i)complex"),
    "missing in a frame": (
        pl.DataFrame({"a": [1.0, None, 2.0, 3.0, 4.0], "b": [1.0, 5, 2, 3, 4]}),
        "'a' contains NaN in row 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_fitting(name):
    X, match = REFUSED[name]
    density = QuARDensity(**SMALL)
    with pytest.raises(ValueError, match=match):
        density.fit(X)
    with pytest.raises(NotFittedError):
        density.score_samples(table())


@pytest.mark.parametrize("name", ["NaN", "infinity"])
def test_refused_when_scoring(name, fitted):
    X, match = REFUSED[name]
    for use in (fitted.score_samples, fitted.transform, fitted.score):
        with pytest.raises(ValueError, match=match):
            use(X)


def test_refused_noise(fitted):
    for bad in (np.ones((3, 2)), np.ones(3), np.full((1, 3), np.nan)):
        with pytest.raises(ValueError, match=r"shape|NaN"):
            fitted.inverse_transform(bad)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="n_samples"):
            fitted.sample(bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transforms", 0),
        ("hidden_features", ()),
        ("norm", "spectral"),
        ("order", "shuffled"),
        ("activation", "relu"),
        ("sigma", 1.0),
        ("mix", "qr"),
        ("base", "cauchy"),
        ("start", "mixture"),
        ("batch_size", 0),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("max_epochs", 0),
        ("minutes", -1.0),
        ("minutes", 0),
        ("patience", -1),
        ("validation_fraction", 0.0),
        ("validation_fraction", 0.9),
        ("ema", 1.5),
        ("clip", -1.0),
        ("weight_decay", -1.0),
        ("device", "tpu9"),
        ("discrete", ["nothing"]),
        ("discrete", "sometimes"),
        ("tails", "fat"),
    ],
)
def test_refused_settings(name, value):
    with pytest.raises(ValueError, match=f"{name}|nothing|{value}"):
        QuARDensity(**SMALL | {name: value}).fit(table())


def test_not_fitted(tmp_path):
    density = QuARDensity()
    for use in (
        density.score_samples,
        density.transform,
        density.score,
        density.inverse_transform,
    ):
        with pytest.raises(NotFittedError):
            use(table())
    with pytest.raises(NotFittedError):
        density.sample()
    with pytest.raises(NotFittedError):
        density.save(tmp_path / "m")


# Shapes


def test_four_rows_are_enough():
    density = QuARDensity(**SMALL).fit(table()[:4])

    assert np.isfinite(density.score_samples(table())).all()


def test_one_column():
    X = table()[:, :1]
    density = QuARDensity(**SMALL).fit(X)

    assert density.sample(5).shape == (5, 1)
    assert np.allclose(density.inverse_transform(density.transform(X)), X)


def test_two_hundred_columns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 20)) @ rng.normal(size=(20, 200)) + 0.1 * rng.normal(size=(500, 200))
    density = QuARDensity(max_epochs=1, random_state=0).fit(X)

    assert np.isfinite(density.score_samples(X)).all()
    assert density.sample(20, random_state=0).shape == (20, 200)


def test_repeated_rows_and_huge_units():
    X = np.tile(table(20), (10, 1)) * 1e12
    density = QuARDensity(**SMALL).fit(X)

    assert np.isfinite(density.score_samples(X)).all()
    assert np.isfinite(density.sample(50, random_state=0)).all()


def test_far_away_rows_are_unlikely_and_finite(fitted):
    scores = fitted.score_samples(table().mean(0) + np.array([[0.0], [1e3], [1e9]]))

    assert np.isfinite(scores).all()
    assert (np.diff(scores) < 0).all()


def test_read_only_and_fortran_arrays(fitted):
    X = table()
    expected = fitted.score_samples(X)
    X.flags.writeable = False

    assert np.array_equal(fitted.score_samples(X), expected)
    assert np.array_equal(fitted.score_samples(np.asfortranarray(X)), expected)
    assert np.array_equal(fitted.score_samples(X.tolist()), expected)
    QuARDensity(**SMALL | {"max_epochs": 1}).fit(X, context=X[:, :1])
