r"""How much each row counts: weights as users give them, and what they do before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.columns import Column, Columns
from quarflow.data.values import read_values
from quarflow.density.checks import LEAST_ROWS

__all__ = ["counted", "effective_rows", "read_weights", "weighed"]

Array = NDArray[np.float64]


def read_weights(sample_weight: Any, rows: int) -> Array | None:
    """Weights (rows) as numbers; None where all rows count the same.

    Arguments:
        sample_weight: What the user gave; None for no weights.
        rows: How many there must be.

    Raises:
        ValueError: for other than one number for each row, one that is negative, infinite or
            missing, or too few above 0.

    Example:
        >>> read_weights([1, 2, 0, 1, 5], rows=5)
        array([1., 2., 0., 1., 5.])
        >>> read_weights([3, 3, 3, 3], rows=4) is None
        True
    """
    if sample_weight is None:
        return None
    weights, _ = read_values(sample_weight, "sample_weight", "w")
    if weights.ndim == 2 and weights.shape[1] == 1 and hasattr(sample_weight, "columns"):
        weights = weights[:, 0]  # a frame of one column
    if weights.ndim != 1:
        raise ValueError(
            "sample_weight must be 1D, one number for each row of X, not of shape "
            f"{weights.shape}."
        )
    if len(weights) != rows:
        raise ValueError(
            f"sample_weight has {len(weights)} numbers and X has {rows} rows: give one for each."
        )
    _check(weights)
    if (weights == weights[0]).all():
        return None

    return weights


def _check(weights: Array) -> None:
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"sample_weight is {weights[row]:g} in row {row}: weights are finite numbers of at "
            "least 0; give a row that shall not count 0."
        )
    positive = int((weights > 0).sum())
    if positive < LEAST_ROWS:
        raise ValueError(
            f"sample_weight is above 0 in {positive} rows: a density needs at least {LEAST_ROWS} "
            "rows that count."
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise ValueError("sample_weight is too large to be summed: divide it by its largest.")


def counted(
    rows: Array, given: Array | None, weights: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Rows, their context and weights, without those of weight 0, which are as good as absent.

    Example:
        >>> rows = np.array([[1.0], [2.0], [3.0]])
        >>> counted(rows, None, np.array([1.0, 0.0, 2.0]))
        (array([[1.],
               [3.]]), None, array([1., 2.]))
    """
    if weights is None or weights.all():
        return rows, given, weights
    there = weights > 0
    left = weights[there]
    same = bool((left == left[0]).all())

    return rows[there], None if given is None else given[there], None if same else left


def effective_rows(weights: Array) -> float:
    r"""Rows of equal weight that would tell as much: :math:`(\sum w)^2 / \sum w^2` (Kish).

    Example:
        >>> effective_rows(np.array([1.0, 1.0, 1.0, 0.0]))
        3.0
    """
    relative = weights / weights.max()

    return float(relative.sum() ** 2 / (relative**2).sum())


def weighed(columns: Columns, rows: Array, weights: Array | None) -> Columns:
    """Columns standardised by weighted means and deviations, and levels by weighted masses.

    What a column is (its levels, ties, tails and bounds) is seen from the rows as they are.

    Arguments:
        columns: As fitted to the rows.
        rows: Shape (n, D).
        weights: Shape (n); None leaves all as it is.
    """
    if weights is None:
        return columns
    x = columns.dequantise(torch.from_numpy(rows), torch.Generator().manual_seed(0))
    u = columns.transform()(x).numpy()
    share = weights / weights.sum()

    return Columns(
        tuple(
            _weighed(column, u[:, j], rows[:, j], share)
            for j, column in enumerate(columns.columns)
        )
    )


def _weighed(column: Column, u: Array, x: Array, share: Array) -> Column:
    if column.levels:
        nearest = np.abs(x[:, None] - np.asarray(column.levels)).argmin(1)
        # half a row more for each level, as where all rows count the same
        masses = np.bincount(nearest, share * len(x), len(column.levels)) + 0.5
        return column.model_copy(update={"masses": tuple((masses / masses.sum()).tolist())})
    if column.constant or column.shape is not None:
        return column
    mean = float(share @ u)
    scale = float(np.sqrt(share @ (u - mean) ** 2))
    if not scale > 1e-6:  # nearly all weight is on one value
        return column

    return column.model_copy(
        update={"mean": column.mean + column.scale * mean, "scale": column.scale * scale}
    )
