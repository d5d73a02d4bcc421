r"""Figures of columns, each by itself, given cells of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.questions_column import ColumnLaw
from quarflow.density.questions_frames import Rows, in_own_units
from quarflow.density.questions_model import Answers

__all__ = ["Figures", "as_array", "ends_of"]


class Figures:
    """Figures of each column asked of by itself; see :class:`Conditional`, which has them.

    Arguments:
        model: What answers.
        columns: Of the model.
        rows: The cells that are given.
        of: Places of the columns asked of.
        c: Context (N, C), or None.
    """

    def __init__(
        self,
        model: Answers,
        columns: Columns,
        rows: Rows,
        of: Sequence[int],
        c: Tensor | None = None,
    ) -> None:
        self._model, self._columns, self._form, self._c = model, columns, rows.form, c
        self._x, self._given, self._of = rows.x, rows.there, list(of)

    @property
    def columns(self) -> list[str]:
        """Names of the columns asked of."""
        return [self._columns.names[j] for j in self._of]

    def sorts(self) -> tuple[list[str], list[str]]:
        """Names of the numbers asked of, and of the categories."""
        kinds = {self._columns.names[j]: self._columns.columns[j].kind for j in self._of}
        categories = [name for name, kind in kinds.items() if kind == "category"]

        return [name for name in kinds if name not in categories], categories

    def mean(self) -> Any:
        """The expected value of each number."""
        return self._table({j: self._law(j).mean() for j in self._numbers("mean")})

    def median(self) -> Any:
        """The median of each number."""
        half = torch.tensor([0.5], dtype=torch.float64)

        return self._table({j: self._law(j).quantile(half)[:, 0] for j in self._numbers("median")})

    def quantile(self, q: float | Sequence[float]) -> Any:
        """The quantiles of each number: values that can occur.

        Parameters
        ----------
        q
            Between 0 and 1; of several, columns are called as in ``price_0.05``.
        """
        several = not np.isscalar(q)
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if not levels.size or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"q must lie between 0 and 1, and is {q}.")
        endings = [f"_{level:g}" if several else "" for level in levels]

        return self._quantiles(levels, endings, "quantile")

    def interval(self, level: float = 0.9) -> Any:
        """The central interval of each number, as ``price_low`` and ``price_high``.

        Parameters
        ----------
        level
            The probability it holds; as much of the rest lies below as above.
        """
        return self._quantiles(ends_of(level), ["_low", "_high"], "interval")

    def mode(self) -> Any:
        """The likeliest value of each column, numbers and categories."""
        found = {}
        for j in self._of:
            law = self._law(j)
            found[j] = law.shares.argmax(1).double() if law.discrete else law.mode()

        return self._table(found)

    def predictions(self, interval: float | None = None) -> dict[str, Any]:
        """The mean of each number and the likeliest label of each category, by name.

        Parameters
        ----------
        interval
            Probability of central intervals, which follow as ``price_low`` and ``price_high``;
            a category has ``cut_prob`` then, the probability of the label.
        """
        found: dict[str, Any] = {}
        for j in self._of:
            name, law = self._columns.names[j], self._law(j)
            if law.discrete:
                best = law.shares.max(1)
                found |= self._named(name, j, best.indices.double())
                if interval is not None:
                    found[f"{name}_prob"] = as_array(best.values)
                continue
            found |= self._named(name, j, law.mean())
            if interval is not None:
                ends = law.quantile(torch.from_numpy(ends_of(interval)))
                found |= self._named(f"{name}_low", j, ends[:, 0])
                found |= self._named(f"{name}_high", j, ends[:, 1])

        return found

    def _named(self, name: str, j: int, values: Tensor) -> dict[str, Any]:
        return {name: in_own_units(self._columns, {j: values})[j]}

    def _law(self, j: int) -> ColumnLaw:
        column = self._columns.columns[j]

        return ColumnLaw(self._model, column, j, self._x, self._given, self._c)

    def _quantiles(self, levels: NDArray[Any], endings: list[str], asked: str) -> Any:
        q, found = torch.from_numpy(levels), {}
        for j in self._numbers(asked):
            values = self._law(j).quantile(q)
            for k, ending in enumerate(endings):
                name = f"{self._columns.names[j]}{ending}"
                found[name] = in_own_units(self._columns, {j: values[:, k]})[j]

        return self._form.table(found)

    def _table(self, values: dict[int, Tensor]) -> Any:
        own = in_own_units(self._columns, values)

        return self._form.table({self._columns.names[j]: found for j, found in own.items()})

    def _numbers(self, asked: str) -> list[int]:
        """The columns asked of that have an order."""
        found = [j for j in self._of if self._columns.columns[j].kind != "category"]
        if not found:
            raise ValueError(
                f"{', '.join(self.columns)} holds categories, which have no {asked}; ask for "
                "prob() or mode()."
            )

        return found


def ends_of(level: float) -> NDArray[np.float64]:
    """Probabilities at the ends of a central interval that holds ``level``."""
    if not 0 < level < 1:
        raise ValueError(f"An interval holds between 0 and 1, not {level}.")

    return np.array([(1 - level) / 2, (1 + level) / 2])


def as_array(values: Tensor) -> NDArray[np.float64]:
    """A tensor as NumPy's."""
    return np.asarray(values.numpy(), dtype=np.float64)
