"""Columns as they come to numbers, one for each value: what a column is, and its codes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quarflow.data.column import Column
from quarflow.data.column_kind import label_key, some_labels
from quarflow.data.kinds import Asked
from quarflow.data.raw import NAT, Raw
from quarflow.data.source import shorten
from quarflow.data.text_forms import as_bool, as_number, narrow, read_as
from quarflow.data.times import MICRO, Unreadable, read_dates, since
from quarflow.data.values import NotNumbers, not_numbers

__all__ = ["UNSEEN", "Draft", "Unseen", "code"]

Unseen = Literal["error", "impossible", "missing"]
UNSEEN = -1.0  # the code of a label that training did not have
MOST_LABELS = 1000
FEW_LABELS, CROWDED = (
    50,
    0.5,
)  # more labels than this, and this part of the rows, are names of rows
COUNTED = 100_000  # labels that are counted, for the message


class Draft:
    """What a column is, learnt from its values a piece at a time.

    Arguments:
        name: Of the column.
        asked: What the user says of it.
        what: The table's name in messages.
        written: The values come from a text file, where numbers and flags are text too.
    """

    def __init__(
        self, name: str, asked: Asked | None = None, what: str = "X", written: bool = False
    ) -> None:
        self.name, self.asked = name, asked or Asked()
        self.where = f"Column {name!r} of {what}"
        self.written = written
        self.forms: set[str] = set()
        self.possible = {"number", "bool", "date", "text"} if written else {"date", "text"}
        self.known: tuple[Any, ...] | None = None
        self.labels: dict[tuple[type, object], Any] = {}
        self.zone: str | None = None
        self.first: int | None = None
        self.midnights = True
        self.dated: set[str] = set()  # the forms of dates that are text
        self.rows = self.present = 0
        self.odd: tuple[str, int] | None = None  # the first text that is no date after dates

    def look(self, raw: Raw) -> None:
        """Learn from some rows more."""
        start, self.rows = self.rows, self.rows + len(raw)
        raw = self._as_asked(raw, start)
        here = len(raw) - int(raw.missing.sum())
        self.present += here
        if not here:
            if raw.form not in ("number", "text"):
                self.forms.add(raw.form)
            return
        self.forms.add(raw.form)
        self.known = self.known or raw.known
        if raw.times is not None:
            self._look_at_times(raw)
        elif raw.text is not None:
            self._narrow(raw, start)
            self._add(raw.text.drop_nulls().unique().to_list())
        elif raw.labels is not None:
            self._add([label for label in raw.labels if label is not None])
        elif self.asked.sort == "category" and raw.numbers is not None:
            values = np.unique(raw.numbers[~np.isnan(raw.numbers)])
            self._add(values.astype(bool) if raw.form == "bool" else map(_number, values))

    def column(self) -> Column:
        """The column, with nothing fitted yet.

        Raises:
            ValueError: naming the column, for what can be no column of a density.
        """
        kind = self.kind
        if kind == "category":
            return Column(name=self.name, kind="category", categories=self._categories())
        if kind == "date":
            return self._dates()
        if kind == "duration":
            return Column(name=self.name, kind="duration", time_unit=self.asked.unit or "second")
        if kind == "periodic":
            period, start = self.asked.period or 1.0, self.asked.start or 0.0
            return Column(
                name=self.name,
                kind="periodic",
                period=period,
                start=start,
                lower=start,
                upper=start + period,
            )
        return Column(name=self.name)

    @property
    def kind(self) -> str:
        """The kind asked for, or what the values are."""
        if self.asked.sort is not None:
            return self.asked.sort
        if "label" in self.forms and self.known is None:
            raise not_numbers(self.where, "text", *self._example())
        if "text" in self.forms:
            return self._of_text()
        if self.forms <= {"number"}:
            return "number"
        if self.forms <= {"bool", "label"}:
            return "category"
        if self.forms <= {"date", "datetime"}:
            return "date"
        if self.forms <= {"duration"}:
            return "duration"
        raise ValueError(
            f"{self.where} holds {' and '.join(sorted(self.forms))} values; keep one."
        )

    def _of_text(self) -> str:
        if self.forms > {"text"}:
            others = sorted(self.forms - {"text"})
            raise ValueError(f"{self.where} holds text and {others[0]} values; keep one.")
        for form, kind in (("bool", "category"), ("number", "number"), ("date", "date")):
            if form in self.possible and self.known is None:
                return kind
        if self.odd is not None and len(self.labels) > MOST_LABELS:
            text, row = self.odd
            raise ValueError(
                f"{self.where} holds dates, but {shorten(text)} in row {row:,} is none; correct "
                "it, or leave the column out."
            )
        return "category"

    def _as_asked(self, raw: Raw, start: int) -> Raw:
        """Text as the kind that is asked for."""
        kind = self.asked.sort
        if raw.text is None or kind is None or kind == "category":
            return raw
        if kind in ("number", "periodic"):
            return read_as(raw.text, "number", self.where, start)
        return read_as(raw.text, kind, self.where, start, self.asked.format)

    def _narrow(self, raw: Raw, start: int) -> None:
        assert raw.text is not None
        before = set(self.possible)
        self.possible, place = narrow(raw.text, self.possible)
        if "date" in self.possible:
            try:
                found = read_dates(raw.text)
                self._look_at_times(found)
                self.dated.add(found.form)
            except Unreadable as trouble:  # the 30th of February
                self.possible.discard("date")
                place = trouble.place
        if "date" in before and "date" not in self.possible and (start or place):
            self.odd = (str(raw.text[place]), start + place + 1)

    def _add(self, labels: Any) -> None:
        for label in labels:
            if len(self.labels) > COUNTED:
                return
            plain = label.item() if isinstance(label, np.generic) else label
            self.labels.setdefault(label_key(plain), plain)

    def _look_at_times(self, raw: Raw) -> None:
        times = raw.times[raw.times != NAT] if raw.times is not None else np.empty(0)
        first = int(times.min())
        self.first = first if self.first is None else min(first, self.first)
        self.zone = self.zone or raw.zone
        self.midnights &= bool((times % MICRO["day"] == 0).all()) and raw.zone is None

    def _dates(self) -> Column:
        forms = self.dated if self.forms == {"text"} else self.forms
        if not forms <= {"date", "datetime"}:
            raise NotNumbers(f"{self.where} holds no dates, but {' and '.join(sorted(forms))}s.")
        dated = forms == {"date"}
        moment = datetime(1970, 1, 1) + timedelta(days=(self.first or 0) // MICRO["day"])
        epoch = moment.date().isoformat() if dated else moment.isoformat()
        unit = self.asked.unit or ("day" if dated or self.midnights else "second")

        return Column(
            name=self.name,
            kind="date",
            time_unit=unit,
            epoch=epoch,
            zone=self.zone,
            cyclic=self.asked.cyclic,
            format=self.asked.format,
        )

    def _example(self) -> tuple[str, int]:
        text = next((label for label in self.labels.values() if isinstance(label, str)), "")
        return text, 1

    def _categories(self) -> tuple[Any, ...]:
        """The labels in order: the one asked for, a categorical type's own, or sorted."""
        if self.asked.categories is not None:
            return self.asked.categories
        if self.forms == {"bool"} or (self.written and "bool" in self.possible):
            return (False, True)
        labels = list(self.labels.values())
        if self.written and "number" in self.possible:
            labels = _as_numbers(labels)
        self._refuse_many(labels)
        if self.known is not None:
            held = {label_key(label) for label in labels}
            return tuple(label for label in self.known if label_key(label) in held)
        return tuple(sorted(labels, key=lambda v: (isinstance(v, str), str(type(v)), v)))

    def _refuse_many(self, labels: Sequence[Any]) -> None:
        count = len(labels)
        if count == 0:
            raise ValueError(f"{self.where} holds no values; leave it out.")
        many = f"more than {COUNTED:,}" if count > COUNTED else f"{count:,}"
        shown = some_labels(labels, 2)
        if count > MOST_LABELS or (count > FEW_LABELS and count > CROWDED * self.present):
            raise ValueError(
                f"{self.where} holds {many} different labels ({shown}) in {self.present:,} rows, "
                "too many for a category: leave it out if they name the rows, make them fewer, "
                "or, if they are dates, say so with their format."
            )


def code(raw: Raw, column: Column, what: str = "X", unseen: Unseen = "error") -> NDArray[Any]:
    """The values of a column as numbers (n,), NaN where missing.

    Arguments:
        raw: The values as they came.
        column: What the column is.
        what: The table's name in messages.
        unseen: What a label that the column does not have is: an error, a code of its own (-1),
            or missing.

    Raises:
        ValueError: naming the column and the row.
    """
    where = f"Column {column.name!r} of {what}"
    if column.kind == "category":
        return _codes(raw, column, where, unseen)
    if column.kind in ("date", "duration"):
        return _times(raw, column, where)
    if raw.text is not None:
        raw = read_as(raw.text, "number", where)
    if raw.numbers is None:
        raise not_numbers(
            where, {"label": "text", "duration": "time spans"}.get(raw.form, "dates")
        )
    if column.kind == "periodic":
        assert column.period is not None
        turned = np.mod(raw.numbers - column.start, column.period)
        return column.start + np.where(turned < column.period, turned, 0.0)

    return raw.numbers


def _times(raw: Raw, column: Column, where: str) -> NDArray[np.float64]:
    if raw.text is not None:
        raw = read_as(raw.text, column.kind, where, form=column.format)
    if raw.times is None and raw.missing.all():
        return np.full(len(raw), np.nan)
    spans = raw.form == "duration"
    if column.kind == "duration" and raw.numbers is not None:
        return raw.numbers
    if raw.times is None or spans != (column.kind == "duration"):
        raise NotNumbers(f"{where} holds {raw.form} values, but {column.kind}s were fitted.")
    if (raw.zone is None) != (column.zone is None) and not raw.missing.all():
        got, had = ("no", "one") if raw.zone is None else ("a", "none")
        raise NotNumbers(
            f"{where} holds dates with {got} time zone, but {had} was fitted; make them alike."
        )
    return since(raw, column)


def _codes(raw: Raw, column: Column, where: str, unseen: Unseen) -> NDArray[np.float64]:
    labels = column.categories
    if raw.text is not None and all(isinstance(label, str) for label in labels):
        found = raw.text.replace_strict(
            list(labels), list(map(float, range(len(labels)))), default=UNSEEN
        )
        codes = np.array(found.to_numpy(), dtype=np.float64)
    elif raw.numbers is not None or raw.missing.all():
        codes = _of_numbers(raw, labels)
    else:
        codes = _of_labels(raw, labels)
    codes[raw.missing] = np.nan
    new = codes == UNSEEN
    if unseen == "missing":
        codes[new] = np.nan
    elif unseen == "error" and new.any():
        row = int(np.argmax(new))
        raise ValueError(
            f"{where} holds {shorten(_value(raw, row))} in row {row + 1:,}, which is none of its "
            f"categories ({some_labels(labels)}); score such rows with unseen='impossible' or "
            "'missing'."
        )
    return codes


def _of_numbers(raw: Raw, labels: Sequence[Any]) -> NDArray[np.float64]:
    """Codes of numbers and flags, by value; labels that are text count as the numbers they are."""
    values = raw.numbers if raw.numbers is not None else np.full(len(raw), np.nan)
    known = np.array([_value_of(label) for label in labels])
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], values).clip(max=len(labels) - 1)
    fits = known[order][place] == values

    return np.where(fits, order[place].astype(np.float64), UNSEEN)


def _of_labels(raw: Raw, labels: Sequence[Any]) -> NDArray[np.float64]:
    """Codes of text and of mixed labels; text counts as a flag or number where labels are such."""
    exact = {label_key(label): float(i) for i, label in enumerate(labels)}
    loose = {_value_of(label): float(i) for i, label in enumerate(labels)}
    items = raw.text.to_list() if raw.text is not None else raw.labels or []
    seen: dict[tuple[type, object], float] = {}
    for item in items:
        key = label_key(item)
        if key not in seen:
            seen[key] = exact.get(key, loose.get(_value_of(item), UNSEEN))

    return np.array([seen[label_key(item)] for item in items])


def _value_of(label: Any) -> float:
    """A label as a number, NaN if it is none."""
    if isinstance(label, str):
        flag = as_bool(label)
        return as_number(label) if flag is None else float(flag)
    return np.nan if label is None else float(label)


def _value(raw: Raw, row: int) -> Any:
    if raw.numbers is not None:
        value = float(raw.numbers[row])
        return bool(value) if raw.form == "bool" else _number(value)
    if raw.text is not None:
        return raw.text[row]
    return (raw.labels or [])[row]


def _number(value: Any) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _as_numbers(labels: list[Any]) -> list[Any]:
    """Texts as the numbers they are, where no digit is lost by it (as in 01234)."""
    numbers = [_number(as_number(label)) for label in labels]
    same = all(str(number) == label.strip() for number, label in zip(numbers, labels, strict=True))

    return numbers if same else labels
