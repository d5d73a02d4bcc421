r"""Questions to a fitted table: what some columns may be, given others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.checks import seed_of
from quarflow.density.conditional_figures import Figures, as_array
from quarflow.density.questions_column import ColumnLaw
from quarflow.density.questions_frames import Rows, place_of, read_rows
from quarflow.density.questions_model import Answers, in_parts

__all__ = ["Conditional"]


class Conditional(Figures):
    r"""What some columns may be, given cells of a row, or of each of N rows.

    Made by ``density.given(...)`` and ``density.marginal(...)``. What is neither asked of nor
    given is integrated out. Frames in, frames out: answers have a row for each row given.

    How answers are computed:

    * ``log_prob`` is one pass, exact for the model, jointly for all columns asked of.
    * ``mean``, ``median``, ``quantile``, ``interval``, ``cdf``, ``mode`` and ``prob`` are of
      each column by itself. A number's come from the model's own increasing map in which this
      column alone is modelled: ``cdf`` and ``quantile`` are exact, a mean is a sum over its
      quantiles (13 to 769 of them, until it settles within 1/1000 of the spread). A category's
      come from its probabilities.
    * What several columns do together is asked by ``expect``: a mean over a stated number of
      samples, with its standard error.

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
        of: Sequence[int] | None = None,
        c: Tensor | None = None,
    ) -> None:
        known = rows.there.any(0)
        if of is None:
            of = [j for j in range(len(columns)) if not known[j]]
            if not of:
                raise ValueError("Every column is given, so that none is left to ask about.")
        for j in of:
            if known[j]:
                raise ValueError(
                    f"The column {columns.names[j]!r} is both given and asked about; leave it "
                    "out of one."
                )
        super().__init__(model, columns, rows, of, c)

    def only(self, *names: str) -> Conditional:
        """The same for some of the columns asked of; the others are integrated out."""
        places = [place_of(name, self._columns, "only") for name in names]
        for j in places:
            if j not in self._of:
                raise ValueError(f"{self._columns.names[j]!r} is not asked about here.")

        return Conditional(self._model, self._columns, Rows(self._x, self._form), places, self._c)

    def __len__(self) -> int:
        return len(self._x)

    def __repr__(self) -> str:
        known = [self._columns.names[j] for j in torch.where(self._given.any(0))[0].tolist()]
        rows = f", {len(self)} rows" if len(self) != 1 else ""

        return f"p({', '.join(self.columns)} | {', '.join(known) or 'nothing'}{rows})"

    # All columns together

    def log_prob(self, X: Any) -> NDArray[np.float64]:
        """Log of probability times density of values of all columns asked of, in nats.

        Parameters
        ----------
        X
            A frame, or a dict, with these columns; as many rows as are given, or one of either.

        Raises
        ------
        ValueError
            If a column or a value is missing.
        """
        values, x, given, c = self._matched(self._values(X).x)
        modelled = torch.zeros_like(given)
        modelled[:, self._of] = True
        x = torch.where(modelled, values, x)

        return as_array(in_parts(self._model.log_prob, x, given, modelled, c))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws of all columns asked of, jointly: the first row's ``n_samples``, then the next's.

        Parameters
        ----------
        n_samples
            For each row given.
        random_state
            Seed, RandomState or None.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, not {n_samples}.")
        drawn = self._drawn(n_samples, seed_of(random_state))

        return self._table({j: drawn[:, j] for j in self._of})

    def expect(
        self, function: Callable[[Any], Any], n_samples: int = 4096, random_state: Any = 0
    ) -> Any:
        """The mean of a function of the columns asked of, with its standard error, by samples.

        Parameters
        ----------
        function
            Of a frame of draws: a number, or whether something holds, for each of its rows.
        n_samples
            Draws for each row given.
        random_state
            Seed, RandomState or None.
        """
        values = function(self.sample(n_samples, random_state))
        numbers = np.asarray(values, dtype=np.float64).reshape(-1, n_samples)
        if len(numbers) != len(self):
            raise ValueError("The function must give one number for each row of its frame.")
        error = numbers.std(1, ddof=1) / np.sqrt(n_samples) if n_samples > 1 else np.nan

        return self._form.table(
            {"mean": numbers.mean(1), "standard_error": np.broadcast_to(error, len(self)).copy()}
        )

    def cdf(self, X: Any) -> Any:
        """The probability of a value up to those in X, for each number in X by itself.

        Parameters
        ----------
        X
            A frame, or a dict, with some of the numbers asked of.
        """
        rows = read_rows(X, self._columns)
        some = [j for j in self._numbers("cdf") if rows.there[:, j].any()]
        if not some:
            raise ValueError(f"X has no values of {', '.join(self.columns)}.")
        values, x, given, c = self._matched(rows.x)
        found = {}
        for j in some:
            law = ColumnLaw(self._model, self._columns.columns[j], j, x, given, c)
            found[self._columns.names[j]] = as_array(law.cdf(values[:, j]))

        return self._form.table(found)

    def prob(self, value: Any = None) -> Any:
        """Probabilities: of each label of a category, or of what ``value`` says.

        Parameters
        ----------
        value
            None for a frame with a column for each label of the one category asked of. A label,
            or a value of a discrete number, or ``(low, high)`` for values above low and up to
            high, of the one column asked of; or a dict of labels by column, for all of them at
            once. These give an array with a number for each row given.
        """
        if value is None:
            return self._labels()
        if isinstance(value, Mapping):
            return self._together(value)
        j = self._only("prob")
        if isinstance(value, tuple):
            ends = [read_rows({self._columns.names[j]: v}, self._columns).x[0, j] for v in value]
            at = torch.stack(ends).expand(len(self), -1)
            below = self._law(j).cdf(at)
            return as_array(below[:, 1] - below[:, 0])

        return self._together({self._columns.names[j]: value})

    # Inside

    def _drawn(self, times: int, seed: int) -> Tensor:
        """Rows (N times, D) with the columns asked of drawn."""
        rows = torch.arange(len(self)).repeat_interleave(times)
        c = None if self._c is None else self._c[rows]
        modelled = torch.zeros_like(self._given)
        modelled[:, self._of] = True
        generator = torch.Generator().manual_seed(seed)

        def draw(x: Tensor, given: Tensor, modelled: Tensor, c: Tensor | None) -> Tensor:
            return self._model.sample(x, given, modelled, c, generator)

        return in_parts(draw, self._x[rows], self._given[rows], modelled[rows], c)

    def _only(self, asked: str) -> int:
        if len(self._of) != 1:
            raise ValueError(
                f"{asked} of one value is of one column; there are {len(self._of)}: name them, "
                "as in prob({'color': 'D'}), or ask about one."
            )

        return self._of[0]

    def _labels(self) -> Any:
        j = self._only("prob()")
        column = self._columns.columns[j]
        if column.kind != "category":
            raise ValueError(
                f"{column.name!r} is a number; ask for prob(value), prob((low, high)) or cdf."
            )
        shares = as_array(self._law(j).shares)

        return self._form.table({str(k): shares[:, i] for i, k in enumerate(column.categories)})

    def _together(self, value: Mapping[str, Any]) -> NDArray[np.float64]:
        """The probability of some columns' values at once."""
        places = [place_of(name, self._columns, "prob") for name in value]
        log_unit = 0.0
        for j in places:
            column = self._columns.columns[j]
            if column.levels or column.lattice:
                log_unit += float(np.log(column.unit))
            elif column.kind != "category" and value[column.name] not in [
                v for v, _ in column.point_masses
            ]:
                raise ValueError(
                    f"{column.name!r} is continuous: a single value has no probability; ask for "
                    f"log_prob, or for prob((low, high))."
                )

        return np.exp(self.only(*value).log_prob(dict(value)) + log_unit)

    def _values(self, X: Any) -> Rows:
        """Values of all columns asked of."""
        rows = read_rows(X, self._columns)
        for j in self._of:
            missing = torch.where(~rows.there[:, j])[0]
            if len(missing):
                name = self._columns.names[j]
                raise ValueError(
                    f"X lacks a value of {name!r} in row {int(missing[0])}; log_prob is of all "
                    f"columns asked about: {', '.join(self.columns)}."
                )

        return rows

    def _matched(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values, and what is given, as many rows of each."""
        x, given, c, count = self._x, self._given, self._c, len(values)
        if count == 1:
            values = values.expand(len(self), -1)
        elif len(self) == 1:
            x, given = x.expand(count, -1), given.expand(count, -1)
            c = None if c is None else c.expand(count, -1)
        elif len(self) != count:
            raise ValueError(
                f"{len(self)} rows are given and X has {count}; give as many, or one."
            )

        return values, x, given, c
