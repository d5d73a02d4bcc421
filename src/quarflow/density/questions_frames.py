r"""Rows of questions and answers as people have them: frames, dicts and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.data.decode import decode
from quarflow.data.encode import encode
from quarflow.data.source import listed
from quarflow.data.values import is_frame, pick_columns

__all__ = ["Form", "Rows", "choose", "place_of", "read_rows"]


@dataclass(frozen=True)
class Form:
    """How rows came, and so how answers go out.

    Attributes:
        kind: A frame of pandas or polars, or an array.
        index: Of pandas' rows.
    """

    kind: Literal["pandas", "polars", "array"] = "polars"
    index: Any = None

    def table(self, columns: Mapping[str, Any]) -> Any:
        """Named columns of equal length as a frame, or for arrays side by side.

        Example:
            >>> Form("array").table({"a": np.zeros(2), "b": np.ones(2)})
            array([[0., 1.],
                   [0., 1.]])
        """
        if self.kind == "array":
            return np.column_stack([_array(values) for values in columns.values()])
        if self.kind == "polars":
            import polars as pl

            return pl.DataFrame(dict(columns))
        import pandas as pd

        found = {name: _array(values) for name, values in columns.items()}
        count = len(next(iter(found.values()), ()))
        same = self.index is not None and len(self.index) == count

        return pd.DataFrame(found, index=self.index if same else None)


@dataclass(frozen=True)
class Rows:
    """Some cells of some rows.

    Attributes:
        x: Rows (N, D) of the model's columns, NaN where there is no value.
        form: How they came.
    """

    x: Tensor
    form: Form

    @property
    def there(self) -> Tensor:
        """Which cells have a value, (N, D)."""
        return ~self.x.isnan()


def read_rows(data: Any, columns: Columns, what: str = "X") -> Rows:
    """Cells of the columns of a model: those that are there, in any order.

    Arguments:
        data: A frame that has some of the columns; a dict of values, or of equally many values,
            by column; or an array (N, D) of all. None and NaN are no values.
        columns: Of the model.
        what: Its name in messages.

    Raises:
        ValueError: naming the column that the model does not have, or whose values do not suit.
    """
    names = columns.names
    if isinstance(data, Mapping):
        data = _framed(data, what)
    if not is_frame(data):
        values = encode(data, columns).values
        return Rows(torch.from_numpy(np.array(values, dtype=np.float64)), Form("array"))
    held = [str(name) for name in data.columns]
    for name in held:
        place_of(name, columns, what)
    some = [j for j, name in enumerate(names) if name in held]
    x = torch.full((len(data), len(names)), torch.nan, dtype=torch.float64)
    if some:
        part = pick_columns(data, [names[j] for j in some], what)
        found = encode(part, Columns(tuple(columns.columns[j] for j in some))).values
        x[:, some] = torch.from_numpy(np.array(found, dtype=np.float64))
    pandas = hasattr(data, "iloc")

    return Rows(x, Form("pandas", data.index) if pandas else Form("polars"))


def place_of(name: str, columns: Columns, what: str) -> int:
    """The place of a column in the model.

    Raises:
        ValueError: if there is none of that name, with the one it might have been.
    """
    if name in columns.names:
        return columns.names.index(name)
    close = get_close_matches(str(name), columns.names, 1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"{what} names the column {name!r}, which the model does not have. {hint}"
        f"Its columns are {listed(columns.names)}."
    )


def choose(names: str | Sequence[str] | None, columns: Columns, what: str) -> list[int] | None:
    """Places of columns that are named, one or several; None for None."""
    if names is None:
        return None
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise ValueError(f"{what} names no column.")
    for name in wanted:
        if wanted.count(name) > 1:
            raise ValueError(f"{what} names the column {name!r} twice.")

    return [place_of(name, columns, what) for name in wanted]


def in_own_units(columns: Columns, values: Mapping[int, Tensor]) -> dict[int, Any]:
    """Numbers of columns, by place, as labels, dates and so on.

    Arguments:
        columns: Of the model.
        values: Shape (N) each.
    """
    found = {}
    for j, numbers in values.items():
        column = columns.columns[j]
        [found[j]] = decode(numbers.numpy()[:, None], Columns((column,))).values()

    return found


def _framed(data: Mapping[str, Any], what: str) -> Any:
    """Values by name as a frame of one row, or as many as there are values."""
    import polars as pl

    many = {name: v for name, v in data.items() if _many(v)}
    counts = {len(values) for values in many.values()}
    if len(counts) > 1:
        raise ValueError(f"{what} has columns of different lengths; give each as many values.")
    count = counts.pop() if counts else 1
    columns = {name: list(v) if name in many else [v] * count for name, v in data.items()}
    if not columns:
        return pl.DataFrame({"": [None]}).drop("")

    return pl.DataFrame({str(n): pl.Series(v, strict=False) for n, v in columns.items()})


def _many(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__")


def _array(values: Any) -> Any:
    return values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
