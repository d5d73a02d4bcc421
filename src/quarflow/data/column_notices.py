"""What is said about columns without refusing them: exact dependence, contexts far away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quarflow.data.column import Column
from quarflow.data.column_detect import subsample

__all__ = ["dependence", "far_away"]

ROWS = 5000
EXACT = 1e-6  # residual, in standard deviations, below which a column is a combination of others
SHOWN = 5
FAR = 0.5  # how far outside the range seen in training is far, in widths of the range


def dependence(X: np.ndarray, columns: Sequence[Column]) -> str | None:
    """A sentence on columns of X (N, D) that others determine exactly; None if there are none.

    Columns with levels that depend on several others are left out: a one-hot block has
    probabilities, which stay finite.
    """
    rows = X[subsample(np.arange(len(X)), max(ROWS, 4 * X.shape[1]))]
    wide = rows.std(axis=0)
    wide[wide == 0] = 1.0
    U = (rows - rows.mean(axis=0)) / wide
    if len(U) <= 2 * U.shape[1]:  # too few to tell dependence from chance, but for copies
        U = U[:, : max(len(U) // 2, 1)]
    left = np.abs(np.diagonal(np.linalg.qr(U, mode="r"))) / len(U) ** 0.5
    dependent = np.flatnonzero(left < EXACT)
    free = np.flatnonzero(left >= EXACT)
    parts = []
    for j in dependent[:100]:
        before = free[free < j]
        weights = np.linalg.lstsq(U[:, before], U[:, j], rcond=None)[0]
        others = [int(i) for i in before[np.abs(weights) > 10 * EXACT]]
        if not others or (len(others) > 1 and all(columns[i].levels for i in (j, *others))):
            continue
        names = " and ".join(repr(columns[i].name) for i in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        parts.append(f"{columns[j].name!r} by {names}{more}")
    if not parts:
        return None
    more = f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""

    return (
        f"Columns are determined exactly by others: {'; '.join(parts[:SHOWN])}{more}. Their joint "
        "density is infinite, so scores mean little and depend on rounding: leave those columns "
        "out. The fit goes on."
    )


def far_away(values: np.ndarray, columns: Sequence[Column]) -> str | None:
    """A sentence on columns whose values (N, C) lie far outside those seen; None if none do."""
    parts = []
    for j, column in enumerate(columns):
        if column.seen is None or column.constant or len(values) == 0:
            continue
        low, high = column.seen
        reach = FAR * (high - low)
        if values[:, j].min() < low - reach or values[:, j].max() > high + reach:
            parts.append(f"{column.name!r} (from {low:.6g} to {high:.6g} in training)")
    if not parts:
        return None
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""

    return (
        f"The context lies far outside what was seen: {', '.join(parts[:SHOWN])}{more}. What the "
        "density is there, no row says."
    )
