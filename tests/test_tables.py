"""Reading and writing tables: right values, bounded memory, and messages that say what to do."""

import datetime
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarflow.data import csv_source, load_magic, magic_path
from quarflow.data.tables import (
    Table,
    TableError,
    TableWriter,
    column_names,
    iter_table,
    read_table,
)

NAMES = ["a", "b", "c"]
X = np.random.default_rng(0).normal(size=(1000, 3))


@pytest.fixture(params=[".csv", ".tsv", ".parquet", ".pq", ".npy", ".npz"])
def table(request, tmp_path):
    """The same table in each format."""
    path = tmp_path / f"table{request.param}"
    frame = pl.DataFrame(X, schema=NAMES)
    match request.param:
        case ".csv":
            frame.write_csv(path)
        case ".tsv":
            frame.write_csv(path, separator="\t")
        case ".npy":
            np.save(path, X)
        case ".npz":
            np.savez(path, X=X, names=np.array(NAMES))
        case _:
            frame.write_parquet(path, row_group_size=300)
    return path


def text(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, columns=None, **options):
    """The message with which reading is refused, whole and in a stream, one line of it."""
    with pytest.raises(TableError) as error:
        read_table(path, columns, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert str(path) in message or "asked for" in message
    return message


# --- the same numbers from every format ------------------------------------------------------


def test_read_and_stream_agree(table):
    whole = read_table(table)
    assert whole.names == (["x0", "x1", "x2"] if table.suffix == ".npy" else NAMES)
    assert whole.dropped == 0
    assert whole.values.dtype == np.float64
    assert whole.values.flags.c_contiguous
    np.testing.assert_array_equal(whole.values, X)
    for rows in (1, 7, 300, 999, 1000, 5000) if table.suffix != ".pq" else (64,):
        parts = list(iter_table(table, NAMES, chunk_rows=rows))
        assert [len(part.values) for part in parts[:-1]] == [rows] * (len(parts) - 1)
        assert all(part.names == NAMES for part in parts)
        np.testing.assert_array_equal(np.concatenate([p.values for p in parts]), X)


def test_columns_are_selected_by_name(table):
    if table.suffix == ".npy":
        np.testing.assert_array_equal(read_table(table, ["x2", "x0"]).values, X[:, [2, 0]])
        assert read_table(table, ["u", "v", "w"]).names == ["u", "v", "w"]  # by position
        message = refused(table, ["u", "v"])
        assert "no column names and 3 columns, where 2 are needed: 'u', 'v'" in message
    else:
        chosen = read_table(table, ["c", "a"])
        assert chosen.names == ["c", "a"]
        np.testing.assert_array_equal(chosen.values, X[:, [2, 0]])
        assert "has no column 'bb'; did you mean 'b'?" in refused(table, ["a", "bb"])
        assert "It has 'a', 'b', 'c'." in refused(table, ["zzz"])
        assert "did you mean 'b'?" in refused(table, ["B"])
        with pytest.raises(TableError, match="has no column 'zzz'"):
            iter_table(table, ["zzz"])  # at once, not when the first row is asked for
        assert column_names(table) == NAMES
    assert "asked for twice" in refused(table, ["a", "a"])
    with pytest.raises(TableError, match="at least one"):
        read_table(table, [])
    assert read_table(table, "x1" if table.suffix == ".npy" else "b").values.shape == (1000, 1)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_missing_values(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    values = X.copy()
    values[[16, 99], 1] = np.nan
    values[500, 2] = np.inf
    frame = pl.DataFrame(values, schema=NAMES)
    match suffix:
        case ".csv":
            frame.fill_nan(None).write_csv(path)
        case ".parquet":
            frame.fill_nan(None).write_parquet(path)
        case _:
            np.save(path, values)
    b, c = ("'x1'", "'x2'") if suffix == ".npy" else ("'b'", "'c'")
    message = refused(path)
    assert f"column {b} has 2 missing values, the first in row 17" in message
    assert f"column {c} has an infinite value in row 501" in message
    assert "--drop-missing" in message
    kept = read_table(path, drop_missing=True)
    assert kept.dropped == 3
    np.testing.assert_array_equal(kept.values, X[np.isfinite(values).all(axis=1)])
    rows = iter_table(path, NAMES, chunk_rows=10)
    assert len(next(rows).values) == 10
    with pytest.raises(TableError, match="has a missing value in row 17"):
        next(rows)
    parts = np.concatenate([p.values for p in iter_table(path, NAMES, missing="nan")])
    np.testing.assert_array_equal(np.isnan(parts), ~np.isfinite(values))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e9, 1e9)),
        min_size=1,
        max_size=30,
    ),
    chunk=st.integers(1, 40),
)
def test_what_is_written_is_read(tmp_path_factory, rows, chunk):
    values = np.array(rows)
    for suffix in (".csv", ".parquet"):
        path = tmp_path_factory.mktemp("w") / f"t{suffix}"
        with TableWriter(path) as out:
            for start in range(0, len(values), chunk):
                part = values[start : start + chunk]
                out.write({"p": part[:, 0], "q": part[:, 1]})
        np.testing.assert_array_equal(read_table(path).values, values)


def test_booleans_become_numbers(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": [True, False], "n": [1, 2]}).write_parquet(path)
    np.testing.assert_array_equal(read_table(path).values, [[1, 1], [0, 2]])
    path = text(tmp_path, "a,n\ntrue,1\nFalse,2\n")
    np.testing.assert_array_equal(read_table(path).values, [[1, 1], [0, 2]])
    np.save(tmp_path / "t.npy", np.array([[True], [False]]))
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy").values, [[1], [0]])


# --- CSV as people write it ------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,2\n3,4\n",
        "a,b\n1,2\n3,4",
        "a,b\r\n1,2\r\n3,4\r\n",
        "\ufeffa,b\n1,2\n3,4\n",
        "\n\na,b\n1,2\n\n3,4\n\n\n",
        "a; b\n1;2\n3;4\n",
        "a\tb\n1\t2\n3\t4\n",
        "a|b\n1|2\n3|4\n",
        'a,"b"\n"1","2"\n3,4\n',
        "a, b\n 1, 2\n3 ,4\n",
        "a;b\n1,0;2\n3;4,0\n",
        "a,b,text\n1,2,x\n3,4,y\n",
        'note,a,b\n"two, or\nthree",1,2\n"say ""hi""",3,4\n',
        "b,a\n2,1\n4,3\n",
        "a,b,c\n1,2,\n3,4,\n",
        "a,b,b2,b2\n1,2,0,0\n3,4,0,0\n",
    ],
)
def test_csv_dialects(tmp_path, content):
    table = read_table(text(tmp_path, content), ["a", "b"])
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])


def test_csv_of_many_blocks(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    pl.DataFrame(X, schema=NAMES).with_columns(
        s=pl.lit('a "quoted", note\nover two lines')
    ).write_csv(path)
    monkeypatch.setattr(csv_source, "BLOCK", 700)
    np.testing.assert_array_equal(read_table(path, NAMES).values, X)
    lines = path.read_bytes()
    path.write_bytes(lines + b"1,2\n")
    assert "line 2,002 has 2 values, but the header names 4 columns" in refused(path, NAMES)
    path.write_bytes(lines + b"1,2,oops,x\n")
    assert "column 'c' holds 'oops' in row 1,001, which is not a number" in refused(path, NAMES)


def test_csv_memory_is_bounded(tmp_path):
    path = tmp_path / "big.csv"
    block = "\n".join(",".join(f"{v:.6f}" for v in row) for row in X.repeat(10, 0)) + "\n"
    with path.open("w") as file:
        file.write("a,b,c\n")
        for _ in range(120):
            file.write(block)
    code = (
        "import resource, sys, polars\n"
        "from quarflow.data.tables import iter_table\n"
        "next(iter_table(sys.argv[1], ['a', 'c']))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "print(sum(len(t.values) for t in iter_table(sys.argv[1], ['a', 'c'])))\n"
        "print(peak() - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    rows, growth = map(int, out.stdout.split())
    assert rows == 1_200_000
    assert growth < 60_000, "KiB more than for the first block of a file of 32 MB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 value, but the header names 2 columns"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4 has 3 values, but the header names 2 columns"),
        ("a,b\n1,2\n3,four\n", "column 'b' holds 'four' in row 2, which is not a number"),
        ("a,b\n1,2024-05-01\n", "holds '2024-05-01' in row 1, a date: convert it to a number"),
        ("a,b,a\n1,2,3\n", "the name 'a' is given to columns 1 and 3"),
        (",a\n0,1\n", "column 1 has no name. If it is a row index that pandas wrote"),
        ("1.5,2.5\n3,4\n", "first line of .* holds numbers, not column names"),
        ("a,b\n1,\n", "column 'b' has a missing value in row 1"),
        ("a,b\n1,NA\n?,2\n", "'a' has a missing value in row 2; column 'b' has a missing value"),
        ("a,b\n1,1e999\n", "column 'b' has an infinite value in row 1"),
        ("a,b\n1,\n2,inf\n", "'b' has 2 missing or infinite values, the first in row 1"),
        ('"a,b\n1,2\n', "in the header is never closed"),
        ("a,b\n1,1_000\n", "'b' holds '1_000'"),
        ("a\0b", "not a text file"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("größe,b\n1,2\n".encode("latin-1"), "header of .* is not UTF-8"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    assert re.search(message, refused(text(tmp_path, content)))


def test_text_columns_are_named_with_a_way_out(tmp_path):
    path = text(tmp_path, "kind,a,b,site\ng,1,2,K\nh,3,4,L\n")
    message = refused(path)
    assert (
        "column 'kind' holds 'g' in row 1, which is not a number (nor does 'site' hold numbers)"
        in message
    )
    assert "--columns (columns= of quarflow.data.read_table), such as --columns a,b" in message
    assert read_table(path, ["a", "b"]).values.shape == (2, 2)
    assert "column 'kind' holds 'g' in row 1" in refused(path, ["a", "kind"])


def test_unclosed_quotation_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "BLOCK", 100)
    monkeypatch.setattr(csv_source, "LONGEST", 1600)
    path = text(tmp_path, "a,b\n" + "1,2\n" * 20 + '1,"2\n' + "1,2\n" * 1000)
    assert 'quotation mark (") in or after line' in refused(path)


def test_latin1_in_a_column_that_is_not_asked_for(tmp_path):
    path = text(tmp_path, "a,s\n1,é\n2,ü\n".encode("latin-1"))
    np.testing.assert_array_equal(read_table(path, ["a"]).values, [[1], [2]])


# --- Parquet ---------------------------------------------------------------------------------


def test_bad_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame(X, schema=NAMES).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is cut off" in refused(path)
    path.write_bytes(whole[:100] + bytes(2000) + whole[2100:])
    assert "damaged" in refused(path)
    path.write_bytes(whole[:-60] + b"\xff" * 52 + whole[-8:])
    assert "damaged" in refused(path)
    path.write_bytes(b"")
    assert "is empty" in refused(path)
    path.write_bytes(b"a,b\n1,2\n")
    assert "is not a Parquet file" in refused(path)
    pl.DataFrame(X[:0], schema=NAMES).write_parquet(path)
    assert "has no rows" in refused(path)


def test_parquet_types(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {
            "number": [1, 2],
            "word": [None, "g"],
            "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
            "day": [datetime.date(2024, 1, 1)] * 2,
            "many": [[1.0], [2.0]],
            "none": [None, None],
            "^.*$": [5.0, 6.0],
        }
    ).write_parquet(path)
    assert "'word' holds 'g' in row 2, which is not a number" in refused(path)
    assert "(nor do 'kind', 'day', 'many' hold numbers)" in refused(path)
    assert "'day' holds times (Date): convert it" in refused(path, ["day"])
    assert "'many' holds values of type List" in refused(path, ["many"])
    assert "'none' has 2 missing values" in refused(path, ["none"])
    assert "every one of its 2 rows" in refused(path, ["none"], drop_missing=True)
    np.testing.assert_array_equal(read_table(path, ["^.*$"]).values, [[5], [6]])


# --- NumPy -----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_nothing_is_unpickled(tmp_path):
    objects = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "t.npy", objects)
    assert "Python objects" in refused(tmp_path / "t.npy")
    np.savez(tmp_path / "t.npz", X=objects)
    assert "Python objects" in refused(tmp_path / "t.npz")
    np.savez(tmp_path / "u.npz", note=objects, X=X)  # left alone beside what is asked for
    assert read_table(tmp_path / "u.npz").values.shape == X.shape


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), "3 dimensions (2 x 3 x 4)"),
        (np.zeros(()), "0 dimensions"),
        (np.zeros((0, 3)), "has no rows"),
        (np.zeros((3, 0)), "has no columns"),
        (np.array([["a", "b"]]), "holds text, not numbers"),
        (np.zeros((2, 2), dtype=complex), "not numbers"),
        (np.zeros(2, dtype="M8[s]"), "holds dates, not numbers"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "t.npy", array)
    assert message in refused(tmp_path / "t.npy")


def test_arrays_of_other_shapes(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(4, dtype=np.int16))
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy").values, [[0], [1], [2], [3]])
    np.save(tmp_path / "t.npy", np.asfortranarray(X))
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy").values, X)
    fields = np.array([(1, 2.5), (3, 4.5)], dtype=[("i", "i4"), ("f", "f4")])
    np.save(tmp_path / "t.npy", fields)
    assert read_table(tmp_path / "t.npy", ["f"]).values.tolist() == [[2.5], [4.5]]


def test_archives(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, X=X, y=np.zeros(1000), other=X[:3])
    assert read_table(path).names == ["x0", "x1", "x2"]
    np.savez(path, data=X, y=np.zeros(1000))
    assert read_table(path).values.shape == X.shape
    np.savez(path, u=X[:, 0], v=X[:, 1], s=np.array(["g"] * 1000))
    assert read_table(path, ["v", "u"]).names == ["v", "u"]
    assert "column 's' holds 'g' in row 1" in refused(path)
    np.savez(path, train=X, test=X[:9])
    assert "holds train (1000 x 3), test (9 x 3); save one 2-D array called X" in refused(path)
    np.savez(path)
    assert "holds no arrays" in refused(path)


def test_damaged_numpy_files(tmp_path):
    np.save(tmp_path / "t.npy", X)
    np.savez(tmp_path / "t.npz", X=X)
    for name, message in (("t.npy", "is cut off"), ("t.npz", "cut off")):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:9000])
        assert message in refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert "is empty" in refused(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY nonsense")
    assert "damaged or not a NumPy file" in refused(tmp_path / "z.npz")
    (tmp_path / "t.npy").write_text("no array")
    assert "damaged or not a NumPy file" in refused(tmp_path / "t.npy")


# --- paths -----------------------------------------------------------------------------------


def test_paths(tmp_path):
    assert "There is no file" in refused(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.csv")
    assert "is a folder" in refused(tmp_path)
    assert ".csv, .tsv, .parquet, .pq, .npy, .npz" in refused(text(tmp_path, "x", "t.xlsx"))
    for name in ("a*.csv", "a[1].csv", "a*.parquet", "a[1].parquet", "a=1 ü.parquet"):
        path = tmp_path / name
        with TableWriter(path) as out:
            out.write({"n": np.arange(3.0)})
        assert len(read_table(path).values) == 3
    with pytest.raises(ValueError, match="chunk_rows"):
        iter_table(path, ["n"], chunk_rows=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    path = text(tmp_path, "a\n1\n")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refused(path)


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_writer_is_atomic(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"

    def fail(rows):
        with TableWriter(path) as out:
            out.write({"a": np.zeros(rows)})
            assert not path.exists() or path.read_bytes() == before
            raise KeyboardInterrupt

    before = b""
    for rows in (3, 300_000):  # waiting in memory, and gone to the disk
        with pytest.raises(KeyboardInterrupt):
            fail(rows)
        assert list(tmp_path.iterdir()) == []
    with TableWriter(path) as out:
        out.write({"a": np.array([1.0])})
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fail(3)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_writer_streams_in_order(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    count = 700_000
    with TableWriter(path) as out:
        for start in range(0, count, 70_000):
            n = np.arange(start, start + 70_000)
            out.write({"n": n, "log_prob": np.where(n % 1000 == 0, np.nan, -n / 7)})
    parts = list(iter_table(path, ["n", "log_prob"], missing="nan"))
    values = np.concatenate([part.values for part in parts])
    np.testing.assert_array_equal(values[:, 0], np.arange(count))
    np.testing.assert_array_equal(np.isnan(values[:, 1]), np.arange(count) % 1000 == 0)
    np.testing.assert_array_equal(values[1:1000, 1], -np.arange(1, 1000) / 7)


def test_missing_scores_keep_their_rows(tmp_path):
    scores = np.array([np.nan, -1.0, np.nan, np.nan])
    for suffix in (".csv", ".parquet"):
        path = tmp_path / f"s{suffix}"
        with TableWriter(path) as out:
            out.write({"log_prob": scores})
        (part,) = iter_table(path, ["log_prob"], missing="nan")
        np.testing.assert_array_equal(part.values[:, 0], scores)
    pandas = pytest.importorskip("pandas")
    assert len(pandas.read_csv(tmp_path / "s.csv")) == 4
    assert pl.read_parquet(path)["log_prob"].null_count() == 3


def test_writer_refuses_up_front(tmp_path):
    for path, message in (
        (tmp_path / "out.txt", "written as .csv or .parquet"),
        (tmp_path / "out", "written as .csv or .parquet"),
        (tmp_path / "none" / "out.csv", "no folder"),
    ):
        with pytest.raises(TableError, match=message):
            TableWriter(path)
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(TableError, match="is a folder"):
        TableWriter(tmp_path / "dir.csv")


def test_writer_misuse(tmp_path):
    path = tmp_path / "out.csv"
    with pytest.raises(RuntimeError):
        TableWriter(path).write({"a": np.zeros(1)})
    for columns in ({}, {"a": np.zeros((2, 2))}, {"a": np.zeros(2), "b": np.zeros(3)}):
        with (
            pytest.raises(ValueError, match="1-D arrays of equal length"),
            TableWriter(path) as out,
        ):
            out.write(columns)
    with TableWriter(tmp_path / "kept.csv") as out:
        out.write({"a": np.zeros(2)})
        with pytest.raises(ValueError, match="are now"):
            out.write({"b": np.zeros(2)})
    (tmp_path / "kept.csv").unlink()
    with pytest.raises(TableError, match="Nothing was written"), TableWriter(path):
        pass
    assert list(tmp_path.iterdir()) == []
    with TableWriter(path) as out:
        out.write({'a,\n"': np.zeros(0), "s": np.array([], dtype=str)})
    assert column_names(path) == ['a,\n"', "s"]


# --- the built-in data -----------------------------------------------------------------------


def test_magic():
    magic = load_magic()
    assert magic.X.shape == (19020, 10)
    assert magic.X.dtype == np.float64
    assert magic.hadron.sum() == 6688
    assert np.abs(magic.X.mean(0)).max() < 1e-6
    assert np.abs(magic.X.std(0, ddof=1) - 1).max() < 1e-6
    assert "CC BY 4.0" in magic.citation
    assert magic_path().stat().st_size < 1_000_000
    table = read_table(magic_path(), magic.names)
    np.testing.assert_array_equal(table.values, magic.X)
    assert "column 'class' holds 'gamma'" in refused(magic_path())


def test_importing_the_package_stays_light():
    code = (
        "import sys, quarflow.data.tables\n"
        "print([m for m in ('polars', 'torch', 'pydantic', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_table_is_plain():
    assert Table(["a"], np.zeros((1, 1))).dropped == 0
