"""Preprocessing of a table, column by column, so that densities stay in the data's own units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from quarflow.data.column_bounds import bounds_of
from quarflow.data.column_detect import find_tails, find_ties
from quarflow.data.column_transform import ColumnTransform
from quarflow.data.source import listed, shorten

__all__ = ["Column", "Columns"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]
FLAT = 1e300  # scale of a constant column of the context: all it may hold standardises to 0
Bounds = Mapping[str, tuple[float | None, float | None]]


class Column(BaseModel):
    """The fitted preprocessing of one column.

    step: training adds step * (u - 1/2) to each value; None: continuous.
    grid, origin: the values (98 % of the rows at least) are origin + k * grid, and samples are
    rounded to that.
    atoms: values repeated often; samples within step / 2 of one become it.
    lower, upper: bounds, modelled by log or logit; half a step wider where there is a step.
    center, spread: heavy tails are tamed by asinh((v - center) / spread); spread None: not.
    mean, scale: of the result, for standardising.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    step: Positive | None = None
    grid: Positive | None = None
    origin: Finite = 0.0
    atoms: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    lower: Finite | None = None
    upper: Finite | None = None
    center: Finite = 0.0
    spread: Positive | None = None
    mean: Finite = 0.0
    scale: Positive = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError("lower must be less than upper")
        if self.step is None and (self.grid is not None or self.atoms):
            raise ValueError("grid and atoms need a step")
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

    def describe(self) -> str | None:
        """What is done to this column besides standardising, as a sentence; None if nothing."""
        told = []
        if self.constant:
            told.append(f"is {self.mean:.6g} in every row, so nothing depends on it")
        if self.step is not None:
            noise = f"noise of width {self.step:.6g} is added in training"
            if self.grid is not None and not self.atoms:
                if self.grid == 1 and self.origin == 0:
                    kind = "takes whole numbers"
                else:
                    kind = f"takes values in steps of {self.grid:.6g}"
                told.append(f"{kind}, so {noise} and samples are rounded")
            elif self.atoms:
                shown = ", ".join(f"{atom:.6g}" for atom in self.atoms[:4])
                if len(self.atoms) > 4:
                    shown += f" and {len(self.atoms) - 4} more"
                told.append(f"often takes exactly {shown}, so {noise}")
            else:
                told.append(f"repeats its values, so {noise}")
        if self.lower is not None and self.upper is not None:
            told.append(f"lies between {self.lower:.6g} and {self.upper:.6g} (logit)")
        elif self.lower is not None:
            told.append(f"lies above {self.lower:.6g} (logarithm)")
        elif self.upper is not None:
            told.append(f"lies below {self.upper:.6g} (logarithm)")
        if self.spread is not None:
            sign = "-" if self.center >= 0 else "+"
            told.append(
                "is skewed or has long tails, tamed by "
                f"asinh((v {sign} {abs(self.center):.6g}) / {self.spread:.6g})"
            )
        return f"{self.name}: {'; '.join(told)}." if told else None


@dataclass(frozen=True)
class Columns:
    """The fitted preprocessing of a table of D columns.

    >>> import numpy as np, torch
    >>> rng = np.random.default_rng(0)
    >>> X = np.stack([rng.poisson(4, 1000), rng.normal(50, 9, 1000)], axis=1)
    >>> columns = Columns.fit(X, ["visits", "age"])
    >>> for sentence in columns.describe():
    ...     print(sentence)
    visits: takes whole numbers, so noise of width 1 is added in training and samples are
    rounded.
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
        constant: Literal["refuse", "keep"] = "refuse",
    ) -> Columns:
        """Look at each column of X (N, D) and settle its preprocessing.

        bounds: (lower, upper) by name, either may be None. discrete: "auto" detects whole
        numbers, lattices and ties, "none" takes all columns for continuous, a list names the
        discrete ones. tails: "auto" tames heavy tails where the likelihood gains by it. constant:
        "keep" makes a constant column 0, as a context may hold, which needs no density.
        Deterministic. Raises ValueError, naming the column (and row), for fewer than two rows,
        missing values, a constant column, or a value outside its bounds.
        """
        X = np.asarray(X, dtype=np.float64)
        names = list(names)
        limits = _check(X, names, bounds or {}, discrete, tails)
        fitted = []
        for j, name in enumerate(names):
            if constant == "keep" and _rounding_only(X[:, j]):
                fitted.append(Column(name=name, mean=float(np.median(X[:, j])), scale=FLAT))
                continue
            forced = not isinstance(discrete, str) and name in discrete
            wanted = forced or discrete == "auto"
            column = _detect(X[:, j], name, limits.get(name, (None, None)), wanted, forced)
            _check_inside(X[:, j], column)
            fitted.append(_settle(X[:, j], column, tails, seed=j))
        return cls(tuple(fitted))

    def transform(self) -> ColumnTransform:
        """Data units (*, D) -> standardised float64 (*, D), with `call_and_ladj` and `.inv`."""
        return ColumnTransform(self.columns)

    def check(self, X: np.ndarray) -> None:
        """Raise ValueError, naming column and row, at the first value of X outside its bounds."""
        for j, column in enumerate(self.columns):
            _check_inside(np.asarray(X)[:, j], column)

    def dequantise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (*, D) as float64, with centred noise of each discrete column's own width."""
        x = x.to(torch.float64)
        steps = [0.0 if column.step is None else column.step for column in self.columns]
        index = [j for j, step in enumerate(steps) if step]
        if not index:
            return x
        noise = torch.rand(
            (*x.shape[:-1], len(index)),
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        )
        width = torch.tensor([steps[j] for j in index], dtype=torch.float64, device=x.device)
        where = torch.tensor(index, device=x.device)
        x = x.index_add(-1, where, (noise.to(x.device) - 0.5) * width)
        return self._inside(x, [column.support for column in self.columns])

    def snap(self, x: Tensor) -> Tensor:
        """Samples x (*, D) back to the lattices, to the repeated values, and into the bounds."""
        x = x.to(torch.float64)
        out = list(x.unbind(-1))
        for j, column in enumerate(self.columns):
            value = out[j]
            if column.grid is not None:
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
        return self._inside(torch.stack(out, -1), [_closed(column) for column in self.columns])

    def describe(self) -> list[str]:
        """A sentence for each column that gets anything besides standardising."""
        return [told for column in self.columns if (told := column.describe())]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain dicts for `json.dump`; exact, since JSON keeps every digit of a float."""
        return [column.model_dump(mode="json") for column in self.columns]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> Columns:
        """The inverse of `to_json`. Raises ValueError, naming column and entry, for bad values."""
        if not isinstance(data, Sequence) or isinstance(data, str) or not data:
            raise ValueError("The columns of a model must be a list with at least one entry.")
        columns = []
        for j, entry in enumerate(data, start=1):
            try:
                columns.append(Column.model_validate(entry))
            except ValidationError as error:
                first = error.errors()[0]
                entry_name = ".".join(map(str, first["loc"]))
                where = f", entry {entry_name}" if entry_name else ""
                raise ValueError(f"Column {j} of the model{where}: {first['msg']}.") from None
        _check_names([column.name for column in columns])
        return cls(tuple(columns))

    @staticmethod
    def _inside(x: Tensor, limits: Sequence[tuple[float, float]]) -> Tensor:
        """x moved strictly inside open intervals, by one float where it is on the edge."""
        if all(math.isinf(a) and math.isinf(b) for a, b in limits):
            return x
        low = [math.nextafter(a, math.inf) if a > -math.inf else a for a, _ in limits]
        high = [math.nextafter(b, -math.inf) if b < math.inf else b for _, b in limits]
        edges = torch.tensor([low, high], dtype=torch.float64, device=x.device)
        return x.clamp(edges[0], edges[1])


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


def _detect(
    x: np.ndarray,
    name: str,
    limits: tuple[float | None, float | None],
    wanted: bool,
    forced: bool,
) -> Column:
    low, high = float(x.min()), float(x.max())
    if low == high:
        raise ValueError(
            f"Column {name!r} is constant ({low:.6g} in every row), so it has no density; "
            "leave it out."
        )
    if _rounding_only(x):
        raise ValueError(
            f"Column {name!r} is constant but for rounding (from {low!r} to {high!r}); "
            "leave it out, or subtract its mean before it is stored."
        )
    if max(abs(low), abs(high)) > 1e100 or high - low < 1e-100:  # squares would overflow
        raise ValueError(
            f"Column {name!r} goes from {low:.6g} to {high:.6g}, too large or too small "
            "to compute with; rescale it."
        )
    lower, upper = (None if limit is None else float(limit) for limit in limits)
    ties = find_ties(x, forced=forced) if wanted else None
    if ties is None:
        return Column(name=name, lower=lower, upper=upper)
    return Column(
        name=name,
        step=ties.step,
        grid=ties.grid,
        origin=ties.origin,
        atoms=ties.atoms,
        lower=lower,
        upper=upper,
    )


def _rounding_only(x: np.ndarray) -> bool:
    """Whether a column differs by no more than rounding."""
    low, high = float(x.min()), float(x.max())
    return high - low <= 256 * math.ulp(max(abs(low), abs(high)))


def _settle(x: np.ndarray, column: Column, tails: str, seed: int) -> Column:
    """The column with its tails, mean and scale, as training will see it (noise included)."""
    values = torch.from_numpy(np.ascontiguousarray(x))[:, None]
    values = Columns((column,)).dequantise(values, torch.Generator().manual_seed(seed))
    v = ColumnTransform([column])(values)
    # with bounds v is on another scale, where the width of the noise varies
    bounded = column.lower is not None or column.upper is not None
    finest = 0.0 if bounded or column.step is None else column.step
    found = find_tails(v[:, 0].numpy(), finest) if tails == "auto" else None
    if found is not None:
        column = column.model_copy(update={"center": found[0], "spread": found[1]})
        v = ColumnTransform([column])(values)
    scale = float(v.std(correction=0))
    return column.model_copy(update={"mean": float(v.mean()), "scale": scale})


def _check(
    X: np.ndarray, names: list[str], bounds: Bounds, discrete: str | Sequence[str], tails: str
) -> dict[str, tuple[float | None, float | None]]:
    """Refuse what cannot be fitted; give back the bounds."""
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValueError(f"The data must be rows x columns, but have shape {X.shape}.")
    if len(names) != X.shape[1]:
        raise ValueError(f"There are {len(names)} names for {X.shape[1]} columns.")
    _check_names(names)
    if len(X) < 2:
        raise ValueError(f"Fitting needs at least 2 rows, and there is {len(X)}.")
    bad = ~np.isfinite(X)
    if bad.any():
        j = int(np.argmax(bad.any(axis=0)))
        row = int(np.argmax(bad[:, j]))
        what = "missing" if np.isnan(X[row, j]) else "infinite"
        raise ValueError(f"Column {names[j]!r} has a value that is {what} in row {row + 1:,}.")
    if tails not in ("auto", "none"):
        raise ValueError(f"tails must be 'auto' or 'none', not {tails!r}.")
    if isinstance(discrete, str):
        if discrete not in ("auto", "none"):
            raise ValueError(
                f"discrete must be 'auto', 'none' or a list of column names, not {discrete!r}."
            )
        discrete = []
    if not isinstance(bounds, Mapping):
        raise ValueError(f"bounds must be a dict {{column: (lower, upper)}}, not {bounds!r}.")
    if not isinstance(discrete, Iterable):
        raise ValueError(
            f"discrete must be 'auto', 'none' or a list of column names, not {discrete!r}."
        )
    for argument, given in (("discrete", discrete), ("bounds", bounds)):
        for name in given:
            if name not in names:
                raise ValueError(
                    f"{argument} names the column {shorten(name)}, but the columns are "
                    f"{listed(names)}."
                )
    return {name: bounds_of(name, pair) for name, pair in bounds.items()}


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"Two columns are called {name!r}; rename one.")
        seen.add(name)


def _check_inside(x: np.ndarray, column: Column) -> None:
    if column.lower is None and column.upper is None:
        return
    lower, upper = column.support
    bad = (x <= lower) | (x >= upper)
    if bad.any():
        row = int(np.argmax(bad))
        value = float(x[row])
        limit, word = (column.lower, "above") if value <= lower else (column.upper, "below")
        or_on = "at or " if column.step is not None else ""
        raise ValueError(
            f"Column {column.name!r} is {value:.17g} in row {row + 1:,}, but by its bounds every "
            f"value must lie {or_on}{word} {limit:.17g}; correct the value or move the bound."
        )
