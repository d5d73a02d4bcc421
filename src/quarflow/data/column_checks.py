"""What tables, names and bounds must be like before columns are fitted, and messages for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from quarflow.data.column import Column
from quarflow.data.column_bounds import bounds_of
from quarflow.data.finite import check_finite
from quarflow.data.source import listed, shorten

__all__ = ["Bounds", "check_inside", "check_spread", "check_table", "is_constant"]

Bounds = Mapping[str, tuple[float | None, float | None]]


def check_table(
    X: np.ndarray,
    names: list[str],
    bounds: Bounds,
    discrete: str | Sequence[str],
    tails: str,
    holes: bool = False,
) -> dict[str, tuple[float | None, float | None]]:
    """Refuse what cannot be fitted; the bounds come back as numbers.

    Arguments:
        X: Rows (N, D).
        names, bounds, discrete, tails: As ``Columns.fit`` gets them.
        holes: Whether values may be missing.

    Raises:
        ValueError: Naming the argument, or the column and row.
    """
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"The data must be rows x columns, but have shape {X.shape}.")
    if len(names) != X.shape[1]:
        raise ValueError(f"There are {len(names)} names for {X.shape[1]} columns.")
    _check_distinct(names)
    if len(X) < 2:
        raise ValueError(f"Fitting needs at least 2 rows, and there is {len(X)}.")
    check_finite(np.nan_to_num(X, nan=0.0, posinf=np.inf, neginf=-np.inf) if holes else X, names)
    if tails not in ("auto", "none"):
        raise ValueError(f"tails must be 'auto' or 'none', not {tails!r}.")
    if isinstance(discrete, str) and discrete in ("auto", "none"):
        discrete = []
    if isinstance(discrete, str) or not isinstance(discrete, Iterable):
        raise ValueError(
            f"discrete must be 'auto', 'none' or a list of column names, not {discrete!r}."
        )
    if not isinstance(bounds, Mapping):
        raise ValueError(f"bounds must be a dict {{column: (lower, upper)}}, not {bounds!r}.")
    _check_known("discrete", discrete, names)
    _check_known("bounds", bounds, names)
    return {name: bounds_of(name, pair) for name, pair in bounds.items()}


def _check_known(argument: str, given: Iterable[str], names: list[str]) -> None:
    for name in given:
        if name not in names:
            raise ValueError(
                f"{argument} names the column {shorten(name)}, but the columns are "
                f"{listed(names)}."
            )


def _check_distinct(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"Two columns are called {name!r}; rename one.")
        seen.add(name)


def check_inside(x: np.ndarray, column: Column) -> None:
    """Refuse the first value of x (N) outside the column's bounds."""
    if column.lower is None and column.upper is None:
        return
    lower, upper = column.support
    bad = (x <= lower) | (x >= upper)
    if bad.any():
        row = int(np.argmax(bad))
        value = float(x[row])
        limit, word = (column.lower, "above") if value <= lower else (column.upper, "below")
        or_on = "at or " if column.step is not None else ""
        raise ValueError(
            f"Column {column.name!r} is {value:.17g} in row {row + 1:,}, but by its bounds every "
            f"value must lie {or_on}{word} {limit:.17g}; correct the value or move the bound."
        )


def check_spread(name: str, low: float, high: float) -> None:
    """Refuse a column that is constant or beyond computing with.

    Arguments:
        name: For the message.
        low, high: Its smallest and largest value.
    """
    if low == high:
        raise ValueError(
            f"Column {name!r} is constant ({low:.6g} in every row), so it has no density; "
            "leave it out."
        )
    if is_constant(np.array([low, high])):
        raise ValueError(
            f"Column {name!r} is constant but for rounding (from {low!r} to {high!r}); "
            "leave it out, or subtract its mean before it is stored."
        )
    if max(abs(low), abs(high)) > 1e100 or high - low < 1e-100:  # squares would overflow
        raise ValueError(
            f"Column {name!r} goes from {low:.6g} to {high:.6g}, too large or too small "
            "to compute with; rescale it."
        )


def is_constant(x: np.ndarray) -> bool:
    """Whether all values of a column are the same, but for rounding."""
    low, high = float(x.min()), float(x.max())
    return high - low <= 256 * math.ulp(max(abs(low), abs(high)))
