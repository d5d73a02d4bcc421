"""Tables of numbers from CSV, Parquet and NumPy files, whole or a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from quarflow.data.array_source import ArraySource
from quarflow.data.csv_source import CsvSource
from quarflow.data.parquet_source import ParquetSource
from quarflow.data.source import Source, TableError, check_here, listed, no_such_column
from quarflow.data.table_writer import TableWriter

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Table",
    "TableError",
    "TableWriter",
    "column_names",
    "iter_table",
    "open_source",
    "read_table",
    "select_columns",
]

_READERS: dict[str, type[CsvSource] | type[ParquetSource] | type[ArraySource]] = {
    ".csv": CsvSource,
    ".tsv": CsvSource,
    ".parquet": ParquetSource,
    ".pq": ParquetSource,
    ".npy": ArraySource,
    ".npz": ArraySource,
}

ENDINGS = tuple(_READERS)

# What to do about it: the option of the command, and the argument of the function.
COLUMNS = "--columns (columns= of quarflow.data.read_table)"
DROP = "Leave such rows out with --drop-missing (drop_missing=True of quarflow.data.read_table)"
NO_SCORE = (
    'Go on without such rows\' scores with --allow-missing (missing="nan" of '
    "quarflow.data.iter_table)"
)


@dataclass
class Table:
    """Rows of numbers with named columns.

    names: D names; values: float64 (N, D), C-contiguous, finite (but see ``iter_table``);
    dropped: how many rows were left out because a value was missing or infinite; others: columns
    that were not asked for, as they are in the file, where ``iter_table`` keeps them.
    """

    names: list[str]
    values: np.ndarray
    dropped: int = 0
    others: pl.DataFrame | None = field(default=None, repr=False)


def read_table(
    path: str | PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    drop_missing: bool = False,
) -> Table:
    """Read a table into memory.

    Arguments:
        path: A .csv, .parquet, .npy or .npz file.
        columns: Names of those to read, in this order; None takes all, which must then all hold
            numbers.
        drop_missing: Leave out rows with a missing or infinite value, and count them.

    Raises:
        TableError: Naming the column and row, for all that is wrong.

    Example:
        >>> import numpy as np, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "small.csv")
        >>> _ = path.write_text("a,b\\n1,2\\n3,\\n5,6\\n")
        >>> read_table(path, ["b", "a"], drop_missing=True)
        Table(names=['b', 'a'], values=array([[2., 1.],
               [6., 5.]]), dropped=1)
        >>> read_table(path)
        Traceback (most recent call last):
        quarflow.data.source.TableError: ...small.csv: column 'b' has a missing value in row 2. ...
    """
    source = open_source(path)
    names, index = select_columns(source, columns)
    parts: list[np.ndarray] = []
    missing = _Missing(names)
    rows = kept = 0
    for chunk, _ in source.chunks(index, 65536):
        finite = missing.look(chunk, rows)
        rows += len(chunk)
        parts.append(chunk if finite.all() else chunk[finite])
        kept += len(parts[-1])
    if not rows:
        raise TableError(f"{source.path} has no rows.")
    if missing.counts and not drop_missing:
        raise missing.error(source.path, DROP)
    if not kept:
        raise TableError(
            f"{source.path}: every one of its {rows:,} rows has a missing or infinite value, "
            "so none is left."
        )
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Table(names, np.ascontiguousarray(values), rows - kept)


def iter_table(
    path: str | PathLike[str],
    columns: Sequence[str],
    *,
    chunk_rows: int = 65536,
    missing: Literal["error", "nan"] = "error",
    keep: bool = False,
) -> Iterator[Table]:
    """Read a table in bounded memory: tables of ``chunk_rows`` rows (the last may be shorter).

    The rows come in the order of the file; a file without rows gives one table without rows.
    .npz archives are decompressed whole: use .npy or .parquet where memory is short.

    Arguments:
        path: A .csv, .parquet, .npy or .npz file.
        columns: Names of those to read, in this order.
        chunk_rows: Rows of each table; with ``keep`` about so many.
        missing: ``"nan"`` makes missing and infinite values NaN, ``"error"`` refuses them.
        keep: Whether each table has the ``others`` too.

    Raises:
        TableError: At once for what is wrong with the file as a whole (no such column, cut off),
            for a bad value when its row is reached.
        ValueError: If chunk_rows is below 1.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, not {chunk_rows}.")
    source = open_source(path)
    names, index = select_columns(source, columns)
    others = [i for i in range(len(source.names)) if i not in set(index)] if keep else []
    for name in (source.names[i] for i in others):
        if source.names.count(name) > 1:
            raise TableError(f"{source.path}: two columns are called {name!r}; rename one.")
    pieces = source.chunks(index, chunk_rows, others)
    if not others:
        pieces = ((chunk, None) for chunk in _rechunk((c for c, _ in pieces), chunk_rows))
    return _iterate(source, names, pieces, missing)


def column_names(path: str | PathLike[str]) -> list[str]:
    """The names of all columns of a file, numeric or not, without reading its rows."""
    return list(open_source(path).names)


def _iterate(
    source: Source,
    names: list[str],
    pieces: Iterator[tuple[np.ndarray, pl.DataFrame | None]],
    missing: str,
) -> Iterator[Table]:
    rows = 0
    for chunk, others in pieces:
        if missing == "nan":
            chunk[~np.isfinite(chunk)] = np.nan
        else:
            seen = _Missing(names)
            if not seen.look(chunk, rows).all():
                raise seen.error(source.path, NO_SCORE, counted=False)
        rows += len(chunk)
        yield Table(list(names), chunk, others=others)


def _rechunk(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of exactly ``rows`` rows, but for the last."""
    waiting: list[np.ndarray] = []
    count = seen = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count < rows:
            continue
        joined = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield np.array(joined[start : start + rows])
        seen += whole
        waiting, count = [joined[whole:]], count - whole
    if count or not seen:  # a table without rows is one, too
        yield np.concatenate(waiting)


def open_source(path: str | PathLike[str]) -> Source:
    """The file of a table, opened by its ending.

    Raises:
        TableError: where it cannot be read.
    """
    path = Path(path)
    check_here(path, ENDINGS)
    try:
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}.") from None


def select_columns(
    source: Source, columns: Sequence[str] | None, numbers: bool = True
) -> tuple[list[str], list[int]]:
    """The names asked for and where they are in the file.

    Arguments:
        source: The file.
        columns: Their names; None: all.
        numbers: Whether all must hold numbers, if none is named.

    Raises:
        TableError: naming a column that is not there, not unique, or no numbers.
    """
    if columns is None:
        _check_unambiguous(source, source.names)
        wrong = source.not_numeric() if numbers else {}
        if wrong:
            first, why = next(iter(wrong.items()))
            others = [source.names[i] for i in wrong if i != first]
            do = "does" if len(others) == 1 else "do"
            also = f" (nor {do} {listed(others)} hold numbers)" if others else ""
            numeric = [name for i, name in enumerate(source.names) if i not in wrong]
            some = numeric if len(numeric) <= 12 else numeric[:3]
            example = f", such as --columns {','.join(some)}" if numeric else ""
            raise TableError(
                f"{source.path}: column {source.names[first]!r} {why}{also}. "
                f"Name the columns to use with {COLUMNS}{example}."
            )
        return list(source.names), list(range(len(source.names)))
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names:
        raise TableError("No columns are asked for; name at least one.")
    for name in names:
        if names.count(name) > 1:
            raise TableError(f"Column {name!r} is asked for twice.")
    if not source.named and not set(names) <= set(source.names):
        if len(names) == len(source.names):  # a bare array: by position
            return names, list(range(len(names)))
        raise TableError(
            f"{source.path} has no column names and {len(source.names)} columns, where "
            f"{len(names)} are needed: {listed(names)}."
        )
    for name in names:
        if name not in source.names:
            raise no_such_column(source.path, name, source.names)
    _check_unambiguous(source, names)
    return names, [source.names.index(name) for name in names]


def _check_unambiguous(source: Source, names: Sequence[str]) -> None:
    for name in names:
        places = [i + 1 for i, other in enumerate(source.names) if other == name]
        if not name:
            raise TableError(
                f"{source.path}: column {places[0]} has no name. If it is a row index that pandas "
                f"wrote, leave it out with {COLUMNS}."
            )
        if len(places) > 1:
            raise TableError(
                f"{source.path}: the name {name!r} is given to columns "
                f"{' and '.join(map(str, places))}; rename one."
            )


class _Missing:
    """Counts the values that are missing or infinite, column by column."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.counts: dict[int, int] = {}
        self.first: dict[int, int] = {}  # row, from 1
        self.infinite: dict[int, int] = {}  # how many of the values are infinite

    def look(self, chunk: np.ndarray, start: int) -> np.ndarray:
        """Which rows (n,) are complete."""
        bad = ~np.isfinite(chunk)
        for j in np.flatnonzero(bad.any(axis=0)).tolist():
            row = int(np.argmax(bad[:, j]))
            self.counts[j] = self.counts.get(j, 0) + int(bad[:, j].sum())
            self.first.setdefault(j, start + row + 1)
            self.infinite[j] = self.infinite.get(j, 0) + int(np.isinf(chunk[:, j]).sum())
        return ~bad.any(axis=1)

    def error(self, path: Path, advice: str, *, counted: bool = True) -> TableError:
        parts = []
        for j in sorted(self.counts)[:3]:
            count, row = self.counts[j], self.first[j]
            what = {0: "missing", count: "infinite"}.get(self.infinite[j], "missing or infinite")
            if count == 1:
                article = "an" if what == "infinite" else "a"
                parts.append(f"column {self.names[j]!r} has {article} {what} value in row {row:,}")
            else:
                many = f"{count:,} {what}" if counted else what
                parts.append(
                    f"column {self.names[j]!r} has {many} values, the first in row {row:,}"
                )
        more = len(self.counts) - len(parts)
        if more:
            parts.append(f"{more} more column{'s' if more > 1 else ''} too")
        return TableError(f"{path}: {'; '.join(parts)}. {advice}.")
