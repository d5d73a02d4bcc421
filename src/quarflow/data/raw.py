"""Columns as they come, from frames, arrays and lists: numbers, flags, labels or times."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.values import (
    MISSING,
    SPANS,
    TIMES,
    NotNumbers,
    frame_names,
    is_frame,
    numbers_of,
    own_frame,
    plain_array,
    refuse_other,
    tensor_values,
)

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NAT", "Form", "Raw", "read_raw", "series_raw"]

NAT = int(np.iinfo(np.int64).min)  # a missing time
Form = Literal["number", "bool", "text", "label", "date", "datetime", "duration"]
_KNOWN = "the kinds of columns are numbers, text, flags, categories, dates and durations"


@dataclass(frozen=True)
class Raw:
    """The n values of a column as they came.

    Attributes:
        form: Which of the others holds them.
        numbers: float64 of numbers and flags (0 and 1), NaN where missing.
        text: Strings, null where missing.
        labels: Python objects of labels that are no text, None where missing.
        times: Microseconds, of dates since 1970 (UTC where there is a zone), int64; NAT where
            missing.
        zone: Of dates.
        known: The labels in their own order, of a column that has one.
    """

    form: Form
    numbers: NDArray[np.float64] | None = None
    text: pl.Series | None = None
    labels: list[Any] | None = None
    times: NDArray[np.int64] | None = None
    zone: str | None = None
    known: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        held = (self.numbers, self.text, self.labels, self.times)
        return len(next(values for values in held if values is not None))

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which values (n,) are not there."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        if self.text is not None:
            return self.text.is_null().to_numpy()
        if self.times is not None:
            return np.asarray(self.times == NAT)
        return np.array([label is None for label in self.labels or []], dtype=bool)


def read_raw(data: Any, what: str = "X", prefix: str = "x") -> tuple[list[Raw], list[str] | None]:
    """The columns of a frame, an array, a tensor or nested lists, and their names.

    Arguments:
        data: A table in memory.
        what: Its name in messages.
        prefix: Columns without names are called so, and counted from 0, in messages.

    Returns:
        A column each; the names, None where there are none.

    Raises:
        ValueError: for what is no table, and for values of no kind known, by column and row.

    Example:
        >>> columns, names = read_raw([[1.5, "a"], [None, "b"]])
        >>> [column.form for column in columns], names
        (['number', 'text'], None)
    """
    refuse_other(data, what)
    if isinstance(data, torch.Tensor):
        return _array(tensor_values(data, what), what, prefix), None
    if is_frame(data):
        data = own_frame(data)
        names = frame_names(data, what)
        shown = [f"Column {name!r} of {what}" for name in data.columns]
        if hasattr(data, "iloc"):
            return [pandas_raw(data.iloc[:, j], name) for j, name in enumerate(shown)], names
        return [series_raw(data.to_series(j), name) for j, name in enumerate(shown)], names
    if isinstance(data, list | tuple):
        data = [tensor_values(row, what) if isinstance(row, torch.Tensor) else row for row in data]
    array = plain_array(data, what)
    if array.ndim != 2:  # let `check_table` say what to do
        return _array(array.reshape(len(array) if array.ndim else 1, -1), what, prefix), None

    return _array(array, what, prefix), None


def pandas_raw(column: Any, where: str) -> Raw:
    """A column of pandas'; ``where`` names it in messages."""
    kind, name = getattr(column.dtype, "kind", "O"), column.dtype.name
    if name == "category":
        known = tuple(map(_plain, column.cat.categories.tolist()))
        codes = column.cat.codes.to_numpy()
        return _coded(known, codes)
    if kind == "b":
        return Raw("bool", numbers=column.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind in "iuf":
        return Raw("number", numbers=column.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind == "M":
        zone = getattr(column.dtype, "tz", None)
        if zone is not None:
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        return _moments(column.to_numpy(), None if zone is None else str(zone))
    if kind == "m":
        return Raw("duration", times=column.to_numpy().astype("timedelta64[us]").astype(np.int64))
    if name.startswith("period"):
        raise NotNumbers(
            f"{where} holds periods; make them dates first: column.dt.to_timestamp()."
        )

    return _objects(column.to_numpy(dtype=object), where)


def series_raw(column: pl.Series, where: str) -> Raw:
    """A column of polars'; ``where`` names it in messages."""
    import polars as pl

    kind = column.dtype
    if kind == pl.Boolean:
        return Raw("bool", numbers=column.cast(pl.Float64).to_numpy(writable=True))
    if kind.is_numeric() or kind == pl.Null:
        return Raw("number", numbers=column.cast(pl.Float64).to_numpy(writable=True))
    if kind in (pl.String, pl.Categorical, pl.Enum):
        known = tuple(kind.categories.to_list()) if isinstance(kind, pl.Enum) else None
        return Raw("text", text=column.cast(pl.String), known=known)
    if kind.is_temporal():
        return _temporal(column, where)
    objects = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.to_list()):  # one by one: values may be lists
        objects[row] = value

    return _objects(objects, where)


def _temporal(column: pl.Series, where: str) -> Raw:
    import polars as pl

    kind = column.dtype
    if kind == pl.Time:
        raise _no_time(where)
    if kind == pl.Date:
        return Raw("date", times=_micro(column.cast(pl.Datetime("us"))))
    times = _micro(column.dt.cast_time_unit("us"))
    if isinstance(kind, pl.Datetime):
        return Raw("datetime", times=times, zone=kind.time_zone)
    return Raw("duration", times=times)


def _array(array: NDArray[Any], what: str, prefix: str) -> list[Raw]:
    """The columns of an array (n, D)."""
    if isinstance(array, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(array)
        held = np.asarray(array.data).astype(object)
        held[hidden] = None
        array = held if hidden.any() or array.dtype.kind == "O" else np.asarray(array.data)
    kind = array.dtype.kind
    columns = [array[:, j] for j in range(array.shape[1])]
    if kind in "biuf":
        return [Raw("number", numbers=column.astype(np.float64)) for column in columns]
    if kind == "M":
        return [_moments(column, None) for column in columns]
    if kind == "m":
        times = (column.astype("timedelta64[us]").astype(np.int64) for column in columns)
        return [Raw("duration", times=column) for column in times]
    if array.dtype.names or kind not in "OUS":
        raise _no_kind(array, what)
    objects = array.astype(str if kind == "S" else object).astype(object)

    return [
        _objects(objects[:, j], f"Column '{prefix}{j}' of {what}") for j in range(array.shape[1])
    ]


def _no_kind(array: NDArray[Any], what: str) -> NotNumbers:
    if array.dtype.names:
        return NotNumbers(f"{what} is a structured array; make it a frame: pandas.DataFrame(...).")
    if array.dtype.kind == "c":
        return NotNumbers(
            f"Complex data not supported: {what} holds complex numbers; give their real and "
            "imaginary parts as columns of their own."
        )
    return NotNumbers(f"{what} holds values of type {array.dtype}; {_KNOWN}.")


def _objects(values: NDArray[Any], where: str) -> Raw:
    """A column of Python objects (n,), of what they all are."""
    items = [None if _is_missing(value) else _unboxed(value) for value in values]
    kinds = {type(item) for item in items} - {type(None)}
    if kinds and all(issubclass(kind, str) for kind in kinds):
        return _text(items)
    if kinds and all(issubclass(kind, bool | np.bool_) for kind in kinds):
        return Raw("bool", numbers=numbers_of(values, where))
    if kinds and all(issubclass(kind, TIMES) for kind in kinds):
        return _dates(items, kinds, where)
    if kinds and all(issubclass(kind, SPANS) for kind in kinds):
        spans = [NAT if item is None else _span(item) for item in items]
        return Raw("duration", times=np.array(spans, dtype=np.int64))
    if any(issubclass(kind, str) for kind in kinds) and all(
        issubclass(kind, str | bool | int | float | np.number | np.bool_) for kind in kinds
    ):
        return Raw("label", labels=[None if i is None else _plain(i) for i in items])

    return Raw("number", numbers=numbers_of(values, where))


def _coded(known: tuple[Any, ...], codes: NDArray[Any]) -> Raw:
    """A categorical column, by its labels and the code of each row (-1: missing)."""
    labels: list[Any] = [None, *known]
    items = [labels[code + 1] for code in codes.tolist()]
    if known and all(isinstance(label, str) for label in known):
        found = _text(items)
        return Raw("text", text=found.text, known=known)

    return Raw("label", labels=items, known=known)


def _text(items: Iterable[str | None]) -> Raw:
    import polars as pl

    return Raw("text", text=pl.Series(items, dtype=pl.String))


def _moments(values: NDArray[Any], zone: str | None) -> Raw:
    """Dates of NumPy's (n,); those that count days, or whole days, have no time of day."""
    form: Form = "date" if np.datetime_data(values.dtype)[0] in "YMWD" else "datetime"
    return Raw(form, times=values.astype("datetime64[us]").astype(np.int64), zone=zone)


def _dates(items: list[Any], kinds: set[type], where: str) -> Raw:
    """Python's dates, or NumPy's."""
    if any(issubclass(kind, datetime.time) for kind in kinds):
        raise _no_time(where)
    if all(issubclass(kind, np.datetime64) for kind in kinds):
        found = np.array([np.datetime64("NaT") if i is None else i for i in items])
        return _moments(found, None)
    moments = [kind for kind in kinds if issubclass(kind, datetime.datetime | np.datetime64)]
    zones = {str(item.tzinfo) for item in items if getattr(item, "tzinfo", None) is not None}
    bare = any(item is not None and getattr(item, "tzinfo", None) is None for item in items)
    if zones and bare:
        raise NotNumbers(f"{where} holds dates with a time zone and others without; choose one.")
    zone = next(iter(zones)) if len(zones) == 1 else "UTC" if zones else None
    times = [NAT if item is None else _moment(item) for item in items]

    return Raw("datetime" if moments else "date", times=np.array(times), zone=zone)


def _moment(value: Any) -> int:
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[us]").astype(np.int64))
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    span = value - datetime.datetime(1970, 1, 1)

    return _span(span)


def _span(value: Any) -> int:
    if isinstance(value, np.timedelta64):
        return int(value.astype("timedelta64[us]").astype(np.int64))
    return int(value / datetime.timedelta(microseconds=1)) if _odd(value) else _whole(value)


def _odd(value: datetime.timedelta) -> bool:
    return bool(getattr(value, "nanoseconds", 0))


def _whole(value: datetime.timedelta) -> int:
    return (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds


def _micro(column: pl.Series) -> NDArray[np.int64]:
    import polars as pl

    return column.cast(pl.Int64).fill_null(NAT).to_numpy(writable=True)


def _is_missing(value: Any) -> bool:
    return (
        type(value).__name__ in MISSING
        or value is np.ma.masked
        or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
        or (isinstance(value, np.datetime64 | np.timedelta64) and bool(np.isnat(value)))
    )


def _unboxed(value: Any) -> Any:
    """What a tensor or an array without dimensions holds."""
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        return value.item()
    return value


def _plain(label: Any) -> Any:
    """A label as one of Python's own types, as far as it is a flag, a number or text."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bool | int | float | str):
        return label
    return str(label)


def _no_time(where: str) -> NotNumbers:
    return NotNumbers(
        f"{where} holds times of day; turn them into numbers first, such as seconds since "
        "midnight, and say that they are periodic with the period 86400."
    )
