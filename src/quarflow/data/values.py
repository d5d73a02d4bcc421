r"""What users hand over as float64: one rule for arrays, tensors, and frames of any make.

Accepted is what holds numbers in every cell: whole ones, fractions, booleans, decimals, in
columns of any type, Python objects included. Text, dates, categories and complex numbers are
refused by the name of their column. What is missing becomes NaN, for the caller to judge.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "MISSING",
    "NUMBERS",
    "SPANS",
    "TIMES",
    "NotNumbers",
    "frame_names",
    "is_frame",
    "not_numbers",
    "numbers_of",
    "own_frame",
    "pick_columns",
    "plain_array",
    "read_values",
    "refuse_other",
    "short",
    "tensor_values",
]

Values = NDArray[np.float64]

NUMBERS = (bool, int, float, Decimal, Fraction, np.bool_, np.integer, np.floating)
TIMES = (datetime.date, datetime.time, np.datetime64)  # a datetime, or Timestamp, is a date
SPANS = (datetime.timedelta, np.timedelta64)
MISSING = ("NoneType", "NAType", "NaTType")  # the last two are pandas', which may not be there
TO_NUMBERS = "turn them into numbers first, such as {} since a start"


class NotNumbers(ValueError, TypeError):
    """Values that are no numbers; scikit-learn's contract has a TypeError for some of them."""


def read_values(data: Any, what: str = "X", prefix: str = "x") -> tuple[Values, list[str] | None]:
    """Values of an array, a tensor, a frame or nested lists, and the names of its columns.

    Arguments:
        data: Anything that holds numbers.
        what: Its name in messages.
        prefix: Columns without names are called so, and counted from 0, in messages.

    Returns:
        float64 of the same shape, C-contiguous and writable, NaN for missing values; the names,
        None where there are none (or only positions 0, 1, ..., which pandas gives).

    Raises:
        NotNumbers: naming the column, and the row, that holds something else.
        ValueError: for what is no table, names that repeat, and the like.

    Example:
        >>> from decimal import Decimal
        >>> read_values([[Decimal("1.5"), True], [None, 2]])[0]
        array([[1.5, 1. ],
               [nan, 2. ]])
        >>> read_values([[1.0, "two"]])
        Traceback (most recent call last):
        ...
        quarflow.data.values.NotNumbers: Column 'x1' of X holds text ('two' in row 1), not ...
    """
    refuse_other(data, what)
    if isinstance(data, torch.Tensor):
        return tensor_values(data, what), None
    if is_frame(data):
        return _frame(data, what)
    if isinstance(data, list | tuple):
        data = [tensor_values(row, what) if isinstance(row, torch.Tensor) else row for row in data]

    return np.require(_array(data, what, prefix), requirements=["C", "W"]), None


def is_frame(data: Any) -> bool:
    """Whether data are a frame of pandas, of polars, or of one that speaks Arrow.

    Example:
        >>> import polars as pl
        >>> is_frame(pl.DataFrame({"a": [1]})), is_frame([[1]]), is_frame(pl.Series([1]))
        (True, False, False)
    """
    return hasattr(data, "columns") and (
        hasattr(data, "iloc") or hasattr(data, "get_column") or hasattr(data, "__arrow_c_stream__")
    )


def pick_columns(frame: Any, names: Sequence[str], what: str) -> Any:
    """Only the named columns of a frame, in that order; numbers as names count as their digits.

    Arguments:
        frame: Of any kind, see ``is_frame``.
        names: The columns wanted.
        what: The argument it was, for messages.

    Raises:
        ValueError: naming the column that the frame lacks.
    """
    frame = own_frame(frame)
    held = [str(name) for name in frame.columns]
    for name in names:
        if name not in held:
            raise ValueError(f"{what} lacks the column {name!r} that the density needs.")
        if held.count(name) > 1:
            raise ValueError(f"Two columns of {what} are called {name!r}; rename one.")
    places = [held.index(name) for name in names]

    return frame.iloc[:, places] if hasattr(frame, "iloc") else frame[:, places]


def refuse_other(data: Any, what: str) -> None:
    """Refuse, with the way out, what is no table of numbers in memory."""
    trouble = None
    if hasattr(data, "toarray") and hasattr(data, "nnz"):
        trouble = f"is sparse, and sparse input is not supported; give {what}.toarray()"
    elif data is None:
        trouble = "is None; give an array or a frame"
    elif isinstance(data, str | bytes | bytearray):
        trouble = "is text or bytes; read the file first, such as by quarflow.data.read_table"
    elif isinstance(data, Mapping):
        trouble = f"is a dict; make it a frame first: pandas.DataFrame({what})"
    elif isinstance(data, Set | Iterator):
        trouble = (
            f"is a {type(data).__name__}, which has no rows in order; give a list or an array"
        )
    elif type(data).__name__ == "LazyFrame":
        trouble = f"is a LazyFrame; give {what}.collect()"
    elif isinstance(data, list | tuple) and any(isinstance(row, Mapping) for row in data):
        trouble = f"is a list of dicts; make it a frame first: pandas.DataFrame({what})"
    if trouble:
        raise NotNumbers(f"{what} {trouble}.")


def tensor_values(data: torch.Tensor, what: str) -> Values:
    """The values of a tensor, a copy."""
    if data.is_meta:
        raise ValueError(f"{what} is a tensor on the meta device, which holds no values.")
    if data.layout != torch.strided or data.is_quantized:
        way = "dequantize" if data.is_quantized else "to_dense"
        raise ValueError(f"{what} is a sparse or quantised tensor; give {what}.{way}().")
    if data.is_complex():
        raise _complex(f"{what} holds")

    # a copy: its memory may be read-only or shared with what goes on training
    return np.array(data.detach().cpu().double().numpy(), order="C")


def _frame(data: Any, what: str) -> tuple[Values, list[str] | None]:
    data = own_frame(data)
    names = frame_names(data, what)
    values = np.empty(data.shape, dtype=np.float64)
    pandas = hasattr(data, "iloc")
    for j, name in enumerate(data.columns):
        if pandas:
            values[:, j] = _pandas(data.iloc[:, j], f"Column {name!r} of {what}")
        else:
            values[:, j] = _polars(data.to_series(j), f"Column {name!r} of {what}")

    return values, names


def own_frame(frame: Any) -> Any:
    """A frame of pandas or polars as it is, another one as polars'."""
    if hasattr(frame, "iloc") or hasattr(frame, "get_column"):
        return frame
    import polars as pl

    return pl.DataFrame(frame)


def frame_names(frame: Any, what: str) -> list[str] | None:
    """The names, None for positions; refuses those that can't tell columns apart."""
    names = list(frame.columns)
    if getattr(frame.columns, "nlevels", 1) > 1:
        raise ValueError(
            f"The columns of {what} have names of several levels; join them first: "
            f"{what}.columns = {what}.columns.map(str)."
        )
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"Two columns of {what} are called {name!r}; rename one.")
        seen.add(name)
    if all(isinstance(name, str) for name in names):
        return names
    if names == list(range(len(names))):
        return None
    odd = next(name for name in names if not isinstance(name, str))
    raise ValueError(
        f"A column of {what} is called {odd!r}, which is not text: feature names are only "
        f"supported as strings, so set {what}.columns = {what}.columns.astype(str)."
    )


def _pandas(column: Any, where: str) -> Values:
    kind = getattr(column.dtype, "kind", "O")
    if column.dtype.name == "category":
        raise not_numbers(where, "categories")
    if kind in "biuf":
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind in "Mm" or column.dtype.name.startswith("period"):
        raise not_numbers(where, "time spans" if kind == "m" else "dates")

    return numbers_of(column.to_numpy(dtype=object), where)


def _polars(column: Any, where: str) -> Values:
    import polars as pl

    kind = column.dtype
    if kind.is_numeric() or kind in (pl.Boolean, pl.Null):
        return np.asarray(column.cast(pl.Float64).to_numpy())
    if kind in (pl.Categorical, pl.Enum):
        raise not_numbers(where, "categories")
    if kind.is_temporal():
        raise not_numbers(where, "time spans" if kind == pl.Duration else "dates")
    objects = np.empty(len(column), dtype=object)
    for row, value in enumerate(column.to_list()):  # one by one: values may be lists
        objects[row] = value

    return numbers_of(objects, where)


def _array(data: Any, what: str, prefix: str) -> NDArray[Any]:
    """An array of any number of dimensions, as numbers."""
    array = plain_array(data, what)
    if isinstance(array, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(array)
        values = _array(np.asarray(array.data), what, prefix)
        return np.where(hidden, np.nan, values) if hidden.any() else values
    array = np.asarray(array)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    _refuse_kinds(array, data, what)
    objects = array.astype(object)
    if array.ndim > 2 or not array.size:
        return numbers_of(objects.ravel(), what).reshape(array.shape)
    columns = objects[:, None] if array.ndim == 1 else objects
    read = [
        numbers_of(columns[:, j], f"Column '{prefix}{j}' of {what}")
        for j in range(columns.shape[1])
    ]

    return np.stack(read, axis=1).reshape(array.shape)


def plain_array(data: Any, what: str) -> NDArray[Any]:
    """An array of whatever it holds, of Python objects where they are of several types.

    Raises:
        ValueError: for rows of different lengths.
    """
    try:
        array = np.asanyarray(data)
        if array.dtype.kind in "US" and isinstance(data, list | tuple):
            array = np.array(data, dtype=object)  # one text made text of all the numbers
    except TypeError:  # dates among numbers
        array = np.array(data, dtype=object)
    except (ValueError, OverflowError):
        raise ValueError(ragged(data, what)) from None

    return array


def _refuse_kinds(array: NDArray[Any], data: Any, what: str) -> None:
    """Raise for arrays none of whose values can be numbers."""
    kind = array.dtype.kind
    if array.dtype.names:
        raise NotNumbers(f"{what} is a structured array; make it a frame: pandas.DataFrame(...).")
    if kind == "c":
        raise _complex(f"{what} holds")
    if kind in "Mm":
        raise not_numbers(what, "dates" if kind == "M" else "time spans")
    if array.ndim == 0:
        raise NotNumbers(
            f"{what} is a {type(data).__name__}; the argument must be no string and no object, "
            "but an array or a frame of numbers."
        )


def ragged(data: Any, what: str) -> str:
    """What is wrong with a list that is no table."""
    if isinstance(data, list) and all(hasattr(row, "__len__") for row in data):
        lengths = [len(row) for row in data]
        for row, length in enumerate(lengths, start=1):
            if length != lengths[0]:
                return (
                    f"Row {row} of {what} has {length} values, but row 1 has {lengths[0]}; "
                    "all rows need the same number."
                )

    return f"{what} cannot be read as a table of numbers; give an array or a frame."


def numbers_of(values: NDArray[Any], where: str) -> Values:
    """Python objects (n,) as numbers; refuses the first that is none, with its row."""
    kinds = set(map(type, values.tolist()))
    if all(issubclass(kind, NUMBERS) for kind in kinds):
        try:
            return values.astype(np.float64)
        except (OverflowError, ValueError):  # a whole number beyond all floats, Decimal("sNaN")
            pass
    found = np.empty(len(values))
    for row, value in enumerate(values.tolist()):
        found[row] = _number(value, row + 1, where)

    return found


def _number(value: Any, row: int, where: str) -> float:
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if type(value).__name__ in MISSING or value is np.ma.masked:
        return np.nan
    if isinstance(value, SPANS):
        raise not_numbers(where, "time spans", value, row)
    if isinstance(value, TIMES):
        raise not_numbers(where, "dates", value, row)
    if isinstance(value, str | bytes):
        raise not_numbers(where, "text", value, row)
    if isinstance(value, complex | np.complexfloating):
        raise _complex(f"{where} holds, in row {row},")
    if not isinstance(value, NUMBERS):
        raise NotNumbers(
            f"{where} holds {short(repr(value))}, of type {type(value).__name__}, in row {row}: "
            "what stands for a value in an argument must be no string and no object, but a number."
        )
    if isinstance(value, Decimal) and value.is_nan():
        return np.nan
    try:
        return float(value)
    except OverflowError:
        raise NotNumbers(
            f"{where} holds a number of {len(str(value).lstrip('-'))} digits in row {row}, "
            "too large to compute with; rescale the column."
        ) from None


def _complex(where: str) -> NotNumbers:
    return NotNumbers(
        f"Complex data not supported: {where} complex numbers; give their real and imaginary "
        "parts as columns of their own."
    )


def not_numbers(where: str, kind: str, value: Any = None, row: int = 0) -> NotNumbers:
    """The error for a column of something else, and what to do about it."""
    advice = {
        "dates": TO_NUMBERS.format("days"),
        "time spans": "turn them into numbers first, such as seconds",
    }.get(kind, "leave it out or encode it as numbers")
    shown = ""
    if row:
        shown = f" ({short(repr(value) if kind == 'text' else str(value))} in row {row})"

    return NotNumbers(f"{where} holds {kind}{shown}, not numbers; {advice}.")


def short(text: str) -> str:
    """Text for a message, in one line and at most 40 characters."""
    text = " ".join(text.split())

    return text if len(text) <= 40 else text[:36] + "..."
