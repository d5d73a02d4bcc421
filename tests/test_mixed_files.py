"""Files of tables of any kinds: the same as the frames they were written from."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarflow.data import csv_source
from quarflow.data.columns import Columns
from quarflow.data.decode import decode
from quarflow.data.encode import encode
from quarflow.data.mixed_files import drop_holes, iter_frames, read_frame
from quarflow.data.schema_file import join_kinds, read_schema
from quarflow.data.source import TableError
from quarflow.data.table_writer import TableWriter

WORDS = st.sampled_from(["good", "very good", "fair, enough", 'a "b"', "ü", "True story", "1a"])
COLUMNS = {
    "word": WORDS,
    "flag": st.booleans(),
    "size": st.floats(-1e6, 1e6),
    "count": st.integers(-5, 5).map(float),
    "day": st.dates(datetime.date(1990, 1, 1), datetime.date(2030, 1, 1)),
    "moment": st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2030, 1, 1)),
}
TYPES = {"word": pl.String, "flag": pl.Boolean, "day": pl.Date, "moment": pl.Datetime("us")}


@st.composite
def tables(draw):
    rows = draw(st.integers(3, 12))
    held = {
        name: draw(st.lists(st.none() | kind, min_size=rows, max_size=rows))
        for name, kind in COLUMNS.items()
    }
    for name, kind in COLUMNS.items():
        held[name][0] = draw(kind)
    return pl.DataFrame(
        {name: pl.Series(v, dtype=TYPES.get(name, pl.Float64)) for name, v in held.items()}
    )


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@settings(max_examples=25, deadline=None)
@given(frame=tables())
def test_files_are_the_frames_they_were_written_from(ending, frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"table{ending}"
    with TableWriter(path) as writer:
        writer.write(dict(zip(frame.columns, frame.get_columns(), strict=True)))
    read, own = read_frame(path), encode(frame)
    found = encode(read)

    assert np.array_equal(found.values, own.values, equal_nan=True)
    assert found.drafts == own.drafts
    columns = Columns(own.drafts)
    (piece,) = iter_frames(path, columns)
    assert np.array_equal(encode(piece.frame, columns).values, own.values, equal_nan=True)
    assert pl.DataFrame(decode(own.values, columns)).equals(read)


def test_npz_columns_of_text_and_dates(tmp_path):
    path = tmp_path / "table.npz"
    days = np.array(["2024-01-01", "2024-01-05", "NaT"], dtype="datetime64[D]")
    np.savez(path, word=np.array(["a", "b", "a"]), day=days, x=np.array([1.0, np.nan, 3.0]))
    found = encode(read_frame(path))

    assert [column.kind for column in found.drafts] == ["category", "date", "number"]
    assert found.values[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(found.values[[2, 1], [1, 2]]).all()


def written(tmp_path, lines, name="t.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_what_a_column_of_a_text_file_holds_may_show_late(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "BLOCK", 64)
    rows = [f"{i},{i % 2 == 0},2024-01-{i + 1:02}" for i in range(20)]
    path = written(tmp_path, ["a,b,c", *rows, "x,maybe,2024-02-01 12:00", "NA,,?"])
    frame = read_frame(path)

    assert frame["a"].to_list() == [*map(str, range(20)), "x", None]
    assert frame["b"].to_list()[-3:] == ["False", "maybe", None]
    assert frame["c"].dtype == pl.Datetime("us")
    assert frame["c"][20] == datetime.datetime(2024, 2, 1, 12)
    kinds = {"a": "category", "b": "category"}
    assert read_frame(path, ["c", "a"], kinds).columns == ["c", "a"]


def test_digits_of_a_category_are_kept(tmp_path):
    path = written(tmp_path, ["zip,n", "01067,1", "10115,2", "10115,1"])
    assert read_frame(path, kinds={"zip": "category"})["zip"].to_list() == [
        "01067", "10115", "10115",
    ]  # fmt: skip
    found = read_frame(path, kinds={"n": "category"})
    assert found["n"].to_list() == [1, 2, 1]
    columns = Columns(encode(found, kinds={"n": "category"}).drafts)
    assert columns.columns[1].categories == (1, 2)
    (piece,) = iter_frames(path, columns)
    assert encode(piece.frame, columns).values[:, 1].tolist() == [0.0, 1.0, 0.0]


def test_rows_of_a_text_file_in_pieces_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "BLOCK", 64)
    columns = Columns(encode(pl.DataFrame({"w": ["a", "b"], "x": [1.0, 2.0]})).drafts)
    rows = [f"{i},{'ab'[i % 2]},note {i}" for i in range(50)]
    path = written(tmp_path, ["x,w,note", *rows, "7,c,last"])
    pieces = list(iter_frames(path, columns, keep=True))

    assert len(pieces) > 3
    assert [piece.start for piece in pieces][1] == len(pieces[0].frame)
    assert pl.concat([piece.others for piece in pieces])["note"][-1] == "last"
    last = pieces[-1]
    with pytest.raises(ValueError, match="holds 'c' in row 51, which is none of its categories"):
        encode(last.frame, columns, start=last.start)
    bad = written(tmp_path, ["x,w", *["1,a"] * 40, "one,b"])
    with pytest.raises(TableError, match="column 'x' holds 'one' in row 41, which is not a num"):
        list(iter_frames(bad, columns))


@pytest.mark.parametrize(
    ("lines", "kinds", "said"),
    [
        (["a,b", "1,2"], {"c": "category"}, "kinds names the column 'c', but the columns are"),
        (["a", "2024-01-01", "soon"], {"a": "date"}, "column 'a' holds 'soon' in row 2, which"),
        (["a", "1", "x"], {"a": "number"}, "column 'a' holds 'x' in row 2, which is not a numb"),
        (["a", "2024-01-01 10:00", "2024-01-01T10:00Z"], {"a": "date"}, "which is no date"),
        (["a"], None, "has no rows"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, lines, kinds, said):
    with pytest.raises(ValueError, match=said):
        read_frame(written(tmp_path, lines), kinds=kinds)


def test_many_labels_are_refused(tmp_path):
    path = written(tmp_path, ["id", *(f"user{i}" for i in range(100_000))])
    with pytest.raises(ValueError, match=r"holds 100,000 different labels .* too many for a cat"):
        encode(read_frame(path))


def test_rows_with_holes_can_be_left_out(tmp_path):
    path = written(tmp_path, ["a,w", "1,x", ",y", "inf,x", "4,", "5,x"])
    assert drop_holes(read_frame(path)).rows() == [(1.0, "x"), (5.0, "x")]
    assert drop_holes(pl.DataFrame({"^a.*$": [1.0, np.nan], "w": ["x", "y"]})).rows() == [(1, "x")]


def test_schema_files_and_options_say_the_same(tmp_path):
    said = {"zip": "category", "angle": {"kind": "periodic", "period": 360}}
    toml = written(
        tmp_path, ['zip = "category"', "[angle]", 'kind = "periodic"', "period = 360"], "s.toml"
    )
    plain = written(tmp_path, [json.dumps(said)], "s.json")

    assert read_schema(toml) == read_schema(plain) == said
    assert join_kinds(["zip=category", "angle=periodic:360"], None) == said
    assert join_kinds(["zip=number", "t=date:day,year"], toml) == {
        **said,
        "zip": "number",
        "t": {"kind": "date", "cyclic": ["day", "year"]},
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["zip"], "--kind takes a column and its kind, such as --kind zip=category, not 'zip'"),
        (["zip=kategory"], "cannot be of the kind 'kategory'; the kinds are number, category"),
        (["a=periodic"], "a periodic column needs its period"),
        (["a=periodic:full"], "the period must be a number, such as periodic:360, not 'full'"),
        (["a=date:noon"], "the cyclic parts are day, week, year"),
        (["a={kind}"], "is no valid JSON"),
        (["a=number", "a=date"], "--kind names the column 'a' twice"),
        (["a=category:3"], "after category: nothing can follow"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        join_kinds(options, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("s.yaml", "", "a schema file ends in .toml or .json"),
        ("s.toml", "a = ", "is no valid TOML"),
        ("s.json", "[1]", "must hold columns and their kinds"),
        ("s.json", '{"a": "kategory"}', "cannot be of the kind 'kategory'"),
        ("gone.toml", None, "There is no file"),
    ],
)
def test_bad_schema_files_are_refused_in_a_sentence(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_schema(path)
