r"""What can be asked of a fitted table besides how likely its rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.density.checks import seed_of
from quarflow.density.conditional import Conditional
from quarflow.density.conditional_figures import ends_of
from quarflow.density.explain import cell_nats, reasons, typical_nats
from quarflow.density.explain_words import sentence
from quarflow.density.findings import Findings, find, told_reasons
from quarflow.density.impute import Fill, draw_cells, fill_cells, quantiles_of_cells
from quarflow.density.influence import draw_rows, influence
from quarflow.density.questions_frames import Form, Rows, choose, in_own_units, read_rows
from quarflow.density.questions_model import Answers

__all__ = ["Questions"]


class Questions:
    """Questions of a density of tables; :class:`quarflow.QuARDensity` is the density.

    All are answered by a model in which each cell of a row may be given, asked about, or absent
    (integrated out). Frames of pandas and of polars, dicts and arrays go in; answers are frames
    of the same make (of polars for dicts), and arrays for arrays.
    """

    columns_: Columns
    table_model: Callable[[], Answers]
    _given_context: Callable[[Any, int], NDArray[np.float64] | None]

    def given(
        self,
        known: Any,
        of: str | Sequence[str] | None = None,
        context: Any = None,
    ) -> Conditional:
        """What the other columns may be, given some cells of a row, or of many rows.

        Parameters
        ----------
        known
            A dict of values by column, such as ``{"price": 300, "color": "D"}``, or a frame of
            rows. None and NaN are not given.
        of
            Names of the columns asked about; None for all that are not given. What is neither is
            integrated out.
        context
            Context of the rows, or one row of it for all.
        """
        rows = read_rows(known, self.columns_, "known")

        return self._conditional(rows, choose(of, self.columns_, "of"), context)

    def marginal(
        self, columns: str | Sequence[str] | None = None, context: Any = None
    ) -> Conditional:
        """What some columns may be when nothing else is known.

        Parameters
        ----------
        columns
            Their names; None for all.
        context
            One row of context.
        """
        x = torch.full((1, len(self.columns_)), torch.nan, dtype=torch.float64)
        of = choose(columns, self.columns_, "columns")

        return self._conditional(Rows(x, Form()), of, context)

    def impute(
        self,
        X: Any,
        method: Fill = "mean",
        *,
        draws: int | None = None,
        random_state: Any = None,
        context: Any = None,
    ) -> Any:
        """The rows with missing cells filled in, given all that their row has.

        Parameters
        ----------
        X
            Rows with missing cells: NaN, None or null; a column that a frame lacks is missing
            throughout.
        method
            ``"mean"`` or ``"median"`` of each missing number by itself, see
            :class:`Conditional`. A category becomes the likeliest label.
        draws
            For this many draws instead, of all missing cells of a row jointly: a list of filled
            tables, whose spread says how unsure the cells are.
        random_state
            Seed of the draws, RandomState or None.
        context
            Context of the rows, or one row of it for all.
        """
        if method not in ("mean", "median"):
            raise ValueError(f"method must be 'mean' or 'median', not {method!r}.")
        if draws is not None and draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}.")
        rows, model = read_rows(X, self.columns_), self.table_model()
        c = self._c(context, len(rows.x))
        if draws is None:
            return self._table(fill_cells(model, self.columns_, rows.x, method, c), rows)
        seeds = np.random.SeedSequence(seed_of(random_state)).generate_state(draws)

        return [
            self._table(draw_cells(model, rows.x, int(seed), c), rows) for seed in seeds.tolist()
        ]

    def impute_interval(self, X: Any, level: float = 0.9, *, context: Any = None) -> Any:
        """The central interval of each missing number, given all that its row has.

        Parameters
        ----------
        X
            Rows with missing cells.
        level
            The probability it holds.
        context
            Context of the rows, or one row of it for all.

        Returns
        -------
        Two tables, of the lower and of the upper ends; cells that are there, and categories,
        have none.
        """
        rows, q = read_rows(X, self.columns_), torch.from_numpy(ends_of(level))
        c = self._c(context, len(rows.x))
        found = quantiles_of_cells(self.table_model(), self.columns_, rows.x, q, c)

        return self._table(found[..., 0], rows), self._table(found[..., 1], rows)

    def predict(
        self,
        X: Any,
        target: str | Sequence[str] | None = None,
        *,
        interval: float | None = None,
        context: Any = None,
    ) -> Any:
        """The mean of a number, or the likeliest label of a category, given the rest of a row.

        Parameters
        ----------
        X
            Rows. What they hold of the target is not looked at, and may be missing.
        target
            The column, or columns; each is predicted by itself. None for the last.
        interval
            Probability of a central interval: then columns such as ``price_low`` and
            ``price_high`` follow, and for a category ``cut_prob``, the probability of the label.
        context
            Context of the rows, or one row of it for all.

        Returns
        -------
        A frame; for an array (n, D) and one target without interval, an array (n,).
        """
        places = choose(target, self.columns_, "target") or [len(self.columns_) - 1]
        rows = read_rows(X, self.columns_)
        x = rows.x.clone()
        x[:, places] = torch.nan
        asked = self._conditional(Rows(x, rows.form), places, context)
        found = asked.predictions(interval)
        if rows.form.kind == "array" and len(found) == 1:
            return np.asarray(next(iter(found.values())))

        return rows.form.table(found)

    def explain(self, X: Any, *, relative: bool = False, context: Any = None) -> Any:
        """-log p of each cell given the rest of its row, in nats: which cells make a row odd.

        Parameters
        ----------
        X
            Rows; cells may be missing, and have NaN.
        relative
            Whether to take off what a cell of the column costs on average (over 512 rows that
            the model draws). Then columns in different units can be compared: 0 is usual, and
            what is far above is odd.
        context
            Context of the rows, or one row of it for all.
        """
        rows = read_rows(X, self.columns_)
        c = self._c(context, len(rows.x))
        nats = self._nats(rows.x, relative, c).numpy()
        names = self.columns_.names

        return rows.form.table({name: nats[:, j] for j, name in enumerate(names)})

    def reasons(self, X: Any, most: int = 3, *, context: Any = None) -> Any:
        """The cells that make each row odd, the oddest first, and what was to be expected.

        Parameters
        ----------
        X
            Rows; cells may be missing.
        most
            How many cells of a row.
        context
            Context of the rows, or one row of it for all.

        Returns
        -------
        A frame with a row for each cell: ``row`` counts from 0, ``nats`` is what
        ``explain(X, relative=True)`` has for the cell, and ``reason`` says in a sentence what
        was to be expected: the central 90 % of a number, the likeliest label of a category.
        """
        if most < 1:
            raise ValueError(f"most must be at least 1, not {most}.")
        rows = read_rows(X, self.columns_)
        c = self._c(context, len(rows.x))
        nats = self._nats(rows.x, True, c)
        found = reasons(self.table_model(), self.columns_, rows.x, nats, most, c)
        told = [reason for row in found for reason in row]
        form = Form("polars" if rows.form.kind == "array" else rows.form.kind)

        return form.table(
            {
                "row": [reason.row for reason in told],
                "column": [self.columns_.names[reason.column] for reason in told],
                "nats": [reason.nats for reason in told],
                "reason": [sentence(self.columns_, rows.x, reason) for reason in told],
            }
        )

    def influence(
        self,
        target: str,
        X: Any = None,
        *,
        n_samples: int = 2000,
        random_state: Any = 0,
        context: Any = None,
    ) -> Any:
        """What each column says about a target: mutual information, in nats.

        Parameters
        ----------
        target
            The column.
        X
            Rows to average over; None for draws of the model.
        n_samples
            How many draws.
        random_state
            Their seed.
        context
            Context of the rows; of draws, contexts to draw at. What it says is not counted.

        Returns
        -------
        A frame with a row for each other column: ``nats``, its mutual information with the
        target; ``given_rest``, what it says beyond all other columns; and standard errors.
        """
        [j] = choose(target, self.columns_, "target") or [0]
        model, D = self.table_model(), len(self.columns_)
        if X is None:
            c = self._c(context, 1 if context is None else len(context))
            x, c = draw_rows(model, D, n_samples, seed_of(random_state), c)
            form = Form()
        else:
            rows = read_rows(X, self.columns_)
            x, form, c = rows.x, rows.form, self._c(context, len(rows.x))
        found = influence(model, x, j, c)
        others = [i for i in range(D) if i != j]
        form = Form("polars" if form.kind == "array" else form.kind)

        return form.table(
            {
                "column": [self.columns_.names[i] for i in others],
                "nats": found.alone[others].numpy(),
                "standard_error": found.alone_error[others].numpy(),
                "given_rest": found.added[others].numpy(),
                "given_rest_error": found.added_error[others].numpy(),
            }
        )

    def findings(self, x: NDArray[np.float64], context: Any = None, seed: int = 0) -> Findings:
        """Figures for a page, of rows (n, D) as numbers: dependence, and how cells are filled."""
        c = self._c(context, len(x))

        return find(self.table_model(), self.columns_, torch.from_numpy(x), c, seed)

    def told_reasons(
        self, x: NDArray[np.float64], context: Any = None, most: int = 3
    ) -> list[list[str]]:
        """Why each of some rows (n, D), as numbers, is odd, in sentences."""
        c = self._c(context, len(x))

        return told_reasons(self.table_model(), self.columns_, torch.from_numpy(x), c, most)

    def _conditional(self, rows: Rows, of: list[int] | None, context: Any) -> Conditional:
        c = self._c(context, len(rows.x))

        return Conditional(self.table_model(), self.columns_, rows, of, c)

    def _nats(self, x: Tensor, relative: bool, c: Tensor | None) -> Tensor:
        model = self.table_model()
        nats = cell_nats(model, x, c)

        return nats - typical_nats(model, x.shape[1], c) if relative else nats

    def _c(self, context: Any, count: int) -> Tensor | None:
        found = self._given_context(context, count)

        return None if found is None else torch.from_numpy(found)

    def _table(self, x: Tensor, rows: Rows) -> Any:
        """Rows (N, D) in the form that rows came in."""
        if rows.form.kind == "array" and not self._labelled:
            return x.numpy()
        own = in_own_units(self.columns_, {j: x[:, j] for j in range(x.shape[1])})

        return rows.form.table({self.columns_.names[j]: found for j, found in own.items()})

    @property
    def _labelled(self) -> bool:
        return any(column.kind not in ("number", "periodic") for column in self.columns_.columns)
