"""Tables of any kinds of columns as one matrix of numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quarflow.data.coding import Draft, Unseen, code
from quarflow.data.column import Column
from quarflow.data.column_checks import Bounds
from quarflow.data.columns import Columns
from quarflow.data.kinds import Asked, read_kinds
from quarflow.data.raw import Raw, read_raw
from quarflow.data.values import is_frame, pick_columns

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True)
class Encoded:
    """A table as numbers.

    Attributes:
        values: Shape (n, D), float64, NaN where missing; codes of categories, dates as numbers.
        names: Of the D columns: their own, or x0, x1, ...
        named: Whether they are their own.
        drafts: What each column is; yet to be fitted, unless fitted ones were given.
        asked: What the user said of columns.
    """

    values: NDArray[np.float64]
    names: list[str]
    named: bool
    drafts: tuple[Column, ...]
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether all columns are complete and of numbers, and nothing is asked of any."""
        numbers = all(column.kind == "number" for column in self.drafts)

        return numbers and not self.asked and not np.isnan(self.values).any()

    def fit(
        self,
        rows: NDArray[np.int64] | slice | None = None,
        *,
        bounds: Bounds | None = None,
        discrete: Literal["auto", "none"] | Sequence[str] = "auto",
        tails: Literal["auto", "none"] = "auto",
        constant: bool = False,
    ) -> Columns:
        """The fitted preprocessing of the columns; see ``Columns.fit``.

        A plain table is fitted as ever. In another one blocks of 0/1 columns that add up to 1 are
        one category each, and values of continuous columns that hold 1 % of the rows have
        probabilities of their own.

        Arguments:
            rows: Only of these.
            bounds, discrete, tails, constant: As in ``Columns.fit``.
        """
        values = self.values if rows is None else self.values[rows]

        return Columns.fit(
            values,
            self.names,
            bounds=bounds,
            discrete=discrete,
            tails=tails,
            constant=constant,
            drafts=self.drafts,
            asked=self.asked,
            mixed=not self.plain,
        )


def encode(
    data: Any,
    columns: Columns | None = None,
    *,
    kinds: Mapping[str, Any] | None = None,
    what: str = "X",
    prefix: str = "x",
    unseen: Unseen = "error",
) -> Encoded:
    """A frame, array, tensor or lists as numbers, one for each value.

    Arguments:
        data: A table in memory, of numbers, text, flags, categories, dates and durations.
        columns: Fitted ones, by name where the data have names; None: what the columns are is
            found out.
        kinds: What the user says of columns, see ``read_kinds``.
        what: The table's name in messages.
        prefix: Columns without names are called so, and counted from 0.
        unseen: What a label is that fitted columns do not have: an error, impossible (the code
            -1), or missing.

    Raises:
        ValueError: naming the column and row.

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"cut": ["good", "fair", None], "price": [1.5, None, 2.0]})
        >>> found = encode(frame)
        >>> found.values
        array([[1. , 1.5],
               [0. , nan],
               [nan, 2. ]])
        >>> found.drafts[0].categories
        ('fair', 'good')
    """
    by_name = is_frame(data) and any(isinstance(name, str) for name in data.columns)
    if columns is not None and by_name:
        data = pick_columns(data, columns.names, what)
    raws, names = read_raw(data, what, prefix)
    named = names is not None
    if columns is None:
        names = names or [f"{prefix}{j}" for j in range(len(raws))]
        asked = read_kinds(kinds, names)
        drafts = tuple(
            draft_of(raw, name, asked.get(name), what)
            for raw, name in zip(raws, names, strict=True)
        )
    else:
        asked, drafts = {}, columns.columns
        names = columns.names
        if len(raws) != len(drafts):
            raise ValueError(
                f"{what} has {len(raws)} columns, but {len(drafts)} were fitted: "
                f"{', '.join(names[:12])}."
            )
    values = np.empty((len(raws[0]) if raws else 0, len(raws)))
    for j, (raw, column) in enumerate(zip(raws, drafts, strict=True)):
        values[:, j] = code(raw, column, what, unseen)

    return Encoded(values, names, named, drafts, asked)


def draft_of(raw: Raw, name: str, asked: Asked | None, what: str = "X") -> Column:
    """What a whole column is, with nothing fitted yet."""
    draft = Draft(name, asked, what)
    draft.look(raw)

    return draft.column()
