"""The fitted preprocessing of one column: what a model file holds of it."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quarflow.data.column_kind import check_kind, kind_sentence

__all__ = ["FLAT", "SPARSE", "Column", "Cyclic", "Kind", "Label", "TimeUnit"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]
Share = Annotated[float, Field(allow_inf_nan=False, gt=0, lt=1)]
Label = bool | int | Finite | str
Kind = Literal["number", "category", "date", "duration", "periodic"]
TimeUnit = Literal["day", "hour", "minute", "second"]
Cyclic = Literal["day", "week", "year"]
FLAT = 1e300  # scale of a constant column of the context: all it may hold standardises to 0
SPARSE = 4  # lattice points to a value from which on a lattice counts as mostly empty


class Column(BaseModel):
    """The fitted preprocessing of one column.

    Attributes:
        step: Training adds step * (u - 1/2) to each value; None: continuous.
        grid, origin: The values (98 % of the rows at least) are origin + k * grid, and samples
            are rounded to that.
        atoms: Values repeated often; samples within step / 2 of one become it.
        levels, masses, unseen: A column with few values has levels, each with its part of the
            unit line, and its score is a probability (per ``unit``); unseen is the mass of the
            values that never occurred.
        lower, upper: Bounds; half a step wider where there is a step.
        shape: With bounds, of a reference density whose CDF leads to normal scores; None: log or
            logit, then as without bounds.
        edge_lower, edge_upper: (width, exponent) of the strip at a bound in which the density is
            the reference density, or goes like distance ** (exponent - 1), times the strip's
            mass.
        center, spread: Heavy tails are tamed by asinh((v - center) / spread); spread None: not.
        mean, scale: Of the result, for standardising.
        seen: The smallest and the greatest value in training.
        kind: What its values are. Categories are codes 0, 1, ... of ``categories``; dates are
            numbers of ``time_unit`` since ``epoch``, durations numbers of it.
        categories: The labels that occurred in training, of their own types.
        epoch: Where dates count from, in ISO's form; with a time of day where they have one.
        zone, format: The time zone of dates, None for dates without one; the form that those
            which are text have, as in ``strptime``, None for ISO's.
        cyclic: Parts of a date that other columns may depend on.
        period, start: Of a periodic column, whose values are taken modulo the period, from
            start; it is fitted over ``lower`` to ``upper``, which is more than a period.
        point_masses: Values of a column that is continuous otherwise, each with the part of the
            rows that it holds; all else is fitted to the other rows.
        one_hot: The number of the block of 0/1 columns that it belongs to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    step: Positive | None = None
    grid: Positive | None = None
    origin: Finite = 0.0
    atoms: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    levels: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    masses: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    unseen: Annotated[float, Field(allow_inf_nan=False, ge=0, lt=1)] = 0.0
    lower: Finite | None = None
    upper: Finite | None = None
    shape: Annotated[tuple[Positive, Positive, Positive] | None, Field(strict=False)] = None
    edge_lower: Annotated[tuple[Positive, Positive] | None, Field(strict=False)] = None
    edge_upper: Annotated[tuple[Positive, Positive] | None, Field(strict=False)] = None
    center: Finite = 0.0
    spread: Positive | None = None
    mean: Finite = 0.0
    scale: Positive = 1.0
    seen: Annotated[tuple[Finite, Finite] | None, Field(strict=False)] = None
    kind: Kind = "number"
    categories: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    time_unit: TimeUnit | None = None
    epoch: str | None = None
    zone: str | None = None
    format: str | None = None
    cyclic: Annotated[tuple[Cyclic, ...], Field(strict=False)] = ()
    period: Positive | None = None
    start: Finite = 0.0
    point_masses: Annotated[
        tuple[Annotated[tuple[Finite, Share], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    one_hot: Annotated[int | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError("lower must be less than upper")
        if self.step is None and (self.grid is not None or self.atoms):
            raise ValueError("grid and atoms need a step")
        _check_levels(self)
        check_kind(self)
        for strip, bound in ((self.edge_lower, self.lower), (self.edge_upper, self.upper)):
            if strip is not None and (bound is None or self.step is not None):
                raise ValueError("an edge needs a bound, and no step")
        if self.shape is not None and self.lower is None and self.upper is None:
            raise ValueError("a shape needs a bound")
        return self

    @property
    def constant(self) -> bool:
        """Whether it held one value only, so that it says nothing (a context may)."""
        return self.scale == FLAT

    @property
    def support(self) -> tuple[float, float]:
        """The open interval that carries the density."""
        half = 0.5 * (self.step or 0.0)
        lower = -math.inf if self.lower is None else self.lower - half
        return lower, math.inf if self.upper is None else self.upper + half

    @property
    def lattice(self) -> bool:
        """Whether the column's values are all taken for lattice points, too many for levels."""
        return self.grid is not None and not self.atoms and not self.levels

    @property
    def unit(self) -> float:
        """What a probability is divided by in the score of a discrete column.

        1 where it has a few whole numbers, or values in no order; else the step of its lattice:
        then the score is the mean density over a step, in the same units as that of a column
        which is not discrete.
        """
        if self.grid is None:
            return 1.0
        if not self.levels:
            return self.grid
        points = (self.levels[-1] - self.levels[0]) / self.grid + 1
        return 1.0 if self._whole or points > SPARSE * len(self.levels) else self.grid

    @property
    def _whole(self) -> bool:
        return all(map(float.is_integer, self.levels))

    def describe(self) -> str | None:
        """What is done to this column besides standardising, as a sentence; None if nothing."""
        if self.kind == "category":
            return f"{self.name}: {'; '.join(kind_sentence(self))}."
        parts = kind_sentence(self)
        if self.constant:
            parts.append(f"is {self.mean:.6g} in every row, so nothing depends on it")
        if self.levels:
            kind = "whole numbers" if self._whole else "values"
            per = "" if self.unit == 1 else f" per {self.unit:.6g}"
            parts.append(
                f"takes {len(self.levels)} {kind} ({_some(self.levels)}), so its score is a "
                f"probability{per} and samples are among them"
            )
        elif self.step is not None:
            parts.append(self._ties())
        parts += self._limits()
        if self.spread is not None:
            sign = "-" if self.center >= 0 else "+"
            parts.append(
                "is skewed or has long tails, tamed by "
                f"asinh((v {sign} {abs(self.center):.6g}) / {self.spread:.6g})"
            )
        return f"{self.name}: {'; '.join(parts)}." if parts else None

    def _ties(self) -> str:
        noise = f"noise of width {self.step:.6g} is added in training"
        if self.lattice:
            if self.grid == 1 and self.origin == 0:
                kind = "takes whole numbers"
            else:
                kind = f"takes values in steps of {self.grid:.6g}"
            per = "" if self.unit == 1 else f" per {self.unit:.6g}"
            return f"{kind}, so {noise}, its score is a probability{per} and samples are rounded"
        if self.atoms:
            return f"often takes exactly {_some(self.atoms)}, so {noise}"
        return f"repeats its values, so {noise}"

    def _limits(self) -> list[str]:
        if (self.lower is None and self.upper is None) or self.kind == "periodic":
            return []
        both = self.lower is not None and self.upper is not None
        way = "logit" if both else "logarithm"
        if self.shape is not None:
            way = "by the CDF of a reference density"
        by = "" if self.levels else f" ({way})"
        if both:
            return [f"lies between {self.lower:.6g} and {self.upper:.6g}{by}"]
        if self.lower is not None:
            return [f"lies above {self.lower:.6g}{by}"]
        return [f"lies below {self.upper:.6g}{by}"]


def _some(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:4])
    return shown + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _check_levels(column: Column) -> None:
    levels, masses = column.levels, column.masses
    if len(levels) != len(masses) or len(levels) == 1:
        raise ValueError("levels and masses must be as many, and at least two")
    if not levels:
        return
    if column.step is None or column.atoms:
        raise ValueError("levels need a step and no atoms")
    if any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError("levels must increase")
    if abs(math.fsum(masses) - 1) > 1e-9:
        raise ValueError("masses must add up to 1")
