"""Preprocessing of a table, column by column, so that densities stay in the data's own units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_cells import Cells
from quarflow.data.column_checks import (
    Bounds,
    check_table,
)
from quarflow.data.column_circle import Circles
from quarflow.data.column_fit import keep_inside
from quarflow.data.column_levels import LevelMap
from quarflow.data.column_mixed import How, find_one_hot, fit_column
from quarflow.data.column_transform import ColumnTransform
from quarflow.data.kinds import Asked
from quarflow.data.parts import Parts

__all__ = ["Column", "Columns"]


@dataclass(frozen=True)
class Columns:
    """The fitted preprocessing of a table of D columns.

    Example:
        >>> import numpy as np, torch
        >>> rng = np.random.default_rng(0)
        >>> X = np.stack([rng.poisson(4, 1000), rng.normal(50, 9, 1000)], axis=1)
        >>> columns = Columns.fit(X, ["visits", "age"])
        >>> for sentence in columns.describe():
        ...     print(sentence)
        visits: takes 12 whole numbers (0, 1, 2, 3 and 8 more), so its score is a probability and
        samples are among them.
        >>> x = columns.dequantise(torch.tensor(X), torch.Generator().manual_seed(0))
        >>> z, ladj = columns.transform().call_and_ladj(x)
        >>> z.mean(0).abs().max().item() < 0.05, ladj.shape
        (True, torch.Size([1000]))
    """

    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """The D names, in order."""
        return [column.name for column in self.columns]

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def fit(
        cls,
        X: np.ndarray,
        names: Sequence[str],
        *,
        bounds: Bounds | None = None,
        discrete: Literal["auto", "none"] | Sequence[str] = "auto",
        tails: Literal["auto", "none"] = "auto",
        constant: bool = False,
        drafts: Sequence[Column] | None = None,
        asked: Mapping[str, Asked] | None = None,
        mixed: bool = False,
    ) -> Columns:
        """Look at each column of X (N, D) and settle its preprocessing.

        Deterministic.

        Arguments:
            X: Rows (N, D).
            names: D names, each another.
            bounds: (lower, upper) by name, either may be None.
            discrete: ``"auto"`` detects whole numbers, lattices and ties, ``"none"`` takes all
                columns for continuous, a list names the discrete ones.
            tails: ``"auto"`` tames heavy tails where the likelihood gains by it.
            constant: Accept constant columns, as a context may have them; they become 0.
            drafts: What each column is; then values may be missing (NaN). None: complete numbers.
            asked: What the user says of columns.
            mixed: Look for point masses and one-hot blocks.

        Raises:
            ValueError: Naming the column (and row), for fewer than two rows, missing values, a
                constant column, or a value outside its bounds.
        """
        X = np.asarray(X, dtype=np.float64)
        names = list(names)
        limits = check_table(X, names, bounds or {}, discrete, tails, holes=drafts is not None)
        fitted = []
        for j, name in enumerate(names):
            forced = not isinstance(discrete, str) and name in discrete
            wanted = forced or discrete == "auto"
            how = How(wanted, forced, tails, constant, mixed)
            draft = Column(name=name) if drafts is None else drafts[j]
            _refuse_bounds(draft, limits, how)
            fitted.append(
                fit_column(
                    X[:, j], draft, limits.get(name, (None, None)), how, (asked or {}).get(name), j
                )
            )
        if mixed:
            for number, block in enumerate(find_one_hot(X, fitted)):
                for j in block:
                    fitted[j] = fitted[j].model_copy(update={"one_hot": number})
        return cls(tuple(fitted))

    @property
    def one_hot(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of columns, by position, that are one category each."""
        blocks: dict[int, list[int]] = {}
        for j, column in enumerate(self.columns):
            if column.one_hot is not None:
                blocks.setdefault(column.one_hot, []).append(j)
        return tuple(tuple(block) for block in blocks.values())

    def parts(self) -> Parts:
        """What of the columns is numbers and what is codes."""
        return Parts(self.columns)

    def transform(self) -> ColumnTransform:
        """The map from data units (*, D) to standardised float64 (*, D); has ``call_and_ladj``."""
        return ColumnTransform(self.columns)

    def cells(self) -> Cells:
        """The cells of discrete values, and the strips at bounds."""
        return Cells(self.columns)

    def dequantise(
        self, x: Tensor, generator: torch.Generator, cells: Cells | None = None
    ) -> Tensor:
        """The rows as float64, with noise that fills the cells of each discrete column.

        Arguments:
            x: Shape (*, D).
            generator: Of the noise.
            cells: Those of ``cells()``, if they are at hand.
        """
        x = x.to(torch.float64)
        circles = Circles(self.columns)
        if circles:
            x = circles.unrolled(x, generator)
        if all(column.step is None for column in self.columns):
            return x
        x = (cells or self.cells()).noisy(x, generator)
        return keep_inside(x, [column.support for column in self.columns])

    def snap(self, x: Tensor) -> Tensor:
        """Samples x (*, D), moved to levels, lattices, repeated values, and into the bounds."""
        x = x.to(torch.float64)
        out = list(x.unbind(-1))
        for j, column in enumerate(self.columns):
            value = out[j]
            if column.levels:
                value = LevelMap([column]).nearest(value[..., None])[..., 0]
            elif column.grid is not None:
                value = column.origin + column.grid * torch.round(
                    (value - column.origin) / column.grid
                )
                # 1.63, not 1.6300000000000001: digits far below the grid are rounding
                digits = 9 - math.floor(math.log10(column.grid))
                if 0 <= digits <= 15:
                    value = torch.round(value, decimals=digits)
            if column.step is not None and column.atoms:
                atoms = torch.tensor(column.atoms, dtype=torch.float64, device=x.device)
                # the nearest atom, found among the two neighbours in sorted order
                right = torch.searchsorted(atoms, out[j].detach().contiguous())
                left = atoms[(right - 1).clamp(min=0)]
                right_atom = atoms[right.clamp(max=len(atoms) - 1)]
                nearer = (out[j] - left).abs() <= (out[j] - right_atom).abs()
                nearest = torch.where(nearer, left, right_atom)
                value = torch.where((out[j] - nearest).abs() <= column.step / 2, nearest, value)
            out[j] = value
        x = keep_inside(torch.stack(out, -1), [_closed(column) for column in self.columns])
        circles = Circles(self.columns)
        return circles.rolled(x) if circles else x

    def describe(self) -> list[str]:
        """A sentence for each column that gets anything besides standardising."""
        return [sentence for column in self.columns if (sentence := column.describe())]

    def describe_kinds(self) -> list[str]:
        """Those of the sentences that tell of something else than plain numbers."""
        return [
            sentence
            for column in self.columns
            if column.kind != "number" or column.point_masses or column.one_hot is not None
            if (sentence := column.describe())
        ]


def _refuse_bounds(draft: Column, limits: Bounds, how: How) -> None:
    """Refuse bounds and noise for what is no number.

    Raises:
        ValueError: naming the column.
    """
    if draft.kind not in ("category", "periodic"):
        return
    what = "is a category" if draft.kind == "category" else "is periodic"
    if draft.name in limits:
        raise ValueError(f"Column {draft.name!r} {what}, which has no bounds; leave them out.")
    if how.forced and draft.kind == "category":
        raise ValueError(f"Column {draft.name!r} {what}; leave it out of discrete.")


def _closed(column: Column) -> tuple[float, float]:
    """The values a sample may take: for a discrete column its bounds, which it may reach."""
    lower, upper = column.support
    if column.step is None:
        return lower, upper
    if column.lower is not None:
        lower = math.nextafter(column.lower, -math.inf)
    if column.upper is not None:
        upper = math.nextafter(column.upper, math.inf)
    return lower, upper
