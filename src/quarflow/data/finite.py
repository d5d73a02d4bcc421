r"""The check that values in memory are finite; files have one of their own, as they stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_finite", "refuse_infinite"]


def check_finite(
    rows: NDArray[np.float64],
    names: Sequence[str],
    what: str = "column",
    error: type[ValueError] = ValueError,
) -> None:
    """Refuse NaN and infinite values, by column and row (rows count from 1).

    Arguments:
        rows: Shape (n, D).
        names: Of the columns.
        what: They are called in the message.
        error: The class of it.

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
    raise error(
        f"The {what} {name!r} contains {kind} in row {row + 1} ({count} missing or infinite "
        f"value{'s' * (count > 1)} in all); drop or fill such rows first."
    )


def refuse_infinite(rows: NDArray[np.float64], names: Sequence[str]) -> None:
    """Refuse infinite values, by column and row (rows count from 1); NaN is let be.

    Arguments:
        rows: Shape (n, D).
        names: Of the columns.

    Raises:
        ValueError: naming the first such value and how many there are.
    """
    bad = np.isinf(rows)
    if bad.any():
        check_finite(np.where(bad, rows, 0.0), names)
