"""Files of tables of any kinds of columns, as frames: whole, or a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from quarflow.data.columns import Columns
from quarflow.data.csv_source import CsvSource
from quarflow.data.kinds import Asked, read_kinds
from quarflow.data.raw import NAT
from quarflow.data.source import Source, TableError
from quarflow.data.tables import open_source, select_columns
from quarflow.data.text_forms import as_number, narrow, read_as
from quarflow.data.times import Unreadable, read_dates

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Piece", "drop_holes", "iter_frames", "read_frame"]

ROWS = 65_536
_ALL = frozenset({"number", "bool", "date", "text"})


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        frame: The columns asked for, in that order.
        others: All other columns, as they are in the file, where they are to be kept.
        start: How many rows came before.
    """

    frame: pl.DataFrame
    others: pl.DataFrame | None
    start: int


def read_frame(
    path: str | PathLike[str],
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Read a table of any kinds of columns into memory.

    In a text file a column holds numbers, flags (true and false) or dates (in ISO's form) where
    all its values are such, and text otherwise. Empty fields, NA, NaN, null and the like are
    missing.

    Arguments:
        path: A .csv, .parquet, .npy or .npz file.
        columns: Names of those to read, in this order; None: all.
        kinds: What is asked of columns, see ``read_kinds``.

    Raises:
        TableError: naming the column and row, for all that is wrong.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "small.csv")
        >>> _ = path.write_text("cut,price,sold\\ngood,1.5,2024-02-29\\n,2,2024-03-01\\n")
        >>> read_frame(path).to_dicts()[1]
        {'cut': None, 'price': 2.0, 'sold': datetime.date(2024, 3, 1)}
    """
    import polars as pl

    source = open_source(path)
    names, index = select_columns(source, columns, numbers=False)
    asked = read_kinds(kinds, source.names)
    if isinstance(source, CsvSource):
        found = _Written(source, names, index, asked).read()
    else:
        pieces = [frame.rename(_names(names, index)) for frame in source.frames(index, ROWS)]
        found = pl.concat(pieces)
    if not len(found):
        raise TableError(f"{source.path} has no rows.")

    return found


def iter_frames(
    path: str | PathLike[str], columns: Columns, *, rows: int = ROWS, keep: bool = False
) -> Iterator[Piece]:
    """Read a table, of columns that were fitted, in bounded memory.

    The rows come in the order of the file; a file without rows gives one piece without rows.

    Arguments:
        path: A .csv, .parquet, .npy or .npz file.
        columns: The fitted columns.
        rows: About so many at a time.
        keep: Whether each piece has the ``others`` too.

    Raises:
        TableError: at once for what is wrong with the file as a whole, for a bad value when its
            row is reached.
    """
    source = open_source(path)
    _, index = select_columns(source, columns.names)
    others = [i for i in range(len(source.names)) if i not in set(index)] if keep else []
    if keep:
        select_columns(source, [source.names[i] for i in others] or None, numbers=False)

    return _pieces(source, columns, index, others, rows)


def drop_holes(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a frame that have no missing and no infinite value.

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"a": [1.0, float("nan"), None], "b": ["x", "y", None]})
        >>> drop_holes(frame).rows()
        [(1.0, 'x')]
    """
    import polars as pl

    whole = np.ones(len(frame), dtype=bool)
    for j in range(frame.width):  # by position: a name may read as a pattern
        series = frame.to_series(j).rename("")
        there = series.is_not_null()
        if series.dtype.is_float():
            there &= series.is_finite().fill_null(value=False)
        whole &= there.to_numpy()

    return frame.filter(pl.Series(whole))


def _pieces(
    source: Source, columns: Columns, index: list[int], others: list[int], rows: int
) -> Iterator[Piece]:
    start = 0
    written = isinstance(source, CsvSource)
    for frame in source.frames([*index, *others], rows):
        found = frame.select(f"c{i}" for i in index).rename(_names(columns.names, index))
        if written:
            found = _numbers_of(found, columns, f"{source.path}: column", start)
        kept = None
        if others:
            own = [source.names[i] for i in others]
            kept = frame.select(f"c{i}" for i in others).rename(_names(own, others))
        yield Piece(found, kept, start)
        start += len(frame)


def _numbers_of(frame: pl.DataFrame, columns: Columns, where: str, start: int) -> pl.DataFrame:
    """A frame of text with those columns as numbers that are."""
    import polars as pl

    series = []
    for text, column in zip(frame.get_columns(), columns.columns, strict=True):
        if column.kind not in ("number", "periodic"):
            series.append(text)
            continue
        raw = _read(text, "number", f"{where} {column.name!r}", start)
        series.append(pl.Series(column.name, raw.numbers))

    return pl.DataFrame(series)


class _Written:
    """A text file, and what its columns have been found to hold so far."""

    def __init__(
        self, source: CsvSource, names: list[str], index: list[int], asked: Mapping[str, Asked]
    ) -> None:
        self.source, self.names, self.index = source, names, index
        self.asked = [asked.get(name, Asked()) for name in names]
        self.possible: list[set[str]] = [set(_ALL) for _ in names]
        self.exact = [True] * len(names)  # numbers of categories that lose no digit

    def read(self) -> pl.DataFrame:
        """All rows; again from the start where one shows that a column is something else."""
        import polars as pl

        while True:
            pieces = self._pieces()
            if pieces is not None:
                break
        if not pieces:
            return pl.DataFrame()
        found = [
            self._joined(name, [piece[j] for piece in pieces]) for j, name in enumerate(self.names)
        ]

        return pl.DataFrame(found)

    def _pieces(self) -> list[list[pl.Series]] | None:
        """Columns of all pieces, None where a column turned out to be something else."""
        found: list[list[pl.Series]] = []
        start = 0
        for frame in self.source.frames(self.index, ROWS):
            texts = frame.get_columns()
            before = self._forms()
            for j, text in enumerate(texts):
                self._learn(j, text)
            if found and self._forms() != before:
                return None
            found.append([self._typed(j, text, start) for j, text in enumerate(texts)])
            start += len(frame)

        return found

    def _learn(self, j: int, text: pl.Series) -> None:
        if self.possible[j] == {"text"}:
            return
        self.possible[j], _ = narrow(text, self.possible[j])
        if "date" in self.possible[j]:
            try:
                read_dates(text)
            except Unreadable:  # the 30th of February
                self.possible[j].discard("date")
        if self.asked[j].sort == "category" and "number" in self.possible[j]:
            held = text.drop_nulls().unique().to_list()
            self.exact[j] &= all(_same(label) for label in held)

    def _forms(self) -> list[str]:
        return [self._form(j) for j in range(len(self.names))]

    def _form(self, j: int) -> str:
        """What the texts of a column are read as."""
        asked, possible = self.asked[j], self.possible[j]
        if asked.sort in ("number", "periodic"):
            return "number"
        if asked.sort == "duration" or asked.format is not None:
            return "text"
        if asked.sort == "date":
            return "date"
        if asked.sort == "category":
            if "bool" in possible:
                return "bool"
            return "number" if "number" in possible and self.exact[j] else "text"

        return next(form for form in ("bool", "number", "date", "text") if form in possible)

    def _typed(self, j: int, text: pl.Series, start: int) -> pl.Series:
        """Some values of a column as what they are."""
        import polars as pl

        form = self._form(j)
        if form == "text":
            return text
        raw = _read(text, form, f"{self.source.path}: column {self.names[j]!r}", start)
        if raw.numbers is not None:
            found = pl.Series(raw.numbers, nan_to_null=True)
            if form == "bool":
                return found.cast(pl.Boolean)
            whole = self.asked[j].sort == "category" and bool((found == found.round()).all())
            return found.cast(pl.Int64) if whole else found
        times = pl.Series(raw.times).set(pl.Series(raw.times == NAT), None)
        moments = times.cast(pl.Datetime("us"))
        if raw.zone is not None:
            return moments.dt.replace_time_zone(raw.zone)

        return moments.cast(pl.Date) if raw.form == "date" else moments

    def _joined(self, name: str, parts: list[pl.Series]) -> pl.Series:
        """All values of a column: of several types, of the one that takes them all."""
        import polars as pl

        kinds = {part.dtype for part in parts if part.null_count() < len(part)}
        if not kinds:
            kinds = {parts[0].dtype}
        if len(kinds) > 1 and any(getattr(kind, "time_zone", None) for kind in kinds):
            raise TableError(
                f"{self.source.path}: column {name!r} holds dates with a time zone and others "
                "without; choose one."
            )
        kind = next(iter(kinds)) if len(kinds) == 1 else pl.Datetime("us")
        if kinds == {pl.Int64, pl.Float64} or kinds == {pl.Int64, pl.Float64, pl.Null}:
            kind = pl.Float64()

        return pl.concat([part.cast(kind) for part in parts]).alias(name)


def _read(text: pl.Series, form: str, where: str, start: int) -> Any:
    try:
        return read_as(text, form, where, start)
    except TableError:
        raise
    except ValueError as error:
        raise TableError(str(error)) from None


def _same(label: str) -> bool:
    """Whether a text is the number it says, digit by digit: 12 is, 012 and 1e3 are not."""
    number = as_number(label)
    whole = np.isfinite(number) and number == int(number) and abs(number) < 2**53

    return label.strip() in (str(number), str(int(number)) if whole else "")


def _names(names: Sequence[str], index: Sequence[int]) -> dict[str, str]:
    return {f"c{i}": name for name, i in zip(names, index, strict=True)}
