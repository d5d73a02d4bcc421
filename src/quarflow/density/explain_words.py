r"""Reasons why rows are odd, in sentences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.explain import Reason
from quarflow.density.questions_frames import in_own_units
from quarflow.report.words import number

__all__ = ["sentence", "written"]


def sentence(columns: Columns, x: Tensor, reason: Reason) -> str:
    """One reason in words.

    Example:
        >>> from quarflow.data.columns import Column
        >>> columns = Columns((Column(name="price"),))
        >>> x = torch.tensor([[300.0]], dtype=torch.float64)
        >>> sentence(columns, x, Reason(0, 0, nats=9.5, low=4100.0, high=6200.0))
        'price is 300, where 4,100 to 6,200 was to be expected'
    """
    j = reason.column
    column = columns.columns[j]
    is_now = f"{column.name} is {written(columns, j, float(x[reason.row, j]))}"
    if column.kind == "category":
        return f"{is_now}, where {written(columns, j, reason.likeliest)} was likeliest"
    low, high = written(columns, j, reason.low), written(columns, j, reason.high)

    return f"{is_now}, where {low if low == high else f'{low} to {high}'} was to be expected"


def written(columns: Columns, j: int, value: float) -> str:
    """A value of a column as one would write it.

    Arguments:
        columns: Of the model.
        j: Place of the column.
        value: As a number: of a category its code.
    """
    if columns.columns[j].kind == "category" and value < 0:
        return "a label that training did not have"
    own: Any = in_own_units(columns, {j: torch.tensor([value], dtype=torch.float64)})[j][0]

    return number(own) if isinstance(own, float) else str(own)
