r"""Why a row is odd: what each of its cells costs, given the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.influence import draw_rows
from quarflow.density.questions_column import ColumnLaw
from quarflow.density.questions_model import Answers, in_parts

__all__ = ["Reason", "cell_nats", "reasons", "typical_nats"]

TYPICAL = 512  # draws that a column's usual nats are taken from


@dataclass(frozen=True)
class Reason:
    """One cell that makes a row odd.

    Attributes:
        row, column: Where it is.
        nats: -log p of the cell given the others, less what is usual in its column.
        low, high: The central 90 % of what was to be expected of a number; NaN of a category.
        likeliest: The code that was to be expected of a category; NaN of a number.
    """

    row: int
    column: int
    nats: float
    low: float = float("nan")
    high: float = float("nan")
    likeliest: float = float("nan")


def cell_nats(model: Answers, x: Tensor, c: Tensor | None = None) -> Tensor:
    """-log p of each cell given the rest of its row, (N, D); NaN where there is none.

    One pass for each column, over all rows; exact for the model.

    Arguments:
        model: Answers in data units.
        x: Rows (N, D), NaN where a cell is missing.
        c: Context (N, C), or None.
    """
    there, found = ~x.isnan(), torch.full_like(x, torch.nan)
    for j in range(x.shape[1]):
        rows = torch.where(there[:, j])[0]
        given, modelled = there[rows], torch.zeros_like(there[rows])
        given[:, j], modelled[:, j] = False, True
        part = None if c is None else c[rows]
        found[rows, j] = -in_parts(model.log_prob, x[rows], given, modelled, part)

    return found


def typical_nats(model: Answers, features: int, c: Tensor | None = None, seed: int = 0) -> Tensor:
    """What a cell of each column costs on average, given the rest, in rows of the model: (D).

    By 512 draws. Less this, nats of columns in different units can be compared.

    Arguments:
        model: Answers in data units.
        features: Number D of columns.
        c: Contexts (M, C) to draw at, or None.
        seed: Of the draws.
    """
    rows, c = draw_rows(model, features, TYPICAL, seed, c)

    return cell_nats(model, rows, c).nanmean(0)


def reasons(
    model: Answers,
    columns: Columns,
    x: Tensor,
    nats: Tensor,
    most: int = 3,
    c: Tensor | None = None,
) -> list[list[Reason]]:
    """For each row the cells that cost most beyond what is usual, and what was to be expected.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: Rows (N, D), NaN where a cell is missing.
        nats: Of the cells less the usual, (N, D); NaN where there is none.
        most: How many cells of a row.
        c: Context (N, C), or None.
    """
    cost = nats.nan_to_num(nan=-torch.inf, posinf=torch.inf)
    order = cost.argsort(dim=1, descending=True, stable=True)[:, :most]
    found: list[list[Reason | None]] = [[None] * order.shape[1] for _ in range(len(x))]
    ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
    there = ~x.isnan()
    for j, column in enumerate(columns.columns):
        rows, place = torch.where((order == j) & there[:, j, None])
        if not len(rows):
            continue
        law = ColumnLaw(model, column, j, x[rows], there[rows], None if c is None else c[rows])
        where = zip(rows.tolist(), place.tolist(), nats[rows, j].tolist(), strict=True)
        if law.discrete:
            best = law.shares.argmax(1).tolist()
            for (row, k, n), code in zip(where, best, strict=True):
                found[row][k] = Reason(row, j, n, likeliest=float(code))
        else:
            bounds = law.quantile(ends).tolist()
            for (row, k, n), (low, high) in zip(where, bounds, strict=True):
                found[row][k] = Reason(row, j, n, low, high)

    return [[reason for reason in row if reason is not None] for row in found]
