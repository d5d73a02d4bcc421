"""What texts are: numbers, flags, dates or labels, and reading them as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quarflow.data.raw import Raw
from quarflow.data.source import not_a_number
from quarflow.data.times import Unreadable, look_like_dates, read_dates, read_durations, told
from quarflow.data.values import NotNumbers

if TYPE_CHECKING:
    import polars as pl

__all__ = ["as_bool", "as_number", "narrow", "read_as"]

_FLAGS = {"true": True, "false": False}
_SHOWN = {"date": "date", "duration": "duration", "bool": "flag"}


def as_bool(text: str) -> bool | None:
    """True or false, as it is written in any case; None for anything else."""
    return _FLAGS.get(text.strip().lower())


def as_number(text: str) -> float:
    """The number that is written, NaN for anything else.

    Example:
        >>> as_number(" 1.5"), as_number("1_000")
        (1.5, nan)
    """
    try:
        return np.nan if "_" in text else float(text)
    except ValueError:
        return np.nan


def narrow(text: pl.Series, possible: set[str]) -> tuple[set[str], int]:
    """Which of the forms possible so far the texts (n,) allow as well.

    Arguments:
        text: Null where missing.
        possible: Some of ``number``, ``bool``, ``date``, ``text``.

    Returns:
        The forms; the place of the first text that is no date, where dates were possible.
    """
    left, place = set(possible), 0
    held = text.drop_nulls()
    if "number" in left and _numbers(held)[1].null_count():
        left.discard("number")
    if "bool" in left and not _flags(held).all():
        left.discard("bool")
    if "date" in left:
        fits = look_like_dates(text)
        if not fits.all():
            place = int(np.argmin(fits))
            left.discard("date")

    return left, place


def read_as(
    text: pl.Series, kind: str, where: str, start: int = 0, form: str | None = None
) -> Raw:
    """Texts as numbers, flags, dates or durations.

    Arguments:
        text: Shape (n,), null where missing.
        kind: ``"number"``, ``"bool"``, ``"date"`` or ``"duration"``.
        where: The column, in messages.
        start: The rows before.
        form: Of dates, as in ``strptime``.

    Raises:
        NotNumbers: naming the column and row.
    """
    import polars as pl

    if kind == "bool":
        known = text.str.strip_chars().str.to_lowercase()
        found = known.replace_strict(["true", "false"], [1.0, 0.0], default=None)
        return Raw("bool", numbers=found.cast(pl.Float64).to_numpy(writable=True))
    if kind == "number":
        bare, numbers = _numbers(text)
        lost = (bare.is_not_null() & numbers.is_null()).to_numpy()
        if lost.any():
            row = int(np.argmax(lost))
            raise NotNumbers(f"{where} {not_a_number(text[row], start + row + 1)}.")
        return Raw("number", numbers=numbers.fill_null(np.nan).to_numpy(writable=True))
    try:
        if form is not None and look_like_dates(text).all():
            form = None  # as they are written by us
        return read_dates(text, form) if kind == "date" else read_durations(text)
    except Unreadable as trouble:
        shown = f" by the format {form!r}" if form else ""
        advice = "correct it, or give the format" if kind == "date" and not form else "correct it"
        said = told(trouble, _SHOWN[kind], start)
        raise NotNumbers(f"{where} {said}{shown}; {advice}.") from None


def _numbers(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The texts without blanks around them, and as numbers, null for those that are none."""
    import polars as pl

    bare = text.str.strip_chars()
    flags = bare.str.to_lowercase().replace_strict(
        ["true", "false"], [1.0, 0.0], default=None, return_dtype=pl.Float64
    )
    found = bare.cast(pl.Float64, strict=False)

    return bare, found.fill_null(flags) if flags.is_not_null().any() else found


def _flags(text: pl.Series) -> pl.Series:
    known = text.str.strip_chars().str.to_lowercase()

    return known.is_in(list(_FLAGS))
