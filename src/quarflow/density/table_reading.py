r"""Tables in files, as a density of tables reads them: to be fitted to, and to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quarflow.data.columns import Columns
from quarflow.data.encode import encode
from quarflow.data.finite import check_finite
from quarflow.data.frames import frame_of
from quarflow.data.mixed_files import Piece, drop_holes, iter_frames, read_frame
from quarflow.data.source import TableError
from quarflow.data.tables import NO_SCORE, Table, column_names, iter_table, read_table
from quarflow.density.base import Place, Say

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Fitted", "Rows", "read_fitted", "read_new", "rows_of"]

CHUNK = 65_536


@dataclass(frozen=True)
class Fitted:
    """What a fitted density needs of a table.

    Attributes:
        columns, context: The fitted columns, modelled and of the context (None: without).
        named: Whether it knows the columns by name.
        holes: Whether values may be missing.
        unseen: What labels are that it does not know.
    """

    columns: Columns
    context: Columns | None
    named: bool
    holes: bool
    unseen: Literal["error", "impossible", "missing"] = "error"

    @property
    def all(self) -> Columns:
        """The columns modelled, then those of the context."""
        beside = () if self.context is None else self.context.columns

        return Columns((*self.columns.columns, *beside))

    @property
    def plain(self) -> bool:
        """Whether all of them are complete and of numbers."""
        return not self.holes and all(c.kind == "number" for c in self.all.columns)

    def split(self, values: NDArray[np.float64]) -> tuple[Any, NDArray[np.float64] | None]:
        """Modelled columns of numbers, a frame if names are known, and those of the context."""
        wide = len(self.columns)
        X = frame_of(self.columns.names, values) if self.named else values[:, :wide]

        return X, (values[:, wide:] if self.context is not None else None)

    def split_frame(self, frame: pl.DataFrame) -> tuple[Any, Any]:
        """Modelled columns of any kinds, and those of the context or None."""
        wide = len(self.columns)
        X: Any = frame[:, :wide]
        if not self.named:
            X = np.empty((len(frame), wide), dtype=object)
            for j in range(wide):
                X[:, j] = frame.to_series(j).to_list()

        return X, (None if self.context is None else frame[:, wide:])


@dataclass(frozen=True)
class Rows:
    """Some rows of a file to be scored.

    Attributes:
        whole: Which of them (n,) can be.
        X, context: Those that can, as ``score_samples`` takes them.
        kept: The columns of all rows, where they are to be kept.
    """

    whole: NDArray[np.bool_]
    X: Any
    context: Any
    kept: Mapping[str, Any]


def read_new(
    path: Place,
    columns: Sequence[str] | None,
    kinds: Mapping[str, Any] | None,
    drop_missing: bool,
    say: Say,
) -> pl.DataFrame:
    """A table to be fitted to, in memory, of any kinds of columns.

    Arguments:
        path: The file.
        columns: Names of those to read, all by default.
        kinds: What the user says of columns; those that are not read are not looked at.
        drop_missing: Whether to leave out rows with missing or infinite values.
        say: Called with how many they were.

    Raises:
        TableError: for all that is wrong with the file.
    """
    frame = read_frame(path, columns, kinds)
    if not drop_missing:
        return frame
    whole = drop_holes(frame)
    if len(whole) < len(frame):
        say(f"{len(frame) - len(whole):,} rows with missing values were left out.")
    if not len(whole):
        raise TableError(
            f"{path}: every one of its {len(frame):,} rows has a missing or infinite value, so "
            "none is left."
        )

    return whole


def read_fitted(path: Place, fitted: Fitted, drop_missing: bool, say: Say) -> tuple[Any, Any]:
    """Rows of a file in memory, and their context or None, as a fitted density takes them.

    Arguments:
        path: The file.
        fitted: What the density needs.
        drop_missing: Whether to leave out rows with missing values.
        say: Called with how many they were.
    """
    if fitted.plain:
        table = read_table(path, fitted.all.names, drop_missing=drop_missing)
        if table.dropped:
            say(f"{table.dropped:,} rows with missing values were left out.")
        return fitted.split(table.values)
    import polars as pl

    frame = pl.concat([piece.frame for piece in iter_frames(path, fitted.all)])
    whole = drop_holes(frame) if drop_missing else frame
    if len(whole) < len(frame):
        say(f"{len(frame) - len(whole):,} rows with missing values were left out.")

    return fitted.split_frame(whole)


def rows_of(path: Place, fitted: Fitted, keep: bool, allow_missing: bool) -> Iterator[Rows]:
    """Rows of a file, piece by piece, to be scored.

    Arguments:
        path: The file; it may be larger than memory.
        fitted: What the density needs.
        keep: Whether all columns of the file are to be kept.
        allow_missing: Whether rows that cannot be scored for missing values are let be.

    Raises:
        TableError: at once for what is wrong with the file as a whole, for a bad value when its
            row is reached.
    """
    order = column_names(path) if keep else []
    if fitted.plain:
        missing: Literal["error", "nan"] = "nan" if allow_missing else "error"
        tables = iter_table(path, fitted.all.names, chunk_rows=CHUNK, missing=missing, keep=keep)
        return (_of_table(table, fitted, order) for table in tables)
    pieces = iter_frames(path, fitted.all, rows=CHUNK, keep=keep)

    return (_of_piece(path, piece, fitted, order, allow_missing) for piece in pieces)


def _of_table(table: Table, fitted: Fitted, order: list[str]) -> Rows:
    whole = np.isfinite(table.values).all(1)
    X, context = fitted.split(table.values[whole])
    used = {name: table.values[:, i] for i, name in enumerate(table.names)}

    return Rows(whole, X, context, _in_order(used, table.others, order))


def _of_piece(
    path: Place, piece: Piece, fitted: Fitted, order: list[str], allow_missing: bool
) -> Rows:
    columns = fitted.all
    # only to know what is missing, and to name a bad value by its row in the file
    values = encode(
        piece.frame, columns, what=str(path), unseen=fitted.unseen, start=piece.start
    ).values
    wide = len(fitted.columns)
    needed = values[:, wide:] if fitted.holes else values
    holes = np.isnan(needed).any(1)
    if holes.any() and not allow_missing:
        row = int(np.argmax(holes))
        name = columns.names[int(np.argmax(np.isnan(needed[row]))) + fitted.holes * wide]
        raise TableError(
            f"{path}: column {name!r} has a missing value in row {piece.start + row + 1:,}. "
            f"{NO_SCORE}."
        )
    check_finite(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf), columns.names)
    X, context = fitted.split_frame(piece.frame.filter(~holes))
    used = dict(zip(columns.names, piece.frame.get_columns(), strict=True))

    return Rows(~holes, X, context, _in_order(used, piece.others, order))


def _in_order(
    used: Mapping[str, Any], others: pl.DataFrame | None, order: list[str]
) -> dict[str, Any]:
    """All columns of a table in the order of the file, none without an order."""
    if not order:
        return {}
    if others is None:
        return {name: used[name] for name in order} if set(order) == set(used) else dict(used)

    return {name: used[name] if name in used else others[name] for name in order}
