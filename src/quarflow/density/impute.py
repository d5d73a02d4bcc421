r"""Missing cells filled in from the cells that are there."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.questions_column import ColumnLaw
from quarflow.density.questions_model import Answers, in_parts

__all__ = ["Fill", "draw_cells", "fill_cells", "quantiles_of_cells"]

Fill = Literal["mean", "median"]


def fill_cells(
    model: Answers, columns: Columns, x: Tensor, how: Fill = "mean", c: Tensor | None = None
) -> Tensor:
    """The rows with each missing cell at its mean, or median, given all that its row has.

    Categories become the likeliest label. Every cell is filled by itself: what two missing cells
    of a row have to do with each other shows in draws only.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: Rows (N, D), NaN where a cell is missing.
        how: Which middle.
        c: Context (N, C), or None.
    """
    filled = x.clone()
    for j, rows, law in _laws(model, columns, x, c):
        if law.discrete:
            filled[rows, j] = law.shares.argmax(1).double()
        elif how == "mean":
            filled[rows, j] = law.mean()
        else:
            filled[rows, j] = law.quantile(torch.tensor([0.5], dtype=torch.float64))[:, 0]

    return filled


def draw_cells(model: Answers, x: Tensor, seed: int, c: Tensor | None = None) -> Tensor:
    """The rows with all missing cells of each drawn, jointly, given all that it has.

    Arguments:
        model: Answers in data units.
        x: Rows (N, D), NaN where a cell is missing.
        seed: Of the draws.
        c: Context (N, C), or None.
    """
    there, generator = ~x.isnan(), torch.Generator().manual_seed(seed)
    rows = torch.where(~there.all(1))[0]
    if not len(rows):
        return x.clone()

    def draw(x: Tensor, given: Tensor, c: Tensor | None) -> Tensor:
        return model.sample(x, given, ~given, c, generator)

    drawn = in_parts(draw, x[rows], there[rows], None if c is None else c[rows])
    filled = x.clone()
    filled[rows] = torch.where(there[rows], x[rows], drawn)

    return filled


def quantiles_of_cells(
    model: Answers, columns: Columns, x: Tensor, q: Tensor, c: Tensor | None = None
) -> Tensor:
    """Quantiles (N, D, m) of each missing number, given all that its row has; NaN elsewhere.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: Rows (N, D), NaN where a cell is missing.
        q: Probabilities (m).
        c: Context (N, C), or None.
    """
    found = torch.full((*x.shape, len(q)), torch.nan, dtype=torch.float64)
    for j, rows, law in _laws(model, columns, x, c):
        if not law.discrete:
            found[rows, j] = law.quantile(q)

    return found


def _laws(
    model: Answers, columns: Columns, x: Tensor, c: Tensor | None
) -> list[tuple[int, Tensor, ColumnLaw]]:
    """For each column that has missing cells: which rows, and what it may be in them."""
    there, found = ~x.isnan(), []
    for j, column in enumerate(columns.columns):
        rows = torch.where(~there[:, j])[0]
        if len(rows):
            part = None if c is None else c[rows]
            law = ColumnLaw(model, column, j, x[rows], there[rows], part)
            found.append((j, rows, law))

    return found
