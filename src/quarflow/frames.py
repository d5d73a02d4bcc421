r"""Checks of what users hand over, with messages that name the column and the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_finite", "check_numeric", "context_for", "read_context"]


def check_numeric(frame: Any, what: str) -> None:
    """Refuse text, dates and the like in a pandas or polars frame, by the column's name.

    Raises:
        ValueError: naming the first such column.

    Example:
        >>> import polars as pl
        >>> check_numeric(pl.DataFrame({"a": [1], "b": ["x"]}), "X")
        Traceback (most recent call last):
        ...
        ValueError: Column 'b' of X holds String, not numbers; leave it out or encode it.
    """
    schema = getattr(frame, "schema", None)
    if schema is not None and hasattr(schema, "items"):  # polars
        kinds = {name: (str(kind), _polars_numeric(kind)) for name, kind in schema.items()}
    elif hasattr(frame, "dtypes") and hasattr(frame, "columns"):  # pandas
        kinds = {
            name: (str(kind), getattr(kind, "kind", "O") in "biuf")
            for name, kind in zip(frame.columns, frame.dtypes, strict=True)
        }
    else:
        return
    for name, (kind, numeric) in kinds.items():
        if not numeric:
            raise ValueError(
                f"Column {name!r} of {what} holds {kind}, not numbers; leave it out or encode it."
            )


def _polars_numeric(kind: Any) -> bool:
    return bool(kind.is_numeric()) or str(kind) == "Boolean"


def check_finite(rows: NDArray[np.float64], names: Sequence[str], what: str = "column") -> None:
    """Refuse NaN and infinite values, by column and row (rows count from 1).

    Raises:
        ValueError: naming the first such value and how many there are.

    Example:
        >>> check_finite(np.array([[1.0], [np.nan]]), ["a"])
        Traceback (most recent call last):
        ...
        ValueError: The column 'a' contains NaN in row 2 (1 missing or infinite value in all); ...
    """
    bad = ~np.isfinite(rows)
    count = int(bad.sum())
    if not count:
        return
    row, column = np.argwhere(bad)[0]
    kind = "NaN" if np.isnan(rows[row, column]) else "infinity"
    name = names[column] if column < len(names) else f"x{column}"
    raise ValueError(
        f"The {what} {name!r} contains {kind} in row {row + 1} ({count} missing or infinite "
        f"value{'s' * (count > 1)} in all); drop or fill such rows first."
    )


def read_context(context: Any, rows: int) -> tuple[NDArray[np.float64], list[str]]:
    """Values (n, C) and column names of a context to fit with; c0, c1, ... without names.

    Raises:
        ValueError: if it does not have one row for each row of X, or holds no finite numbers.

    Example:
        >>> read_context([1.0, 2.0], rows=2)[1]
        ['c0']
    """
    check_numeric(context, "context")
    values = np.require(context, dtype=np.float64, requirements=["C", "W"])
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != rows:
        raise ValueError(
            f"context must have one row for each of the {rows} rows of X, not shape "
            f"{values.shape}."
        )
    names = getattr(context, "columns", None)
    names = [f"c{i}" for i in range(values.shape[1])] if names is None else [*map(str, names)]
    check_finite(values, names, what="context column")

    return values, names


def context_for(context: Any, wanted: Sequence[str], rows: int) -> NDArray[np.float64]:
    """Values (rows, C) of a context to use a fitted density with.

    A frame is taken by its column names; a single row, or C numbers, serve all the rows.

    Raises:
        ValueError: if columns are missing or the shape does not fit.

    Example:
        >>> context_for([1.0, 2.0], ["a", "b"], rows=3).shape
        (3, 2)
    """
    names = getattr(context, "columns", None)
    if names is not None:
        missing = [name for name in wanted if name not in list(names)]
        if missing:
            raise ValueError(f"context lacks the column {missing[0]!r} that the density needs.")
        context = context[list(wanted)]
    elif np.ndim(context) == 1 and len(wanted) > 1:
        context = np.asarray(context)[None]
    elif np.ndim(context) == 0:
        context = np.full((1, 1), context)
    if np.ndim(context) == 2 and np.shape(context)[0] == 1:
        values = np.broadcast_to(read_context(context, 1)[0], (rows, np.shape(context)[1]))
    elif np.shape(context) == (1,):
        values = np.broadcast_to(read_context(context, 1)[0], (rows, 1))
    else:
        values = read_context(context, rows)[0]
    if values.shape[1] != len(wanted):
        raise ValueError(
            f"context must have the {len(wanted)} columns {', '.join(wanted)}, not "
            f"{values.shape[1]}."
        )

    return np.require(values, requirements=["C", "W"])  # tensors cannot share read-only memory
