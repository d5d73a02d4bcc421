"""How one column is fitted: ties or levels, tails, bounds, mean and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_cells import Cells, own_exponent
from quarflow.data.column_checks import check_spread
from quarflow.data.column_detect import find_tails, find_ties
from quarflow.data.column_levels import find_levels
from quarflow.data.column_reference import fit_reference, nearest_round
from quarflow.data.column_transform import ColumnTransform

__all__ = ["detect", "keep_inside", "settle"]

# part of the rows in the strip at a bound, without and with a reference density; rows at least
EDGE_SHARE, REFERENCE_SHARE, EDGE_ROWS = 0.02, 0.05, 20


def detect(
    x: np.ndarray,
    name: str,
    limits: tuple[float | None, float | None],
    wanted: bool,
    forced: bool,
) -> Column:
    """The column x (N) with its ties or levels and bounds; raises ValueError if it has no spread.

    wanted: look for ties; forced: the user says that there are.
    """
    low, high = float(x.min()), float(x.max())
    check_spread(name, low, high)
    lower, upper = (None if limit is None else float(limit) for limit in limits)
    ties = find_ties(x, forced=forced) if wanted else None
    if ties is None:
        return Column(name=name, lower=lower, upper=upper)
    column = Column(
        name=name,
        step=ties.step,
        grid=ties.grid,
        origin=ties.origin,
        atoms=ties.atoms,
        lower=lower,
        upper=upper,
    )
    found = find_levels(x, None if ties.atoms else ties.grid)
    if found is None:
        return column
    levels, masses, unseen = found
    entries = {"levels": levels, "masses": masses, "unseen": unseen, "atoms": ()}
    return column.model_copy(update=entries)


def settle(x: np.ndarray, column: Column, tails: str, seed: int) -> Column:
    """The column with its tails, mean and scale, as training will see it (noise included)."""
    if column.levels:
        return column  # normal by its levels' masses
    values = torch.from_numpy(np.ascontiguousarray(x))[:, None]
    if column.step is not None:
        values = Cells((column,)).noisy(values, torch.Generator().manual_seed(seed))
        values = keep_inside(values, [column.support])
    v = ColumnTransform([column])(values)
    # with bounds v is on another scale, where the width of the noise varies
    bounded = column.lower is not None or column.upper is not None
    finest = 0.0 if bounded or column.step is None else column.step
    found = find_tails(v[:, 0].numpy(), finest) if tails == "auto" else None
    if found is not None:
        column = column.model_copy(update={"center": found[0], "spread": found[1]})
        v = ColumnTransform([column])(values)
    scale = float(v.std(correction=0))
    column = column.model_copy(update={"mean": float(v.mean()), "scale": scale})
    if not bounded or column.step is not None:
        return column
    return _edged(x, _by_reference(x, values, column))


def keep_inside(x: Tensor, limits: Sequence[tuple[float, float]]) -> Tensor:
    """x moved strictly inside open intervals, by one float where it is on the edge."""
    if all(math.isinf(a) and math.isinf(b) for a, b in limits):
        return x
    low = [math.nextafter(a, math.inf) if a > -math.inf else a for a, _ in limits]
    high = [math.nextafter(b, -math.inf) if b < math.inf else b for _, b in limits]
    edges = torch.tensor([low, high], dtype=torch.float64, device=x.device)
    return x.clamp(edges[0], edges[1])


def _by_reference(x: np.ndarray, values: Tensor, column: Column) -> Column:
    """The column with a reference density, if that is likelier than the one it has."""
    z, ladj = ColumnTransform([column]).call_and_ladj(values)
    now = float((ladj - 0.5 * z[:, 0] ** 2).mean()) - 0.5 * math.log(2 * math.pi)
    shape, likelihood = fit_reference(x, column.lower, column.upper)
    if likelihood < now - math.log(len(x)) / len(x):  # the BIC, for two numbers more
        return column
    found = Column(name=column.name, lower=column.lower, upper=column.upper, shape=shape)
    z = ColumnTransform([found])(values)
    scale = float(z.std(correction=0))
    # a density that is far from the reference leaves them far from 0 and 1
    if abs(float(z.mean())) < 0.1 and abs(scale - 1) < 0.1:
        return found
    return found.model_copy(update={"mean": float(z.mean()), "scale": scale})


def _edged(x: np.ndarray, column: Column) -> Column:
    """The column with the strips at its bounds, and how the density goes to the bound there."""
    usual = EDGE_SHARE if column.shape is None else REFERENCE_SHARE
    share = min(max(usual, EDGE_ROWS / len(x)), 0.2)
    found = {}
    for upper, bound in ((False, column.lower), (True, column.upper)):
        if bound is None:
            continue
        distance = bound - x if upper else x - bound
        width = float(np.quantile(distance, share))
        below = distance[distance < width]
        if len(below) < 2 or not width > 0:
            continue
        exponent = float(1 / np.log(width / below).mean())  # Hill's estimate
        own = own_exponent(column, upper)
        # the whole column tells the exponent better than the strip, if they agree
        if column.shape is not None and _deviations(exponent, own, len(below)) < 4:
            exponent = own
        elif _deviations(exponent, nearest_round(exponent), len(below)) < 2:
            exponent = nearest_round(exponent)
        found["edge_upper" if upper else "edge_lower"] = (width, min(exponent, 1e6))
    return column.model_copy(update=found)


def _deviations(exponent: float, other: float, rows: int) -> float:
    """How many of its standard deviations Hill's estimate from so many rows is away."""
    return abs(math.log(exponent / other)) * rows**0.5
