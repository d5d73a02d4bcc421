r"""Columns with few values: each takes its share of the unit line, mapped to the normal's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import SPARSE
from quarflow.data.column_detect import distinct

if TYPE_CHECKING:
    from quarflow.data.column import Column

__all__ = ["LevelMap", "OtherValues", "find_levels"]

MOST = 50  # distinct values that always become levels
MOST_SPARSE = 1000  # distinct values that do where they are few on their lattice
REPEATED = 0.8  # part of the rows whose value occurs again, at least
ROWS_PER_LEVEL = 20
LOG_ROOT = 0.5 * float(np.log(2 * np.pi))
TINY = 1e-300


def find_levels(
    x: np.ndarray, grid: float | None
) -> tuple[tuple[float, ...], tuple[float, ...], float] | None:
    """Levels, their masses and the mass of all values never seen; None if there are too many.

    A discrete column has levels if it has at most 50 distinct values, or if its values are a
    small part of their lattice (ages, and 999999) and each of them is repeated. Masses are
    observed frequencies, with half a row more for each; values never seen get half a row and
    the share of the values that occurred once (Good and Turing).
    """
    values, counts = distinct(x)
    rows = len(x)
    few = len(values) <= MOST and counts[counts > 1].sum() >= REPEATED * rows
    if not few:
        if grid is None or not 2 <= len(values) <= min(MOST_SPARSE, rows // ROWS_PER_LEVEL):
            return None
        points = (values[-1] - values[0]) / grid + 1
        if points <= SPARSE * len(values) or counts[counts >= 5].sum() < 0.995 * rows:
            return None
    smoothed = (counts + 0.5) / (rows + 0.5 * len(values))
    unseen = min((float((counts == 1).sum()) + 0.5) / (rows + 1), 0.5)
    return tuple(values.tolist()), tuple((smoothed / smoothed.sum()).tolist()), unseen


def level_edges(levels: Sequence[float]) -> np.ndarray:
    """Edges (k + 1) of the cells: midway between levels, and as far outside the last ones."""
    at = np.asarray(levels, dtype=np.float64)
    middle = at[:-1] + np.diff(at) / 2
    return np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])


class LevelMap:
    r"""Data units to normal scores, for d columns with levels at once.

    Level i has the cell of values nearest to it, and the part :math:`(F_{i-1}, F_i)` of the unit
    line, F being the sum of the masses. In each half of a cell u is linear in x, and
    :math:`z = \Phi^{-1}(u)`. Uniform noise in its part makes the column exactly normal, whatever
    the masses, and each z belongs to a level.

    Arguments:
        columns: Columns with levels.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        most = max(len(column.levels) for column in columns)
        shape = (len(columns), 2 * most + 1)
        knots, below = np.full(shape, np.inf), np.full(shape, np.inf)
        above = np.full(shape, -np.inf)
        for j, column in enumerate(columns):
            end = 2 * len(column.levels) + 1
            knots[j, 0:end:2], knots[j, 1:end:2] = level_edges(column.levels), column.levels
            halves = np.repeat(np.asarray(column.masses) / 2, 2)
            below[j, :end] = np.concatenate([[0.0], np.cumsum(halves)])
            above[j, :end] = np.concatenate([[0.0], np.cumsum(halves[::-1])])[::-1]
        self.sizes = torch.tensor([len(column.levels) for column in columns])
        self.knots, self.below = torch.from_numpy(knots), torch.from_numpy(below)
        self.above = torch.from_numpy(above)

    def to(self, device: torch.device) -> None:
        """Move the tables."""
        for name in ("sizes", "knots", "below", "above"):
            setattr(self, name, getattr(self, name).to(device))

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx, both (*, d), of x (*, d); -inf outside the cells."""
        half = self._find(self.knots, x)
        left, right, u0, u1, s0, s1 = self._piece(half)
        outside = (x <= left) & (half == 0) | (x >= right) & (half == 2 * self.sizes - 1)
        inside = torch.where(outside, (left + right) / 2, x)
        slope = torch.maximum(u1 - u0, s0 - s1) / (right - left)
        u = u0 + slope * (inside - left)
        s = s1 + slope * (right - inside)
        low = u < s
        z = torch.special.ndtri(torch.where(low, u, s).clamp(min=TINY))
        z = torch.where(low, z, -z)
        ladj = slope.log() + 0.5 * z * z + LOG_ROOT

        return z, torch.where(outside, -torch.inf, ladj)

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d)."""
        u, s = torch.special.ndtr(z), torch.special.ndtr(-z)
        low = z < 0
        half = torch.where(low, self._find(self.below, u), self._find(-self.above, -s))
        left, right, u0, u1, s0, s1 = self._piece(half)
        slope = torch.maximum(u1 - u0, s0 - s1) / (right - left)
        x = torch.where(low, left + (u - u0) / slope, right - (s - s1) / slope)

        return torch.minimum(torch.maximum(x, left), right)

    def nearest(self, x: Tensor) -> Tensor:
        """The level (*, d) that each x (*, d) is nearest to."""
        half = self._find(self.knots, x)
        left, right = (self._at(self.knots, half + i) for i in (0, 1))

        return torch.where(half % 2 == 0, right, left)

    def within(self, x: Tensor, t: Tensor) -> Tensor:
        """The point at t in (0, 1) of the cell of each x, even in u; shapes (*, d)."""
        half = self._find(self.knots, x)
        start = half - half % 2
        left, middle, right = (self._at(self.knots, start + i) for i in (0, 1, 2))
        low = left + 2 * t * (middle - left)

        return torch.where(t < 0.5, low, middle + (2 * t - 1) * (right - middle))

    def log_widths(self, x: Tensor) -> Tensor:
        """Log of the length in x that turns the density in a cell into its mass, (*, d)."""
        half = self._find(self.knots, x)
        left, right = (self._at(self.knots, half + i) for i in (0, 1))

        return (2 * (right - left)).log()

    def _find(self, table: Tensor, x: Tensor) -> Tensor:
        """The half cell (*, d) of each x, by the knots or what they map to."""
        flat = x.detach().reshape(-1, x.shape[-1]).T.contiguous()
        found = torch.searchsorted(table.contiguous(), flat).T.reshape(x.shape) - 1

        return torch.minimum(found.clamp(min=0), 2 * self.sizes - 1)

    def _at(self, table: Tensor, index: Tensor) -> Tensor:
        return table[torch.arange(len(table), device=table.device), index]

    def _piece(self, half: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            self._at(table, half + i)
            for table in (self.knots, self.below, self.above)
            for i in (0, 1)
        )


class OtherValues:
    """How the mass of a level's cell is shared by the level and the values never seen near it.

    A lattice's values that never occurred belong to the nearest level. Their mass is split evenly
    between those below, between and above the levels; between them each value has the same,
    beyond them it falls off geometrically, by half over a tenth of the levels' range.

    Arguments:
        column: A column with levels.
    """

    def __init__(self, column: Column) -> None:
        self.levels, self.edges = np.asarray(column.levels), level_edges(column.levels)
        self.masses = np.asarray(column.masses)
        self.near = 0.02 * float(np.diff(self.levels).min())
        self.grid, self.origin = column.grid, column.origin
        self.keep = np.ones(len(self.levels))
        if self.grid is None or column.unseen == 0:
            self.grid = None
            return
        self.at = np.round((self.levels - self.origin) / self.grid)
        gaps = np.diff(self.at)
        lower = np.floor(gaps / 2)  # values that belong to the level below the gap
        room = np.concatenate([[0.0], gaps - 1 - lower]) + np.concatenate([lower, [0.0]])
        self.beyond = [  # how many values there may be outside
            np.inf if bound is None else max(np.floor(abs(bound - end) / self.grid + 0.02), 0.0)
            for bound, end in ((column.lower, self.levels[0]), (column.upper, self.levels[-1]))
        ]
        self.rate = 0.5 ** (1 / max(0.1 * gaps.sum(), 1.0))
        groups = sum(count > 0 for count in (room.sum(), *self.beyond))
        share = column.unseen / max(groups, 1)
        self.each = share / room.sum() if room.sum() > 0 else 0.0
        self.ends = [share if count > 0 else 0.0 for count in self.beyond]
        wanted = room * self.each
        wanted[0] += self.ends[0]
        wanted[-1] += self.ends[1]
        # of a level's own mass at most half
        part = np.minimum(wanted / self.masses, 0.5)
        self.factor = np.divide(part, wanted, out=np.zeros_like(part), where=wanted > 0)
        self.keep = 1 - part

    def log_share(self, x: np.ndarray) -> np.ndarray:
        """Log of the part of its cell's mass that each value x (n) has; -inf if it has none."""
        i = np.clip(np.searchsorted(self.edges[1:-1], x), 0, len(self.levels) - 1)
        share = np.where(np.abs(x - self.levels[i]) <= self.near, self.keep[i], 0.0)
        if self.grid is not None:
            k = np.round((x - self.origin) / self.grid)
            known = np.abs(x - self.origin - k * self.grid) <= 0.02 * self.grid
            other = known & (share == 0)
            share = np.where(other, self._of_others(k, i), share)
        with np.errstate(divide="ignore"):
            return np.log(share)

    def _of_others(self, k: np.ndarray, i: np.ndarray) -> np.ndarray:
        mass = np.full(len(k), self.each)
        for side, outside in enumerate((self.at[0] - k, k - self.at[-1])):
            many, rate = self.beyond[side], self.rate
            whole = 1.0 if np.isinf(many) else 1 - rate**many
            with np.errstate(under="ignore"):
                falling = self.ends[side] * (1 - rate) * rate ** np.maximum(outside - 1, 0.0)
            falling = falling / whole if whole > 0 else np.zeros_like(falling)
            mass = np.where(outside > 0, np.where(outside <= many, falling, 0.0), mass)

        return mass * self.factor[i]
