r"""What a page about a model tells of its columns: dependence, reasons, how cells are filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.explain import cell_nats, reasons, typical_nats
from quarflow.density.explain_words import sentence
from quarflow.density.impute_check import Check, check_imputation
from quarflow.density.influence import dependence, everything_said
from quarflow.density.questions_model import Answers

__all__ = ["Findings", "find", "told_reasons"]

DEPENDENT, SHOWN = 500, 16  # rows averaged over, and columns at most
CHECKED = 1000  # rows that cells of are hidden


@dataclass(frozen=True)
class Findings:
    """Figures of a page.

    Attributes:
        shown: Places (k) of the columns that the rest of the row says most about.
        said: What all other columns say about each of these, in nats, (k).
        alone: What one says about another: rows are the columns told about, (k, k), nats; NaN on
            the diagonal.
        rows: How many rows these are means over.
        check: Of cells filled in.
        checked: How many rows had cells hidden.
    """

    shown: list[int]
    said: NDArray[np.float64]
    alone: NDArray[np.float64]
    rows: int
    check: Check
    checked: int


def find(
    model: Answers, columns: Columns, x: Tensor, c: Tensor | None = None, seed: int = 0
) -> Findings:
    """Figures of rows (N, D), best ones that the model was not fitted to.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: The rows.
        c: Their context, (N, C), or None.
        seed: Of the choice of rows, and of the cells that are hidden.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    some, few = order[:DEPENDENT], order[:CHECKED]
    part = None if c is None else c[some]
    said = everything_said(model, x[some], part)
    shown = sorted(said.nan_to_num(nan=-1.0).argsort(descending=True)[:SHOWN].tolist())
    alone = dependence(model, x[some], shown, part)
    check = check_imputation(model, columns, x[few], seed=seed, c=None if c is None else c[few])

    return Findings(shown, said[shown].numpy(), alone.numpy(), len(some), check, len(few))


def told_reasons(
    model: Answers, columns: Columns, x: Tensor, c: Tensor | None = None, most: int = 3
) -> list[list[str]]:
    """The most likely reasons why each row is odd, as sentences.

    Arguments:
        model: Answers in data units.
        columns: Of the model.
        x: Rows (N, D).
        c: Context (N, C), or None.
        most: How many of each row.
    """
    nats = cell_nats(model, x, c) - typical_nats(model, x.shape[1], c)
    found = reasons(model, columns, x, nats, most, c)

    return [[sentence(columns, x, reason) for reason in row] for row in found]
