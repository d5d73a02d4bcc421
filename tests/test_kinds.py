"""Columns of any kind: what they are found to be, as numbers, and back as they were."""

import datetime
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quarflow.data.columns import Column, Columns
from quarflow.data.decode import decode, decode_frame
from quarflow.data.encode import encode
from quarflow.data.parts import Parts

BERLIN = datetime.timezone(datetime.timedelta(hours=2))
DATES = st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1))
MOMENTS = st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2050, 1, 1))
VALUES = {
    "text": st.text(max_size=5),
    "flags": st.booleans(),
    "dates": DATES,
    "moments": MOMENTS,
    "durations": st.timedeltas(datetime.timedelta(-1000), datetime.timedelta(1000)),
    "numbers": st.floats(allow_nan=False, allow_infinity=False),
    "whole": st.integers(-(2**53), 2**53),
}


def values_of(kind):
    return st.lists(st.none() | VALUES[kind], min_size=1, max_size=30).filter(
        lambda held: any(value is not None for value in held)
    )


def there_and_back(data):
    found = encode(data)
    return decode(found.values, Columns(found.drafts))


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("of", ["polars", "pandas objects", "numpy objects", "lists"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_values_come_back_as_they_were(kind, of, data):
    values = data.draw(values_of(kind))
    objects = np.empty((len(values), 1), dtype=object)
    objects[:, 0] = values
    table = {
        "polars": lambda: pl.DataFrame({"a": values}),
        "pandas objects": lambda: pd.DataFrame({"a": pd.Series(values, dtype=object)}),
        "numpy objects": lambda: objects,
        "lists": lambda: [[value] for value in values],
    }[of]()

    if of == "lists" and kind == "flags" and None not in values:
        values = [*map(float, values)]  # an array of flags only is one of numbers

    (series,) = there_and_back(table).values()
    assert series.to_list() == values
    if kind in ("text", "flags") and of != "lists":
        assert all(type(a) is type(b) for a, b in zip(series.to_list(), values, strict=True))


TYPED = {
    "categorical": lambda: pl.Series(["b", "a", None, "b"], dtype=pl.Categorical),
    "enum": lambda: pl.Series(["b", "a", None, "b"], dtype=pl.Enum(["b", "c", "a"])),
    "boolean": lambda: pl.Series([True, None, False, True]),
    "decimal": lambda: pl.Series([Decimal("1.25"), None, Decimal("-3.5"), Decimal(0)]),
    "int8": lambda: pl.Series([1, None, 3, -4], dtype=pl.Int8),
    "uint64": lambda: pl.Series([1, None, 3, 2**50], dtype=pl.UInt64),
    "float32": lambda: pl.Series([1.5, None, 3, 4], dtype=pl.Float32),
    "date": lambda: pl.Series([datetime.date(2024, 2, 29), None, datetime.date(1999, 1, 1)] * 2),
    "datetime ms": lambda: pl.Series(
        [datetime.datetime(2024, 2, 29, 12), None], dtype=pl.Datetime("ms")
    ),
    "zoned": lambda: pl.Series(
        [datetime.datetime(2024, 7, 1, 12), None, datetime.datetime(2024, 1, 1)]
    ).dt.replace_time_zone("Europe/Berlin"),
    "duration ms": lambda: pl.Series(
        [datetime.timedelta(hours=-1), None], dtype=pl.Duration("ms")
    ),
}


@pytest.mark.parametrize("name", TYPED)
def test_columns_of_polars_types_come_back(name):
    series = TYPED[name]()
    found = there_and_back(pl.DataFrame({"a": series}))["a"]

    if series.dtype.is_numeric():
        assert found.to_list() == [None if v is None else float(v) for v in series]
    else:
        assert found.to_list() == series.to_list()


PANDAS = {
    "category of text": lambda: pd.Categorical(["b", None, "a"], categories=["b", "c", "a"]),
    "category of numbers": lambda: pd.Categorical([3, None, 1]),
    "category of flags": lambda: pd.Categorical([True, None, False]),
    "string": lambda: pd.array(["x", None, "y"], dtype="string"),
    "boolean": lambda: pd.array([True, None, False], dtype="boolean"),
    "Int64": lambda: pd.array([1, None, 3], dtype="Int64"),
    "Float32": lambda: pd.array([1.5, None, 3], dtype="Float32"),
    "datetime64[ns]": lambda: pd.to_datetime(["2024-02-29 12:30:01", None, "1999-01-01 00:00:00"]),
    "datetime64[s]": lambda: pd.array(["2024-02-29", "NaT", "1999-01-01"], dtype="datetime64[s]"),
    "zoned": lambda: pd.to_datetime(["2024-07-01", None, "2024-01-01"]).tz_localize(
        "Europe/Berlin"
    ),
    "timedelta": lambda: pd.to_timedelta([1.5, None, -3], unit="s"),
    "timestamps as objects": lambda: pd.Series(
        [pd.Timestamp("2024-02-29 01:00"), pd.NaT, pd.Timestamp("2020-01-01")], dtype=object
    ),
}


@pytest.mark.parametrize("name", PANDAS)
def test_columns_of_pandas_types_come_back_in_a_frame_of_pandas(name):
    frame = pd.DataFrame({"a": PANDAS[name]()}, index=[5, 7, 9])
    found = encode(frame)
    back = decode_frame(found.values, Columns(found.drafts), frame)

    assert back.index.tolist() == [5, 7, 9]
    for old, new in zip(frame["a"], back["a"], strict=True):
        assert (pd.isna(old) and pd.isna(new)) or old == new


def test_numpy_text_and_dates_are_columns():
    found = encode(np.array([["x", "u"], ["y", "v"], ["x", "v"]]))
    assert [column.categories for column in found.drafts] == [("x", "y"), ("u", "v")]
    found = encode(np.array([["2024-01-03"], ["2024-01-01"], ["NaT"]], dtype="datetime64[D]"))
    assert found.drafts[0].epoch == "2024-01-01"
    assert np.array_equal(found.values[:, 0], [2.0, 0.0, np.nan], equal_nan=True)


def test_what_is_found_is_said_in_sentences():
    frame = pl.DataFrame(
        {
            "cut": ["good", "fair", "good", "ideal"] * 25,
            "sold": [datetime.date(2024, 1, 1 + i % 28) for i in range(100)],
            "price": np.random.default_rng(0).normal(size=100),
        }
    )
    said = encode(frame, kinds={"sold": {"cyclic": ["week"]}}).fit().describe()

    assert said[0] == (
        "cut: is a category of 3 ('fair', 'good', 'ideal'), so its score is a probability."
    )
    assert said[1].startswith(
        "sold: holds dates, as days since 2024-01-01; others may depend on its time of week;"
    )


def test_texts_that_are_dates_are_dates():
    for texts in (
        ["2024-02-29", "2023-01-05", None],
        ["2024-02-29 12:30", "2024-03-01T01:02:03.5", None],
        ["2024-02-29T12:30:00Z", "2024-03-01 01:02+01:00", None],
    ):
        (draft,) = encode(pl.DataFrame({"t": texts})).drafts
        assert draft.kind == "date", texts
    days = encode(
        pl.DataFrame({"t": ["29.02.2024", "01.03.2024"]}), kinds={"t": {"format": "%d.%m.%Y"}}
    )
    assert days.values[:, 0].tolist() == [0.0, 1.0]
    again = encode(pl.DataFrame({"t": ["02.03.2024"]}), Columns(days.drafts))
    assert again.values.tolist() == [[2.0]]


def test_a_category_on_request_has_labels_of_its_own_type():
    frame = pl.DataFrame({"zip": [10115, 20095, 10115, 80331], "x": [1.0, 2.0, 3.0, 4.0]})
    found = encode(frame, kinds={"zip": "category"})

    assert found.drafts[0].categories == (10115, 20095, 80331)
    assert decode(found.values, Columns(found.drafts))["zip"].to_list() == frame["zip"].to_list()


def test_labels_that_training_did_not_have():
    columns = Columns(encode(pl.DataFrame({"a": ["x", "y"]})).drafts)
    new = pl.DataFrame({"a": ["y", "z", None]})

    with pytest.raises(ValueError, match="Column 'a' of X holds 'z' in row 2, which is none of"):
        encode(new, columns)
    assert encode(new, columns, unseen="impossible").values[:2, 0].tolist() == [1.0, -1.0]
    assert np.isnan(encode(new, columns, unseen="missing").values[1:, 0]).all()


@pytest.mark.parametrize(
    ("frame", "kinds", "said"),
    [
        ({"a": [str(i) + "x" for i in range(2000)]}, None, "2,000 different labels"),
        ({"a": ["x", "y"]}, {"b": "category"}, "kinds names the column 'b', but the columns are"),
        ({"a": ["x", "y"]}, {"a": "kategory"}, "cannot be of the kind 'kategory'; the kinds are"),
        ({"a": ["x", "y"]}, {"a": "periodic"}, "a periodic column needs its period"),
        ({"a": ["x", "y"]}, {"a": {"kind": "date"}}, "'x' in row 1, which is no date; correct it"),
        ({"a": ["x", "y"]}, {"a": "number"}, "'x' in row 1, which is not a number"),
        ({"a": [1.0, 2.0]}, {"a": {"perod": 3}}, "has no setting 'perod'; there are kind"),
        ({"a": [1.0, 2.0]}, {"a": 3}, "needs a kind, such as 'category'"),
        ({"a": [datetime.time(1), datetime.time(2)]}, None, "times of day"),
        ({"a": ["2024-01-01"] * 600 + [f"2024-01-{i}" for i in range(1100)]}, None, "is none"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(frame, kinds, said):
    with pytest.raises(ValueError, match=said):
        encode(pl.DataFrame(frame), kinds=kinds)


def test_columns_are_fitted_to_the_values_that_are_there():
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(400, 2))
    holed = x.copy()
    holed[rng.random((400, 2)) < 0.3] = np.nan
    names = ["a", "b"]
    drafts = [Column(name=name) for name in names]
    fitted = Columns.fit(holed, names, drafts=drafts)

    for j, name in enumerate(names):
        there = holed[~np.isnan(holed[:, j]), j][:, None]
        assert fitted.columns[j].mean == pytest.approx(Columns.fit(there, [name]).columns[0].mean)
    assert Columns.fit(x, names, drafts=drafts) == Columns.fit(x, names)
    with pytest.raises(ValueError, match="holds no values"):
        Columns.fit(np.full((5, 1), np.nan), ["a"], drafts=drafts[:1])


def test_logs_of_derivatives_leave_holes_out():
    x = torch.tensor(np.random.default_rng(0).gamma(2.0, size=(300, 3)))
    transform = Columns.fit(
        x.numpy(), ["a", "b", "c"], bounds={"b": (0, None), "c": (0, 99)}
    ).transform()
    z, ladj = transform.call_and_ladj(x)
    u, logs = transform.call_and_logs(x)
    assert torch.equal(u, z)
    assert torch.equal(logs.sum(-1), ladj)

    holed = x.clone().requires_grad_()
    with torch.no_grad():
        holed[::2, 1] = torch.nan
    u, logs = transform.call_and_logs(holed)
    assert torch.equal(u[:, 0], z[:, 0])
    assert (u[::2, 1] == 0).all()
    assert (logs[::2, 1] == 0).all()
    (u.sum() + logs.sum()).backward()
    assert holed.grad.isfinite().all()


# --- parts ---------------------------------------------------------------------------------


def mixed_columns():
    return (
        Column(name="size"),
        Column(name="color", kind="category", categories=("D", "E", "F")),
        Column(name="rain", point_masses=((0.0, 0.5), (1.0, 0.1))),
        Column(name="is_a", one_hot=0),
        Column(name="is_b", one_hot=0),
        Column(name="is_c", one_hot=0),
        Column(name="day", kind="date", time_unit="day", epoch="2024-01-01"),
    )


def mixed_rows(n=50, seed=0, holes=0.2):
    rng = np.random.default_rng(seed)
    rain = rng.choice([0.0, 1.0, 2.5, 3.5], n)
    block = np.eye(3)[rng.integers(3, size=n)]
    rows = np.column_stack(
        [rng.normal(size=n), rng.integers(3, size=n), rain, block, rng.integers(99, size=n)]
    )
    gone = rng.random((n, 7)) < holes
    gone[:, 3:6] = gone[:, 3:4]
    return torch.tensor(np.where(gone, np.nan, rows))


def test_rows_are_parts_and_parts_are_rows():
    parts, x = Parts(mixed_columns()), mixed_rows()
    numbers, codes = parts.split(x)

    assert parts.numbers == [0, 2, 6]
    assert parts.sizes == [3, 3, 3]
    assert parts.owner == [1, 2, 3]
    assert parts.switch == [-1, 1, -1]
    assert torch.equal(parts.join(numbers, codes).nan_to_num(-9.0), x.nan_to_num(-9.0))
    mass = (x[:, 2] == 0) | (x[:, 2] == 1)
    assert numbers[mass, 1].isnan().all()
    assert (codes[x[:, 2] == 1, 1] == 1).all()
    assert (codes[x[:, 2] > 1, 1] == 2).all()
    assert not parts.impossible(x).any()


def test_masks_of_columns_are_masks_of_parts():
    parts, x = Parts(mixed_columns()), mixed_rows(holes=0)
    rng = np.random.default_rng(1)
    given = torch.tensor(rng.random((50, 7)) < 0.4)
    given[:, 3:6] = given[:, 3:4]
    _, codes = parts.split(x)
    masks = parts.masks(given, ~given, codes)

    assert torch.equal(masks.given_codes, given[:, [1, 2, 3]])
    assert torch.equal(masks.modelled_codes, ~given[:, [1, 2, 3]])
    alive = codes[:, 1] == 2
    assert torch.equal(masks.given_numbers[:, 1], given[:, 2] & alive)
    assert torch.equal(masks.modelled_numbers[:, 1], ~given[:, 2] & alive)
    assert torch.equal(parts.masks(given, ~given).modelled_numbers[:, 1], ~given[:, 2])
    given[0, 3] = not given[0, 4]
    with pytest.raises(ValueError, match="'is_a', 'is_b', 'is_c' are one category"):
        parts.masks(given, ~given)


def test_impossible_rows_and_tidy_blocks():
    parts, x = Parts(mixed_columns()), mixed_rows(holes=0)
    x[0, 1], x[1, 3:6], x[2, 3:6] = -1.0, 0.0, torch.tensor([1.0, 1.0, 0.0])
    x[3, 3:6] = torch.tensor([torch.nan, 1.0, torch.nan])
    x[4, 3:6] = torch.tensor([torch.nan, 0.0, torch.nan])

    assert parts.impossible(x).nonzero()[:, 0].tolist() == [0, 1, 2]
    modelled = torch.ones_like(x, dtype=torch.bool)
    modelled[:, 1] = False
    assert parts.impossible(x, modelled).nonzero()[:, 0].tolist() == [1, 2]
    tidy = parts.tidy(x)
    assert tidy[3, 3:6].tolist() == [0.0, 1.0, 0.0]
    assert tidy[4, 3:6].isnan().all()
    assert torch.equal(tidy[5:], x[5:])


def test_point_masses_and_blocks_are_found_in_mixed_tables_only():
    rng = np.random.default_rng(0)
    n = 2000
    frame = pd.DataFrame(
        {
            "rain": np.where(rng.random(n) < 0.6, 0.0, rng.gamma(2.0, size=n)),
            **{f"is_{k}": (rng.integers(3, size=n) == 0).astype(int) for k in "x"},
        }
    )
    kind = rng.integers(3, size=n)
    for k in range(3):
        frame[f"one{k}"] = (kind == k).astype(int)

    plain = encode(frame)
    assert plain.plain
    columns = plain.fit()
    assert columns.one_hot == ()
    assert not any(column.point_masses for column in columns.columns)

    frame["word"] = rng.choice(["a", "b"], n)
    columns = encode(frame).fit()
    assert columns.one_hot == ((2, 3, 4),)
    ((value, share),) = columns.columns[0].point_masses
    assert value == 0
    assert share == (frame["rain"] == 0).mean()
    assert not columns.columns[1].point_masses
    assert "is often exactly 0 (" in columns.describe()[0]


# --- periodic ------------------------------------------------------------------------------


def circle(seed=0, n=3000):
    angles = np.random.default_rng(seed).vonmises(3.0, 2.0, n)
    return pl.DataFrame({"angle": np.degrees(angles)})


def test_periodic_values_are_folded_and_unrolled():
    found = encode(circle(), kinds={"angle": {"kind": "periodic", "period": 360}})
    assert found.values.min() >= 0
    assert found.values.max() < 360
    columns = found.fit()
    (column,) = columns.columns
    assert column.lower < column.upper == pytest.approx(column.lower + 1.25 * 360)
    x = torch.tensor(found.values)
    y = columns.dequantise(x, torch.Generator().manual_seed(0))

    assert (y > column.lower).all()
    assert (y < column.upper).all()
    assert torch.allclose(columns.snap(y), x, atol=1e-9)


def test_the_density_on_the_circle_is_normalised_and_has_no_seam():
    columns = encode(circle(), kinds={"angle": {"kind": "periodic", "period": 360}}).fit()
    cells, transform = columns.cells(), columns.transform()

    def log_prob(x):
        z, ladj = transform.call_and_ladj(x)
        return ladj - 0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)

    x = torch.linspace(0, 360, 20001, dtype=torch.float64)[:-1, None]
    assert cells.needed(x).all()
    density = cells.average(x, log_prob).exp()
    assert float(density.sum() * 360 / 20000) == pytest.approx(1.0, abs=1e-6)
    around = torch.cat([density, density[:1]])
    assert float(around.diff().abs().max()) < 5e-3 * float(density.max())
    seam = columns.columns[0].lower + 45
    ends = torch.tensor([[seam - 1e-9], [seam + 1e-9]])
    low, high = cells.average(ends, log_prob).tolist()
    assert low == pytest.approx(high, abs=1e-6)


def test_sines_and_cosines_of_angles_and_of_the_time_of_day():
    hour = Column(
        name="t", kind="date", time_unit="hour", epoch="2024-01-01T00:00:00", cyclic=("day",)
    )
    angle = Column(name="a", kind="periodic", period=360.0, lower=-45.0, upper=405.0)
    parts = Parts([Column(name="x"), hour, angle])
    found = parts.circles(torch.tensor([[1.0, 6.0, 90.0], [1.0, torch.nan, 450.0]]))

    assert parts.feature_owner == [1, 1, 2, 2]
    assert torch.allclose(
        found, torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 0]], dtype=torch.float64), atol=1e-12
    )


# --- cells of some of the columns ----------------------------------------------------------


def test_cells_of_the_modelled_columns_are_those_of_a_table_of_them():
    rng = np.random.default_rng(0)
    x = np.column_stack(
        [rng.poisson(2.0, 300), rng.normal(size=300), rng.normal(size=300).round(1)]
    )
    columns = Columns.fit(x, list("abc"))
    cells, transform = columns.cells(), columns.transform()
    modelled = torch.tensor(rng.random((300, 3)) < 0.5)

    def log_prob(at):
        u, logs = transform.call_and_logs(at)
        each = torch.where(modelled, logs - 0.5 * u**2 - 0.5 * math.log(2 * math.pi), 0.0)
        return each.sum(-1) + cells.log_measure(at, modelled)

    holed = torch.where(modelled, torch.tensor(x), torch.nan)
    found = cells.average(holed, log_prob, modelled)
    plain = torch.where(cells.needed(holed, modelled), found, log_prob(holed))
    alone = torch.zeros(300, dtype=torch.float64)
    for j in range(3):
        one = Columns((columns.columns[j],))
        own, of = one.cells(), one.transform()

        def log_one(at, of=of, own=own):
            z, ladj = of.call_and_ladj(at)
            return ladj - 0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) + own.log_measure(at)

        at = torch.tensor(x[:, j : j + 1])
        whole = own.average(at, log_one) if own.needed(at).all() else log_one(at)
        alone += torch.where(modelled[:, j], whole, 0.0)

    assert torch.allclose(plain, alone, atol=2e-3)
    every = torch.ones_like(modelled)
    assert torch.allclose(
        cells.log_measure(torch.tensor(x), every), cells.log_measure(torch.tensor(x))
    )
