r"""Checks of what users hand over, with messages that name the column and the row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from quarflow.data.columns import Columns
from quarflow.data.finite import check_finite
from quarflow.data.values import is_frame, pick_columns, read_values

__all__ = [
    "check_fitted",
    "check_rows",
    "check_table",
    "context_for",
    "read_context",
    "seed_of",
    "warn_of_new_values",
]

LEAST_ROWS = 4


def check_fitted(density: Any) -> None:
    """Refuse to use a density before it is fitted.

    Raises:
        NotFittedError: which is a ValueError.
    """
    if not hasattr(density, "flow_"):
        name = type(density).__name__
        raise NotFittedError(f"This {name} is not fitted yet; call fit, or load, first.")


def seed_of(random_state: Any) -> int:
    """A seed: the number given, or one that a RandomState gives, NumPy's own for None.

    Example:
        >>> seed_of(5)
        5
    """
    if isinstance(random_state, int | np.integer):
        return int(random_state)

    return int(check_random_state(random_state).randint(2**31 - 1))


def check_rows(rows: int) -> None:
    """Refuse to fit to almost nothing.

    Raises:
        ValueError: for fewer rows than a density needs.
    """
    if rows < LEAST_ROWS:
        raise ValueError(
            f"A density needs at least {LEAST_ROWS} rows to be fitted to; there "
            f"{'is' if rows == 1 else 'are'} {rows} sample{'s' * (rows > 1)}."
        )


def check_table(values: NDArray[Any]) -> None:
    """Refuse what has no rows and columns, with the way out.

    Raises:
        ValueError: for other than two dimensions.
    """
    if values.ndim != 2:
        raise ValueError(
            f"Expected a 2D array of rows x columns for X, got an array with dim "
            f"{values.ndim}. Reshape your data: X.reshape(-1, 1) makes a column of it, "
            "X.reshape(1, -1) a row, X.reshape(len(X), -1) a row of each entry."
        )


def read_context(context: Any, rows: int) -> tuple[NDArray[np.float64], list[str]]:
    """Values (n, C) and column names of a context to fit with; c0, c1, ... without names.

    Raises:
        ValueError: if it does not have one row for each row of X, or holds no finite numbers.

    Example:
        >>> read_context([1.0, 2.0], rows=2)[1]
        ['c0']
    """
    values, names = read_values(context, "context", "c")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != rows or not values.shape[1]:
        raise ValueError(
            f"context must have one row for each of the {rows} rows of X, and a column at least, "
            f"not shape {values.shape}."
        )
    names = names or [f"c{i}" for i in range(values.shape[1])]
    check_finite(values, names, what="context column")

    return values, names


def context_for(context: Any, wanted: Sequence[str], rows: int) -> NDArray[np.float64]:
    """Values (rows, C) of a context to use a fitted density with.

    A frame is taken by its column names, as far as it has any that are text; a single row, or C
    numbers, serve all the rows.

    Raises:
        ValueError: if columns are missing or the shape does not fit.

    Example:
        >>> context_for([1.0, 2.0], ["a", "b"], rows=3).shape
        (3, 2)
    """
    if is_frame(context) and any(isinstance(name, str) for name in context.columns):
        context = pick_columns(context, wanted, "context")
    values, _ = read_values(context, "context", "c")
    if values.ndim == 0 or (values.ndim == 1 and len(wanted) > 1):
        values = values.reshape(1, -1)
    elif values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) not in (1, rows):
        raise ValueError(
            f"context must have one row for each of the {rows} rows of X, or one for all of "
            f"them, not shape {values.shape}."
        )
    if values.shape[1] != len(wanted):
        raise ValueError(
            f"context must have the {len(wanted)} columns {', '.join(wanted)}, not "
            f"{values.shape[1]}."
        )
    check_finite(values, wanted, what="context column")

    return values if len(values) == rows else np.repeat(values, rows, axis=0)


def warn_of_new_values(context: NDArray[np.float64], columns: Columns) -> None:
    """Warn, by name, where a context column that was constant while fitting has another value.

    Example:
        >>> X = np.array([[1.0, 5.0], [2.0, 5.0]])
        >>> columns = Columns.fit(X, ["a", "b"], constant="keep")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warn_of_new_values(np.array([[3.0, 6.0]]), columns)
        >>> print(caught[0].message)
        The context column 'b' was 5 in every row fitted to: other values there change nothing.
    """
    for j, column in enumerate(columns.columns):
        if not column.constant:
            continue
        near = 1e-9 * max(abs(column.mean), 1e-300)
        if (np.abs(context[:, j] - column.mean) > near).any():
            warnings.warn(
                f"The context column {column.name!r} was {column.mean:.6g} in every row fitted "
                "to: other values there change nothing.",
                stacklevel=4,
            )
