"""The bounds that a user gives a column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quarflow.data.source import shorten

__all__ = ["bounds_of"]


def bounds_of(name: str, pair: Any) -> tuple[float | None, float | None]:
    """The bounds of a column as numbers; None for an open side.

    Raises:
        ValueError: naming the column, if they are no pair of finite numbers in order.

    Example:
        >>> bounds_of("age", (0, None))
        (0.0, None)
    """
    if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
        raise ValueError(f"The bounds of {name!r} must be a pair (lower, upper), not {pair!r}.")
    for limit in pair:
        number = isinstance(limit, int | float | np.integer | np.floating)
        if limit is not None and (not number or isinstance(limit, bool)):
            raise ValueError(
                f"The bounds of {name!r} must be numbers, or None for no bound, not {limit!r}."
            )
    try:
        lower, upper = (None if limit is None else float(limit) for limit in pair)
    except OverflowError:
        lower = upper = math.inf
    if any(limit is not None and not math.isfinite(limit) for limit in (lower, upper)) or (
        lower is not None and upper is not None and lower >= upper
    ):
        raise ValueError(
            f"The bounds of {name!r} must be finite with lower < upper (None for no bound), "
            f"not ({shorten(pair[0])}, {shorten(pair[1])})."
        )
    return lower, upper
