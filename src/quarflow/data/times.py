"""Dates and durations: read from text, and as numbers of a unit since an epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quarflow.data.raw import NAT, Raw
from quarflow.data.source import shorten

if TYPE_CHECKING:
    import polars as pl

    from quarflow.data.column import Column

__all__ = [
    "MICRO",
    "Unreadable",
    "cyclic_parts",
    "look_like_dates",
    "read_dates",
    "read_durations",
    "since",
    "to_times",
    "told",
]

MICRO = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
YEAR = 365.2425  # days
_DAY = r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}$"
_MOMENT = (
    r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}[T ]\d{1,2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?$"
)
_ZONE = r"(Z|[+-]\d{2}:?\d{2})$"
_CLOCK = re.compile(
    r"^(?P<sign>-?)(?:(?P<d>\d+) ?d(?:ays?)?,? ?)?"
    r"(?:(?P<h>\d+):(?P<m>\d\d)(?::(?P<s>\d\d(?:\.\d+)?))?)?$"
)
_ISO = re.compile(
    r"^(?P<sign>-?)P(?:(?P<d>\d+)D)?"
    r"(?:T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?$"
)


@dataclass(frozen=True)
class Unreadable(Exception):
    """A text that is no date or duration, by its place in the column."""

    place: int
    text: str


def look_like_dates(text: pl.Series) -> NDArray[np.bool_]:
    """Which of the texts (n,) are dates in ISO's form, or missing.

    Example:
        >>> import polars as pl
        >>> look_like_dates(pl.Series(["2024-02-29", "2024-02-29 12:30", "2/3/24", None]))
        array([ True,  True, False,  True])
    """
    bare = text.str.strip_chars()
    fits = bare.str.contains(_DAY) | bare.str.contains(_MOMENT)

    return fits.fill_null(value=True).to_numpy()


def read_dates(text: pl.Series, form: str | None = None) -> Raw:
    """Texts as dates.

    Arguments:
        text: Shape (n,), null where missing.
        form: As in ``strptime``; None: year, month, day, and perhaps a time of day and zone.

    Raises:
        Unreadable: for the first that is none.
    """
    import polars as pl

    bare = text.str.strip_chars()
    if form is not None:
        return _by_form(bare, text, form)
    days = bool(bare.drop_nulls().str.contains(_DAY).all())
    plain = bare.str.replace_all("/", "-").str.replace("T", " ")
    if days:
        found = plain.str.to_date("%Y-%m-%d", strict=False)
        _refuse_unread(text, found)
        return Raw("date", times=_micro(found.cast(pl.Datetime("us"))))
    plain = pl.select(
        pl.when(plain.str.contains(" ")).then(plain).otherwise(plain + " 00:00")
    ).to_series()
    plain = plain.str.replace(r"Z$", "+00:00").str.replace(r"([+-]\d{2})(\d{2})$", "$1:$2")
    plain = plain.str.replace(r"( \d{1,2}:\d{2})([+-]|$)", "$1:00$2")
    zoned = bare.str.contains(_ZONE) & bare.str.contains(":")
    if zoned.any():
        found = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="us", strict=False)
    else:
        found = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    _refuse_unread(text, found)

    return Raw("datetime", times=_micro(found), zone="UTC" if zoned.any() else None)


def read_durations(text: pl.Series) -> Raw:
    """Texts as durations: ``2 days 03:04:05``, ``3:04``, or ISO's ``P2DT3H``.

    Raises:
        Unreadable: for the first that is none.
    """
    times = np.full(len(text), NAT, dtype=np.int64)
    for place, value in enumerate(text.to_list()):
        if value is None:
            continue
        fits = _CLOCK.match(value.strip()) or _ISO.match(value.strip())
        if fits is None or not any(fits[part] for part in "dhms"):
            raise Unreadable(place, value)
        seconds = sum(
            float(fits[part] or 0) * size
            for part, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
        )
        times[place] = round(seconds * 1e6) * (-1 if fits["sign"] else 1)

    return Raw("duration", times=times)


def since(raw: Raw, column: Column) -> NDArray[np.float64]:
    """Dates or durations as numbers (n,) of the column's unit, NaN where missing."""
    times = raw.times
    assert times is not None
    assert column.time_unit is not None
    gone = times == NAT
    found = (np.where(gone, 0, times) - epoch_of(column)) / MICRO[column.time_unit]

    return np.where(gone, np.nan, found)


def epoch_of(column: Column) -> int:
    """The microseconds from 1970 to a column's epoch; 0 for durations."""
    if column.epoch is None:
        return 0
    return _whole(datetime.fromisoformat(column.epoch))


def to_times(values: NDArray[np.float64], column: Column) -> NDArray[np.int64]:
    """Numbers (n,) of the column's unit as microseconds since 1970, or of a duration.

    NaN becomes NAT; what no date can be, the nearest that can: the years 1 to 9999.
    """
    assert column.time_unit is not None
    size, start = MICRO[column.time_unit], epoch_of(column)
    gone = np.isnan(values)
    whole = np.floor(np.where(gone, 0.0, values))
    rest = np.rint((np.where(gone, 0.0, values) - whole) * size)
    first, last = _whole(datetime(1, 1, 1)), _whole(datetime(9999, 12, 31))
    if column.kind == "duration":
        first, last = -(2**62), 2**62
    whole = np.clip(whole, (first - start) / size, (last - start) / size)
    found = whole.astype(np.int64) * size + rest.astype(np.int64) + start

    return np.where(gone, NAT, found)


def cyclic_parts(values: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """The angles (n, parts), in turns, of a date in its day, week or year.

    Example:
        >>> from quarflow.data.column import Column
        >>> date = {"kind": "date", "time_unit": "hour", "epoch": "2024-01-01T00:00:00"}
        >>> column = Column(name="t", cyclic=("day", "week"), **date)
        >>> cyclic_parts(np.array([0.0, 30.0]), column)
        array([[0.        , 0.        ],
               [0.25      , 0.17857143]])
    """
    assert column.time_unit is not None
    days = values * (MICRO[column.time_unit] / MICRO["day"]) + epoch_of(column) / MICRO["day"]
    turns = {"day": days, "week": (days + 3) / 7, "year": days / YEAR}  # 1970 began on a Thursday
    parts = [turns[part] % 1.0 for part in column.cyclic]

    return np.stack(parts, axis=-1) if parts else np.empty((*values.shape, 0))


def told(trouble: Unreadable, what: str, start: int = 0) -> str:
    """What is said of a text that cannot be read, and the row it stands in."""
    return (
        f"holds {shorten(trouble.text)} in row {start + trouble.place + 1:,}, which is no {what}"
    )


def _by_form(bare: pl.Series, text: pl.Series, form: str) -> Raw:
    import polars as pl

    timed = any(part in form for part in ("%H", "%I", "%M", "%S", "%T", "%R", "%X", "%s"))
    try:
        if timed:
            found: Any = bare.str.to_datetime(form, time_unit="us", strict=False)
        else:
            found = bare.str.to_date(form, strict=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"The format {form!r} cannot read dates: {reason}.") from None
    _refuse_unread(text, found)
    zone = getattr(found.dtype, "time_zone", None)
    times = _micro(found if timed else found.cast(pl.Datetime("us")))

    return Raw("datetime" if timed else "date", times=times, zone=zone)


def _refuse_unread(text: pl.Series, found: pl.Series) -> None:
    lost = (text.is_not_null() & found.is_null()).to_numpy()
    if lost.any():
        place = int(np.argmax(lost))
        raise Unreadable(place, text[place])


def _micro(column: pl.Series) -> NDArray[np.int64]:
    import polars as pl

    return column.cast(pl.Int64).fill_null(NAT).to_numpy(writable=True)


def _whole(moment: datetime) -> int:
    span = moment - datetime(1970, 1, 1)
    return (span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds
