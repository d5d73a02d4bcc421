"""What the table formats have in common: the error, the interface, the wording."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import polars as pl

_DATE = re.compile(r"^\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ].*)?$")


class TableError(ValueError):
    """A table that cannot be read or written, said in a plain sentence or two."""


class Source(Protocol):
    """An opened table file: its column names, and its rows in order, a few at a time."""

    path: Path
    names: list[str]
    named: bool  # False for a bare array, whose names x0, x1, ... are ours

    def not_numeric(self) -> Mapping[int, str]:
        """Columns that hold no numbers, by position, each with what is wrong with it."""

    def chunks(
        self, columns: Sequence[int], rows: int, others: Sequence[int] = ()
    ) -> Iterator[tuple[np.ndarray, pl.DataFrame | None]]:
        """The rows in file order, piece by piece.

        Arguments:
            columns: Positions of the columns to read as numbers.
            rows: About so many rows at a time.
            others: Positions of columns to read as they are.

        Returns:
            Pairs of a float64 array (n, len(columns)), NaN where a value is missing, and a frame
            of the others, None if there are none.

        Raises:
            TableError: For a value that is no number.
        """

    def frames(self, columns: Sequence[int], rows: int) -> Iterator[pl.DataFrame]:
        """The rows in file order, piece by piece, as they are: of a text file, all text.

        Arguments:
            columns: Positions of the columns to read.
            rows: About so many rows at a time.

        Returns:
            Frames whose columns are called c0, c1, ... by position, null where a value is missing.
        """


def check_here(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse what is no file of a table on this machine, saying what it is instead.

    Raises:
        TableError: for an address, a folder, a pipe or device, or nothing at all.

    Example:
        >>> check_here(Path("https://example.org/data.csv"), [".csv"])
        Traceback (most recent call last):
        ...
        quarflow.data.source.TableError: https://example.org/data.csv is an address on the ...
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            raise TableError(f"{path} is the folder of a model, where a table is wanted.")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        hint = f"such as {inside[0]}" if inside else f"which ends in {', '.join(suffixes)}"
        raise TableError(f"{path} is a folder, not a file; a table is one file, {hint}.")
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))
    if address and not path.exists():
        raise TableError(
            f"{address[1]}://{address[2]} is an address on the network, not a file; download it "
            "first."
        )
    if path.suffix.lower() not in suffixes:
        known = ", ".join(suffixes)
        raise TableError(
            f"{path}: the ending says what kind of table it is; it must be one of {known}."
        )
    if not path.exists():
        raise TableError(f"There is no file {path}.")
    if not path.is_file():
        raise TableError(f"{path} is a pipe or a device; save the table as a file first.")


def shorten(text: object, width: int = 40) -> str:
    """A value from the file, quoted and cut so that it fits in a message."""
    shown = repr(str(text))
    return shown if len(shown) <= width else shown[: width - 4] + "...'"


def listed(names: Sequence[str], at_most: int = 12) -> str:
    """Names for a message: 'a', 'b', 'c' (20 in all)."""
    shown = ", ".join(shorten(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown}, ... ({len(names)} in all)"


def not_a_number(value: object, row: int) -> str:
    """What to say of a column with this value, which is no number, and what to do about it."""
    shown = f"holds {shorten(value)} in row {row:,}"
    if isinstance(value, str) and _DATE.match(value):
        return f"{shown}, a date: convert it to a number first, such as days since a start"
    return f"{shown}, which is not a number"


def no_such_column(path: Path, name: str, names: Sequence[str]) -> TableError:
    """The error for a column that the file lacks, with the nearest name it does have.

    Arguments:
        path: The file.
        name: The column asked for.
        names: The columns it has.
    """
    close = [other for other in names if other.lower() == name.lower()]
    close = close or get_close_matches(name, names, n=1)
    hint = f"; did you mean {shorten(close[0])}?" if close else "."
    return TableError(f"{path} has no column {shorten(name)}{hint} It has {listed(names)}.")
