r"""Checks of what users hand over, with messages that name the column and the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_finite", "check_numeric"]


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
