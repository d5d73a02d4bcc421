"""What columns of each kind must have, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from quarflow.data.column import Column

__all__ = ["check_kind", "kind_sentence", "label_key", "some_labels"]


def check_kind(column: Column) -> None:
    """Refuse fields that do not suit the kind of a column.

    Raises:
        ValueError: saying which.
    """
    _check_own_fields(column)
    if column.kind == "category":
        _check_categories(column)
    if column.kind == "date":
        try:
            datetime.fromisoformat(column.epoch or "")
            ZoneInfo(column.zone or "UTC")
        except (ValueError, OSError):
            raise ValueError("dates need an epoch in ISO's form, and a known zone") from None
    if column.kind == "periodic" and (
        column.period is None or column.lower is None or column.upper is None
    ):
        raise ValueError("a periodic column needs a period and bounds")
    _check_masses(column)


def label_key(label: object) -> tuple[type, object]:
    """What tells labels apart: 1, True, 1.0 and '1' are four.

    Example:
        >>> label_key(1) == label_key(True)
        False
    """
    return type(label), label


def _check_own_fields(column: Column) -> None:
    timed = column.kind in ("date", "duration")
    if bool(column.categories) != (column.kind == "category"):
        raise ValueError("a category has categories, and nothing else does")
    if (column.time_unit is not None) != timed:
        raise ValueError("dates and durations have a time unit, and nothing else does")
    if (column.epoch or column.zone or column.cyclic or column.format) and column.kind != "date":
        raise ValueError("only dates have an epoch, a zone or cyclic parts")
    if column.period is not None and column.kind != "periodic":
        raise ValueError("only a periodic column has a period")


def _check_categories(column: Column) -> None:
    if len({label_key(label) for label in column.categories}) < len(column.categories):
        raise ValueError("categories must differ")
    if column.step is not None or column.lower is not None or column.upper is not None:
        raise ValueError("a category has no step and no bounds")


def _check_masses(column: Column) -> None:
    if not column.point_masses:
        return
    if column.levels or column.kind in ("category", "periodic"):
        raise ValueError("point masses need a column that is continuous otherwise")
    values = [value for value, _ in column.point_masses]
    if sorted(set(values)) != values:
        raise ValueError("the values of point masses must increase")
    if sum(share for _, share in column.point_masses) >= 1:
        raise ValueError("point masses must leave something to the rest")


def kind_sentence(column: Column) -> list[str]:
    """Parts of the sentence about a column that its kind makes necessary."""
    if column.kind == "category":
        count = len(column.categories)
        said = f"is a category of {count} ({some_labels(column.categories)})"
        if column.one_hot is not None:
            said = f"belongs to one-hot block {column.one_hot + 1}, one category of its columns"
        return [f"{said}, so its score is a probability"]
    parts = []
    if column.kind == "date":
        zone = f", {column.zone}" if column.zone else ""
        parts.append(f"holds dates, as {column.time_unit}s since {column.epoch}{zone}")
        if column.cyclic:
            parts.append(f"others may depend on its time of {' and of '.join(column.cyclic)}")
    if column.kind == "duration":
        parts.append(f"holds durations, in {column.time_unit}s")
    if column.kind == "periodic":
        parts.append(
            f"is periodic, {column.start + (column.period or 0):.6g} being {column.start:.6g}"
        )
    if column.one_hot is not None:
        parts.append(f"belongs to one-hot block {column.one_hot + 1}, one category of its columns")
    if column.point_masses:
        shown = ", ".join(f"{v:.6g} ({share:.1%})" for v, share in column.point_masses[:4])
        more = len(column.point_masses) - 4
        parts.append(
            f"is often exactly {shown}{f' and {more} more' if more > 0 else ''}, which has a "
            "probability of its own"
        )
    return parts


def some_labels(labels: Sequence[object], most: int = 4) -> str:
    """The first few labels, for a sentence.

    Example:
        >>> some_labels(["a", "b", True], 2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(_shown(label) for label in labels[:most])
    return shown + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _shown(label: object) -> str:
    text = repr(label)
    return text if len(text) <= 40 else text[:36] + "...'"
