"""What users hand over: one rule for arrays, tensors and frames, and the way out of the rest."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch

from quarflow import QuARDensity
from quarflow.data.values import read_values

SMALL = {"transforms": 2, "hidden_features": (8,), "max_epochs": 1, "random_state": 0}


def table(n=200, seed=0):
    """Three columns."""
    return np.random.default_rng(seed).normal(size=(n, 3))


@pytest.fixture(scope="module")
def fitted():
    return QuARDensity(**SMALL).fit(table())


def decimals(values):
    return [Decimal(repr(value)) for value in values]


SAME = {
    "objects": lambda X: X.astype(object),
    "decimals": lambda X: np.array([decimals(row) for row in X.tolist()], dtype=object),
    "lists of decimals": lambda X: [decimals(row) for row in X.tolist()],
    "tuples": lambda X: tuple(map(tuple, X.tolist())),
    "tensor": torch.tensor,
    "tensor with gradients": lambda X: torch.tensor(X, requires_grad=True),
    "list of tensors": lambda X: list(torch.tensor(X, requires_grad=True)),
    "masked without a mask": np.ma.array,
    "pandas by position": pd.DataFrame,
    "pandas": lambda X: pd.DataFrame(X, columns=list("abc")),
    "pandas objects": lambda X: pd.DataFrame(X, columns=list("abc")).astype(object),
    "pandas decimals": lambda X: pd.DataFrame(
        {name: decimals(column.tolist()) for name, column in zip("abc", X.T, strict=True)}
    ),
    "pandas nullable": lambda X: pd.DataFrame(X, columns=list("abc")).astype("Float64"),
    "pandas sparse": lambda X: pd.DataFrame(X, columns=list("abc")).astype(
        pd.SparseDtype("float")
    ),
    "polars": lambda X: pl.DataFrame(X, schema=list("abc"), orient="row"),
    "polars objects": lambda X: pl.DataFrame(
        [pl.Series(n, c.tolist(), dtype=pl.Object) for n, c in zip("abc", X.T, strict=True)]
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_numbers_of_any_kind_are_the_same_numbers(name):
    X = table(40)
    data = SAME[name](X)

    values = read_values(data)[0]
    assert np.array_equal(values, X)
    assert values.flags.c_contiguous
    assert values.flags.writeable
    context = read_values(data, "context")[0]
    assert np.array_equal(context, X)


def test_decimals_and_booleans_of_frames():
    frame = pl.DataFrame({"a": ["1.25", "-2.5"], "b": [True, False]})
    frame = frame.with_columns(pl.col("a").cast(pl.Decimal(10, 2)))

    assert read_values(frame)[0].tolist() == [[1.25, 1.0], [-2.5, 0.0]]
    assert read_values(pd.DataFrame({"b": [True, None]}, dtype="boolean"))[0][0, 0] == 1.0


def framed(kind, values):
    """A column 'k' of something, beside numbers."""
    if kind == "array":
        rows = [[number, value] for number, value in enumerate(values)]
        return np.array(rows, dtype=object)
    data = {"a": [float(i) for i in range(len(values))], "k": list(values)}
    return pd.DataFrame(data) if kind == "pandas" else pl.DataFrame(data, strict=False)


DAY = datetime.datetime(2020, 1, 1)
NO_NUMBERS = {
    "text": (["1", "2"], "holds text .*'1' in row 1.*encode"),
    "late text": ([1.0, None, "x"], "holds text .*'x' in row 3"),
    "dates": ([DAY, DAY + datetime.timedelta(1)], "holds dates.*days since a start"),
    "time spans": ([datetime.timedelta(1), datetime.timedelta(2)], "holds time spans.*seconds"),
    "lists": ([[1, 2], [3, 4]], "of type list, in row 1"),
    "complex": ([1j, 2.0], "Complex data not supported"),
    "too large": ([1, 10**400], "401 digits in row 2"),
}


@pytest.mark.parametrize("kind", ["array", "pandas", "polars"])
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused_alike(kind, name):
    values, match = NO_NUMBERS[name]
    if kind == "polars" and name in ("late text", "complex", "too large"):
        data = pl.DataFrame({"k": pl.Series("k", values, dtype=pl.Object)})
    else:
        data = framed(kind, values)
    if kind == "array" and name == "lists":
        data = np.empty((2, 2), dtype=object)
        data[:, 0], data[0, 1], data[1, 1] = 1.0, *values
    for use in (
        lambda: QuARDensity(**SMALL).fit(data),
        lambda: QuARDensity(**SMALL).fit(np.arange(4.0).reshape(2, 2), context=data),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            use()
        assert "'k'" in str(caught.value) or "1'" in str(caught.value)
        assert "\n" not in str(caught.value)


NO_TABLES = {
    "None": (None, "is None"),
    "file name": ("data.csv", "read the file first"),
    "bytes": (b"1,2", "read the file first"),
    "dict": ({"a": [1, 2]}, "make it a frame"),
    "list of dicts": ([{"a": 1}] * 9, "make it a frame"),
    "generator": ((row for row in table()), "give a list"),
    "lazy frame": (pl.DataFrame({"a": [1.0]}).lazy(), r"collect\(\)"),
    "sparse": (scipy.sparse.csr_array(np.eye(3)), r"toarray\(\)"),
    "sparse tensor": (torch.eye(3).to_sparse(), r"to_dense\(\)"),
    "meta tensor": (torch.ones(3, 2, device="meta"), "holds no values"),
    "complex tensor": (torch.ones(3, 2) * 1j, "Complex data not supported"),
    "structured": (np.zeros(9, dtype=[("a", float), ("b", float)]), "make it a frame"),
    "ragged": ([[1, 2], [3]], "Row 2 of .* has 1 values, but row 1 has 2"),
    "two levels": (
        pd.DataFrame(np.eye(2), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
        "several levels",
    ),
    "same name": (pd.DataFrame(np.eye(2), columns=["a", "a"]), "called 'a'; rename one"),
    "numbers as names": (pd.DataFrame(np.eye(2), columns=[1, 0]), "astype"),
    "categories": (pd.DataFrame({"k": pd.Categorical([1, 2])}), "'k' .* holds categories"),
    "enum": (
        pl.DataFrame({"k": pl.Series(["x"], dtype=pl.Enum(["x"]))}),
        "'k' .* holds categories",
    ),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_is_refused_with_the_way_out(name, fitted):
    data, match = NO_TABLES[name]
    uses = [QuARDensity(**SMALL).fit, fitted.score_samples, fitted.inverse_transform]
    if data is not None:
        uses.append(lambda data: QuARDensity(**SMALL).fit(table(), context=data))
    for use in uses:
        with pytest.raises(ValueError, match=match):
            use(data)


def test_masked_values_are_missing():
    X = table()
    with pytest.raises(ValueError, match="'x1' contains NaN in row 3"):
        QuARDensity(**SMALL).fit(np.ma.array(X, mask=np.arange(600).reshape(200, 3) == 7))


@pytest.mark.parametrize("names", [None, list("abc")])
def test_no_rows_give_no_results(fitted, names):
    empty = np.empty((0, 3))
    if names:
        fitted = QuARDensity(**SMALL).fit(pd.DataFrame(table(), columns=names))
        empty = pd.DataFrame(empty, columns=names)

    assert fitted.score_samples(empty).shape == (0,)
    assert fitted.score(empty) == 0
    assert fitted.transform(empty).shape == (0, 3)
    assert fitted.inverse_transform(np.empty((0, 3))).shape == (0, 3)


# Contexts


def test_a_constant_context_changes_nothing(tmp_path):
    X, c = table(), np.random.default_rng(0).normal(size=(200, 2))
    c[:, 0] = 7.3
    density = QuARDensity(**SMALL).fit(X, context=c)
    density.save(tmp_path / "m")
    density = QuARDensity.load(tmp_path / "m")

    scores = density.score_samples(X, context=c)
    assert np.isfinite(scores).all()
    assert density.context_columns_.describe()[0].startswith("c0: is 7.3 in every row")
    with pytest.warns(UserWarning, match=r"'c0' was 7\.3 in every row.*change nothing"):
        other = density.score_samples(X, context=c + np.array([5, 0]))
    assert np.array_equal(other, scores)
    assert not np.array_equal(density.score_samples(X, context=c + np.array([0, 1])), scores)
    with pytest.raises(ValueError, match="constant"):
        QuARDensity(**SMALL).fit(c)


def test_context_frames_with_more_columns_and_repeated_names():
    X, c = table(), np.random.default_rng(0).normal(size=(200, 2))
    density = QuARDensity(**SMALL).fit(X, context=pd.DataFrame(c, columns=["p", "q"]))

    more = pd.DataFrame({"q": c[:, 1], "city": "x", "p": c[:, 0]})
    assert np.array_equal(
        density.score_samples(X, context=more), density.score_samples(X, context=c)
    )
    twice = pd.concat([more, more], axis=1)
    with pytest.raises(ValueError, match="called 'p'; rename one"):
        density.score_samples(X, context=twice)
    for bad in ((c[0, 0], "x"), [[1j, 0]], np.ones((3, 2))):
        with pytest.raises(ValueError, match="context"):
            density.score_samples(X, context=bad)


# Bounds


@pytest.mark.parametrize(
    "bounds",
    [
        {"x0": ("0", None)},
        {"x0": (True, None)},
        {"x0": (0j, 1)},
        {"x0": "ab"},
        {"x0": None},
        {"x0": (10**400, None)},
        [(0, 1)],
        "x0",
    ],
)
def test_bounds_that_are_none(bounds):
    with pytest.raises(ValueError, match=r"[Bb]ounds"):
        QuARDensity(**SMALL, bounds=bounds).fit(table())
