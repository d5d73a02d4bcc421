"""How columns of any kind are fitted, of the values that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quarflow.data.column import FLAT, Column
from quarflow.data.column_checks import check_inside, is_constant
from quarflow.data.column_circle import Circles, circle_bounds
from quarflow.data.column_detect import distinct, find_ties
from quarflow.data.column_fit import detect, settle
from quarflow.data.column_levels import find_levels
from quarflow.data.kinds import Asked

__all__ = ["How", "find_masses", "find_one_hot", "fit_column"]

MASS, MASS_ROWS = 0.01, 10  # part of the rows, and rows, that a value of its own probability has
REST_ROWS = 20


@dataclass(frozen=True)
class How:
    """How columns are to be fitted.

    Attributes:
        wanted, forced: Whether to look for ties, and whether the user says that there are.
        tails: As in ``Columns.fit``.
        constant: Whether a constant column is accepted.
        mixed: Whether to look for point masses.
    """

    wanted: bool = True
    forced: bool = False
    tails: str = "auto"
    constant: bool = False
    mixed: bool = False


def fit_column(
    x: np.ndarray,
    draft: Column,
    limits: tuple[float | None, float | None],
    how: How,
    asked: Asked | None = None,
    seed: int = 0,
) -> Column:
    """The fitted preprocessing of a column.

    Arguments:
        x: Shape (N,), NaN where missing.
        draft: What the column is.
        limits: Its bounds.
        how: To fit it.
        asked: What the user says of it.
        seed: Of the noise.

    Raises:
        ValueError: naming the column.
    """
    x = x[~np.isnan(x)]
    if not len(x):
        raise ValueError(f"Column {draft.name!r} holds no values; leave it out.")
    if how.constant and draft.kind != "category" and is_constant(x):
        middle = float(np.median(x))
        flat = Column(name=draft.name, mean=middle, scale=FLAT, seen=(middle, middle))
        return _as(draft, flat)
    if draft.kind == "category":
        return _category(x, draft, how)
    if draft.kind == "periodic":
        return _periodic(x, draft, how, seed)
    masses = _masses(x, draft, how, asked)
    if masses:
        x = x[~np.isin(x, [value for value, _ in masses])]
    column = detect(x, draft.name, limits, how.wanted, how.forced)
    check_inside(x, column)
    column = settle(x, column, how.tails, seed=seed)
    seen = (float(x.min()), float(x.max()))

    return _as(draft, column.model_copy(update={"seen": seen, "point_masses": masses}))


def find_masses(x: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Values that hold 1 % of the rows x (N) of an otherwise continuous column, with their shares.

    None where the column is discrete also without them: then it has levels or a lattice.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> find_masses(np.concatenate([np.zeros(100), rng.exponential(size=300)]))
        ((0.0, 0.25),)
    """
    values, counts = distinct(x)
    often = counts >= max(MASS_ROWS, MASS * len(x))
    rest = x[~np.isin(x, values[often])]
    if not often.any() or len(rest) < REST_ROWS:
        return ()
    ties = find_ties(rest)
    if ties is not None:
        grid = None if ties.atoms else ties.grid
        if grid is not None or find_levels(rest, grid) is not None:
            return ()
    shares = counts[often] / len(x)

    return tuple(zip(values[often].tolist(), shares.tolist(), strict=True))


def find_one_hot(X: np.ndarray, columns: Sequence[Column]) -> list[tuple[int, ...]]:
    """Blocks of 0/1 columns of X (N, D) next to each other that add up to 1 in every row.

    Rows with missing values in a block count as far as they are there. A block has three columns
    or more; two are one flag and its opposite, and a block as well.

    Example:
        >>> X = np.eye(3)[[0, 1, 2, 1]]
        >>> find_one_hot(X, [Column(name=name) for name in "abc"])
        [(0, 1, 2)]
    """
    flags = [_is_flag(X[:, j], column) for j, column in enumerate(columns)]
    blocks, j = [], 0
    while j < len(columns):
        end = _block_end(X, flags, j)
        if end > j + 1:
            blocks.append(tuple(range(j, end)))
        j = max(end, j + 1)

    return blocks


def _block_end(X: np.ndarray, flags: list[bool], start: int) -> int:
    """Where the block from a column on ends; the column itself where it begins none."""
    total, gone = np.zeros(len(X)), np.zeros(len(X), dtype=bool)
    for j in range(start, len(flags)):
        if not flags[j]:
            return start
        missing = np.isnan(X[:, j])
        gone |= missing
        total += np.where(missing, 0.0, X[:, j])
        if (total > 1).any():
            return start
        if (total[~gone] == 1).all() and (~gone).any():
            return j + 1
    return start


def _is_flag(x: np.ndarray, column: Column) -> bool:
    if column.kind == "category":
        return column.categories == (False, True)
    there = x[~np.isnan(x)]

    return column.kind == "number" and len(there) > 0 and bool(np.isin(there, (0.0, 1.0)).all())


def _category(x: np.ndarray, draft: Column, how: How) -> Column:
    held = np.unique(x[x >= 0])
    if len(held) < 2 and not how.constant:
        label = draft.categories[int(held[0])] if len(held) else None
        raise ValueError(
            f"Column {draft.name!r} is constant ({label!r} in every row), so it says nothing; "
            "leave it out."
        )
    return draft


def _masses(
    x: np.ndarray, draft: Column, how: How, asked: Asked | None
) -> tuple[tuple[float, float], ...]:
    said = None if asked is None else asked.point_masses
    if said is None:
        said = "auto" if how.mixed and how.wanted and not how.forced else "none"
    if said == "auto":
        return find_masses(x)
    if said == "none":
        return ()
    values = sorted({float(value) for value in said})
    rows = [int((x == value).sum()) for value in values]
    if len(x) - sum(rows) < 2:
        raise ValueError(
            f"Column {draft.name!r} holds nothing but its point masses; make it a category."
        )
    total = len(x) + 0.5 * len(values)

    return tuple((v, (n + 0.5) / total) for v, n in zip(values, rows, strict=True))


def _periodic(x: np.ndarray, draft: Column, how: How, seed: int) -> Column:
    """A column over a window of its images, see ``Circles``."""
    assert draft.period is not None
    lower, upper = circle_bounds(x, draft.start, draft.period)
    draft = draft.model_copy(update={"lower": lower, "upper": upper})
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(np.ascontiguousarray(x))[:, None]
    y = Circles([draft]).unrolled(rows, generator)[:, 0].numpy()
    column = detect(y, draft.name, (lower, upper), how.wanted, how.forced)
    column = settle(y, column, "none", seed=seed)
    seen = (float(x.min()), float(x.max()))
    found = column.model_copy(update={"seen": seen, "edge_lower": None, "edge_upper": None})

    return _as(draft, found)


def _as(draft: Column, fitted: Column) -> Column:
    """The fitted column, of the kind of its draft."""
    own = ("kind", "categories", "time_unit", "epoch", "zone", "format", "cyclic", "period")
    kept = {name: getattr(draft, name) for name in (*own, "start")}
    if draft.kind == "periodic" and fitted.lower is None:
        kept |= {"lower": draft.lower, "upper": draft.upper}

    return fitted.model_copy(update=kept)
