r"""What one column may be, row by row, given others: its distribution in one dimension."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_levels import level_edges
from quarflow.data.columns import Columns
from quarflow.density.questions_model import Answers, in_parts

__all__ = ["ColumnLaw"]

# Means are taken over quantiles whose normal scores go from -6 to 6, in steps of 1 at first. The
# step is halved where that moved the mean by more than 1/1000 of the spread, at most so often.
REACH, HALVINGS, MOVED = 6, 6, 1e-3
GRID, FINER, TIMES = 49, 9, 4  # of modes: quantiles, then points between neighbours, how often


class ColumnLaw:
    r"""The distribution of one column in each of N rows, given other cells of the row.

    Exact, by the map of the model in which this column alone is modelled: with normal score z(v)
    of a value v the cumulative distribution is :math:`\Phi(z(v))`, and the quantile at q is the
    value of score :math:`\Phi^{-1}(q)`. Numbers with point masses are a mixture of these and of
    such a continuous part.

    Arguments:
        model: Answers in data units.
        column: The fitted preprocessing of the column.
        j: Its place.
        x: Rows (N, D).
        given: Which of their cells are given, (N, D); those of the column are not.
        c: Context (N, C), or None.
    """

    def __init__(
        self,
        model: Answers,
        column: Column,
        j: int,
        x: Tensor,
        given: Tensor,
        c: Tensor | None = None,
    ) -> None:
        self.model, self.column, self.j, self.x, self.c = model, column, j, x, c
        self.given = given.clone()
        self.given[:, j] = False
        self.modelled = torch.zeros_like(self.given)
        self.modelled[:, j] = True
        self.discrete = column.kind == "category"
        self.masses = torch.tensor(
            [] if self.discrete else sorted(v for v, _ in column.point_masses),
            dtype=torch.float64,
        )
        self._shares: Tensor | None = None

    # Any column

    def log_prob(self, v: Tensor) -> Tensor:
        """Log of the density, or of the probability, at values v (N)."""
        x = self.x.clone()
        x[:, self.j] = v

        return in_parts(self.model.log_prob, x, self.given, self.modelled, self.c)

    @property
    def shares(self) -> Tensor:
        """Probabilities of the categories, or of the point masses and the rest, (N, K)."""
        if self._shares is None:
            self._shares = in_parts(
                lambda x, given, c: self.model.probabilities(x, given, self.j, c),
                self.x,
                self.given,
                self.c,
            )

        return self._shares

    # Numbers

    def cdf(self, v: Tensor) -> Tensor:
        """The probability of values up to v, of each row or shape (N, m)."""
        at = v.reshape(len(self.x), -1)
        below = self._continuous(at)
        if len(self.masses):
            reached = (at[..., None] >= self.masses).double()
            below = below * self.shares[:, -1:] + (reached * self.shares[:, None, :-1]).sum(-1)

        return below.reshape(v.shape)

    def quantile(self, q: Tensor) -> Tensor:
        """The values (N, m) at the probabilities q (m) or (N, m); such as can occur."""
        q = q.expand(len(self.x), -1) if q.ndim == 1 else q
        if not len(self.masses):
            return self._snap(self._values(torch.special.ndtri(q)))
        shares, rest = self.shares[:, :-1], self.shares[:, -1:]
        passed = shares.cumsum(-1)  # of the masses up to each
        top = self._continuous(self.masses.expand(len(self.x), -1)) * rest + passed
        within = (q[..., None] > (top - shares)[:, None]) & (q[..., None] <= top[:, None])
        ahead = ((q[..., None] > top[:, None]) * shares[:, None]).sum(-1)
        u = ((q - ahead) / rest.clamp(min=1e-300)).clamp(1e-15, 1 - 1e-15)
        value = self._snap(self._values(torch.special.ndtri(u)))
        mass = self.masses[within.int().argmax(-1)]

        return torch.where(within.any(-1), mass, value)

    def mean(self) -> Tensor:
        """The expected value (N): a sum over levels, or over quantiles.

        The sum over quantiles is the trapezoidal rule in the normal score, which converges
        faster than any power of its step where the map is smooth. The step is halved, up to six
        times, in rows where that still moves the mean by more than 1/1000 of the spread.
        """
        if self.column.levels:
            return self.level_probabilities() @ _numbers(self.column.levels)
        found = self._continuous_mean()
        if len(self.masses):
            found = found * self.shares[:, -1] + self.shares[:, :-1] @ self.masses

        return found

    def _continuous_mean(self) -> Tensor:
        found = torch.full((len(self.x),), math.nan, dtype=torch.float64)
        active, step = torch.arange(len(self.x)), 1.0
        z = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
        sums = torch.zeros(3, len(self.x), dtype=torch.float64)  # of weights, values, squares
        for halving in range(HALVINGS + 1):
            weights = (-0.5 * z * z).exp()
            values = self._values(z.expand(len(active), -1), active)
            powers = torch.stack([torch.ones_like(values), values, values * values])
            sums[:, active] += powers @ weights
            mean, square = sums[1:, active] / sums[0, active]
            spread = (square - mean * mean).clamp(min=0).sqrt()
            settled = (mean - found[active]).abs() <= MOVED * spread  # not where NaN: not yet
            found[active] = mean
            active = active[~settled]
            if not len(active):
                break
            step /= 1 if halving == 0 else 2
            z = torch.arange(-REACH, REACH, step, dtype=torch.float64) + step / 2

        return found

    def mode(self) -> Tensor:
        """The likeliest value (N).

        Of a number with point masses the likeliest of these where it is likelier than all other
        values together, else the densest point of the rest. That is looked for among the quantiles
        that means are taken over, and then between the neighbours of the best.
        """
        if self.column.levels:
            best = self.level_probabilities().argmax(-1)
            return _numbers(self.column.levels)[best]
        rows = torch.arange(len(self.x))
        grid = torch.linspace(-4.0, 4.0, GRID, dtype=torch.float64)
        z, step = grid.expand(len(self.x), -1), float(grid[1] - grid[0])
        for _ in range(TIMES):
            values = self._values(z)
            best = self._log_densities(values).argmax(-1)
            found, middle = values[rows, best], z[rows, best]
            offsets = torch.linspace(-step, step, FINER, dtype=torch.float64)
            z, step = middle[:, None] + offsets, 2 * step / (FINER - 1)
        found = self._snap(found[:, None])[:, 0]
        if len(self.masses):
            top, which = self.shares[:, :-1].max(-1)
            found = torch.where(top >= self.shares[:, -1], self.masses[which], found)

        return found

    def level_probabilities(self) -> Tensor:
        """Of the levels of a column that has them, (N, K)."""
        levels = _numbers(self.column.levels)
        below = self.cdf(levels.expand(len(self.x), -1))

        return below.diff(dim=-1, prepend=torch.zeros(len(below), 1, dtype=torch.float64))

    # The continuous part

    def _continuous(self, v: Tensor) -> Tensor:
        """Its cumulative distribution at v (N, m)."""
        at = _cell_ends(self.column, v)
        low, high = self.column.support
        inside = (at > low) & (at < high)
        # a point mass itself is no value of the continuous part, its neighbour is
        on_mass = (at[..., None] == self.masses).any(-1)
        at = torch.where(on_mass, at.nextafter(torch.full_like(at, -math.inf)), at)
        z = self._scores(torch.where(inside, at, self._somewhere()))

        return torch.where(inside, torch.special.ndtr(z), (at >= high).double())

    def _values(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """The values (n, m) that have the normal scores z (n, m), in all rows or some (n)."""
        rows = torch.arange(len(self.x)) if rows is None else rows
        rows = rows.repeat_interleave(z.shape[1])
        scores = torch.zeros(len(rows), self.x.shape[1], dtype=torch.float64)
        scores[:, self.j] = z.flatten()
        found = in_parts(self.model.from_noise, scores, *self._at(rows))

        return found[:, self.j].reshape(z.shape)

    def _log_densities(self, v: Tensor) -> Tensor:
        """Log-densities at v (N, m)."""
        return in_parts(self.model.log_prob, *self._with(v)).reshape(v.shape)

    def _scores(self, v: Tensor) -> Tensor:
        """Normal scores of v (N, m)."""
        return in_parts(self.model.noise, *self._with(v))[:, self.j].reshape(v.shape)

    def _with(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Each row m times, with v (N, m) for the column."""
        rows = torch.arange(len(self.x)).repeat_interleave(v.shape[1])
        x, given, modelled, c = self._at(rows)
        x[:, self.j] = v.flatten()

        return x, given, modelled, c

    def _at(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        c = None if self.c is None else self.c[rows]

        return self.x[rows], self.given[rows], self.modelled[rows], c

    def _somewhere(self) -> float:
        """A value that the column may have."""
        low, high = self.column.seen or (self.column.mean, self.column.mean)

        return low / 2 + high / 2

    def _snap(self, v: Tensor) -> Tensor:
        """Moved to values that can occur, (N, m)."""
        return Columns((self.column,)).snap(v[..., None])[..., 0]


def _numbers(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _cell_ends(column: Column, v: Tensor) -> Tensor:
    """The upper ends of the cells of the last values that are at most v.

    Example:
        >>> column = Column(name="n", levels=(0, 1, 4), masses=(0.5, 0.25, 0.25), step=1)
        >>> _cell_ends(column, torch.tensor([-1.0, 0.0, 3.9, 4.0]))
        tensor([  -inf, 0.5000, 2.5000,    inf])
    """
    if column.levels:
        ends = np.concatenate([[-math.inf], level_edges(column.levels)[1:-1], [math.inf]])
        k = torch.searchsorted(_numbers(column.levels), v.contiguous().double(), right=True)

        return torch.from_numpy(ends)[k].to(v.dtype)
    if not column.lattice or column.grid is None:
        return v
    k = torch.floor((v - column.origin) / column.grid + 1e-6)

    return column.origin + (k + 0.5) * column.grid
