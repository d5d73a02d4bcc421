"""What users say of the kinds of columns, in Python, on the command line and in schema files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quarflow.data.column import Cyclic, Kind, Label, TimeUnit
from quarflow.data.source import listed, shorten

__all__ = ["Asked", "read_kinds"]

_FOR = {
    "period": ("periodic",),
    "start": ("periodic",),
    "cyclic": ("date",),
    "format": ("date",),
    "unit": ("date", "duration"),
    "categories": ("category",),
    "point_masses": ("number", "date", "duration"),
}


class Asked(BaseModel):
    """What is asked of one column.

    Attributes:
        kind: None: as detected.
        period, start: Of a periodic column: values are taken modulo the period, from start.
        cyclic: Parts of a date that other columns may depend on.
        unit: That dates or durations are counted in.
        format: Of dates that are text, as in ``strptime``; None: ISO's.
        categories: All labels, in this order; None: those that occur.
        point_masses: ``"auto"`` looks for values of a continuous column that hold at least 1 % of
            the rows, ``"none"`` does not, and numbers are such values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Kind | None = None
    period: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    start: Annotated[float, Field(allow_inf_nan=False)] | None = None
    cyclic: Annotated[tuple[Cyclic, ...], Field(strict=False)] = ()
    unit: TimeUnit | None = None
    format: str | None = None
    categories: Annotated[tuple[Label, ...], Field(strict=False, min_length=2)] | None = None
    point_masses: (
        Literal["auto", "none"]
        | Annotated[
            tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
            Field(strict=False, min_length=1),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "periodic" and self.period is None:
            raise ValueError("a periodic column needs its period, such as 360 for degrees")
        for field in self.model_fields_set - {"kind"}:
            kinds = _FOR.get(field, ())
            if self.kind is not None and self.kind not in kinds:
                raise ValueError(f"{field} is for {' or '.join(kinds)}, not for {self.kind}")
        return self

    @property
    def sort(self) -> Kind | None:
        """The kind, also where only something else tells it."""
        if self.kind is None:
            if self.period is not None:
                return "periodic"
            if self.cyclic or self.format:
                return "date"
            if self.categories is not None:
                return "category"
        return self.kind


def read_kinds(
    kinds: Mapping[str, Any] | None, names: Sequence[str] | None = None, argument: str = "kinds"
) -> dict[str, Asked]:
    """What is asked of each column, checked.

    Arguments:
        kinds: By column: a kind, or a dict of the fields of :class:`Asked`.
        names: Of the columns there are; None: not known yet.
        argument: What it is called in messages.

    Raises:
        ValueError: naming the column, for one that is not there or something else than is known.

    Example:
        >>> read_kinds({"zip": "category", "angle": {"period": 360}})["angle"].sort
        'periodic'
        >>> read_kinds({"zpi": "category"}, ["zip", "price"])
        Traceback (most recent call last):
        ...
        ValueError: kinds names the column 'zpi', but the columns are 'zip', 'price'.
    """
    if kinds is None:
        return {}
    if not isinstance(kinds, Mapping):
        raise ValueError(f"{argument} must be a dict {{column: kind}}, not {shorten(kinds)}.")
    found = {}
    for name, said in kinds.items():
        if names is not None and name not in names:
            raise ValueError(
                f"{argument} names the column {shorten(name)}, but the columns are "
                f"{listed(names)}."
            )
        found[str(name)] = _asked(name, said, argument)
    return found


def _asked(name: str, said: Any, argument: str) -> Asked:
    if isinstance(said, Asked):
        return said
    fields = {"kind": said} if isinstance(said, str) else said
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"{argument}: the column {shorten(name)} needs a kind, such as 'category', or a dict "
            f"such as {{'kind': 'periodic', 'period': 360}}, not {shorten(said)}."
        )
    try:
        return Asked.model_validate(dict(fields))
    except ValidationError as error:
        raise ValueError(f"{argument}: the column {shorten(name)} {_why(error)}.") from None


def _why(error: ValidationError) -> str:
    """What is wrong, for people."""
    first = error.errors()[0]
    where = str(first["loc"][0]) if first["loc"] else ""
    value = shorten(first["input"])
    if first["type"] == "extra_forbidden":
        return f"has no setting {shorten(where)}; there are {', '.join(Asked.model_fields)}"
    if where == "kind":
        return f"cannot be of the kind {value}; the kinds are {_choices(Kind)}"
    if where == "cyclic":
        return f"cannot have cyclic={value}; the cyclic parts are {_choices(Cyclic)}"
    if where == "unit":
        return f"cannot be counted in {value}; the units are {_choices(TimeUnit)}"
    if not where:
        return f"is not described consistently: {first['msg'].removeprefix('Value error, ')}"
    return f"cannot have {where}={value} ({first['msg']})"


def _choices(literal: Any) -> str:
    return ", ".join(get_args(literal))
