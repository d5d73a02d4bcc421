r"""How well cells are filled in: some of rows that are known are hidden, and compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.impute import fill_cells, quantiles_of_cells
from quarflow.density.questions_model import Answers

__all__ = ["Check", "by_regressions", "check_imputation", "error", "hide", "intervals"]

Values = NDArray[np.float64]
WIDEST = 200  # columns, with one for each label, up to which others' imputation is run
ENDS = {0.5: (0, 3), 0.9: (1, 2)}  # which of the quantiles below bound it
QUANTILES = (0.25, 0.05, 0.95, 0.75)


@dataclass(frozen=True)
class Check:
    """Hidden cells against what was put there; all by column, NaN where it does not apply.

    Attributes:
        cells: How many cells of each column were hidden.
        error: Of numbers: root mean square error of the mean, over the column's standard
            deviation. Of categories: the share of wrong labels.
        simple: The same of the column's mean, or of its most frequent label.
        regressions: The same of scikit-learn's IterativeImputer, numbers only.
        coverage: Share of hidden numbers within their central interval, by its probability.
    """

    cells: NDArray[np.int64]
    error: Values
    simple: Values
    regressions: Values
    coverage: dict[float, Values]


def check_imputation(
    model: Answers,
    columns: Columns,
    x: Tensor,
    *,
    share: float = 0.2,
    seed: int = 0,
    c: Tensor | None = None,
) -> Check:
    """Hide cells at random, fill them in, and compare; beside what simple imputers do.

    The means, most frequent labels and regressions are of the same rows with the same holes.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: Rows (N, D), best ones that the model was not fitted to.
        share: Of the cells that are hidden.
        seed: Of which.
        c: Context (N, C), or None.
    """
    holes = hide(x, share, seed)
    filled = fill_cells(model, columns, holes, "mean", c).numpy()
    spans = intervals(model, columns, holes, c)
    truth, known = x.numpy(), holes.numpy()
    hidden = np.isnan(known) & ~np.isnan(truth)
    discrete = np.array([column.kind == "category" for column in columns.columns])
    simple, regressions = _by_columns(known, discrete), by_regressions(known, discrete)
    if regressions is None:
        regressions = np.full_like(known, np.nan)
    ours, theirs, others = (
        np.array([error(truth[:, j], f[:, j], hidden[:, j], d) for j, d in enumerate(discrete)])
        for f in (filled, simple, regressions)
    )
    coverage = {}
    for level, (low, high) in spans.items():
        inside = (truth >= low) & (truth <= high)
        coverage[level] = np.array(
            [
                np.nan if d or not hidden[:, j].any() else inside[hidden[:, j], j].mean()
                for j, d in enumerate(discrete)
            ]
        )

    return Check(
        cells=hidden.sum(0),
        error=ours,
        simple=theirs,
        regressions=np.where(discrete, np.nan, others),
        coverage=coverage,
    )


def hide(x: Tensor, share: float, seed: int) -> Tensor:
    """Rows (N, D) with a share of the cells missing, each independently.

    Arguments:
        x: The rows.
        share: Between 0 and 1.
        seed: Of which cells.
    """
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share

    return torch.where(gone, torch.nan, x)


def intervals(
    model: Answers, columns: Columns, holes: Tensor, c: Tensor | None = None
) -> dict[float, tuple[Values, Values]]:
    """Central intervals of 50 and 90 % of the missing numbers: lower and upper ends (N, D).

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        holes: Rows (N, D), NaN where a cell is missing.
        c: Context (N, C), or None.
    """
    q = torch.tensor(QUANTILES, dtype=torch.float64)
    found = quantiles_of_cells(model, columns, holes, q, c).numpy()

    return {level: (found[..., a], found[..., b]) for level, (a, b) in ENDS.items()}


def error(truth: Values, filled: Values, hidden: NDArray[np.bool_], discrete: bool) -> float:
    """The error of one column's hidden cells, as in :class:`Check`; NaN for none.

    Arguments:
        truth, filled: The column (N), and what was put there.
        hidden: Which cells (N) were hidden.
        discrete: Whether it is a category.
    """
    if not hidden.any():
        return float("nan")
    if discrete:
        return float((truth[hidden] != filled[hidden]).mean())
    spread = float(np.nanstd(truth)) or 1.0

    return float(np.sqrt(((truth - filled)[hidden] ** 2).mean()) / spread)


def by_regressions(
    known: Values, discrete: NDArray[np.bool_], train: Values | None = None
) -> Values | None:
    """What scikit-learn's IterativeImputer puts into missing numbers (N, D).

    Labels take part as a column of 0 and 1 each. None for tables that get too wide by it.

    Arguments:
        known: Rows (N, D), NaN where a cell is missing.
        discrete: Which columns are categories.
        train: Rows (M, D) to learn from; None for the same ones.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - it is so called
    from sklearn.impute import IterativeImputer

    both = known if train is None else np.concatenate([train, known])
    numbers = np.flatnonzero(~discrete)
    parts = [both[:, numbers], *(_indicators(both[:, j]) for j in np.flatnonzero(discrete))]
    wide = np.concatenate(parts, 1)
    if not len(numbers) or wide.shape[1] > WIDEST or wide.shape[1] < 2:
        return None
    imputer: Any = IterativeImputer(random_state=0, keep_empty_features=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(wide[: len(both) - len(known)] if train is not None else wide)
        made = imputer.transform(wide[len(both) - len(known) :])
    filled = np.full_like(known, np.nan)
    filled[:, numbers] = made[:, : len(numbers)]

    return filled


def _by_columns(known: Values, discrete: NDArray[np.bool_]) -> Values:
    """The mean of each number, the most frequent label of each category, (N, D)."""
    row = np.full(known.shape[1], np.nan)
    for j, is_label in enumerate(discrete):
        there = known[~np.isnan(known[:, j]), j]
        if len(there):
            row[j] = np.bincount(there.astype(int)).argmax() if is_label else there.mean()

    return np.broadcast_to(row, known.shape)


def _indicators(codes: Values) -> Values:
    """A column of 0 and 1 for each code; NaN where it is missing."""
    labels = np.unique(codes[~np.isnan(codes)])
    found = (codes[:, None] == labels).astype(np.float64)
    found[np.isnan(codes)] = np.nan

    return found
