"""From figures to tables: ratios with their spread, distance from the limit, growth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from quarflow.experiments.speed.contestants import TRANSFORMS
from quarflow.experiments.speed.limit import quar_operations
from quarflow.experiments.speed.plan import REFERENCE

__all__ = ["Table", "all_tables", "exponent", "points"]

TITLES = {
    "train": "Training step",
    "log_prob": "log_prob",
    "sample": "Samples, at a tolerance of 1e-5",
    "sample (default)": "Samples, at each model's default accuracy",
    "memory": "Peak memory of a training step, beyond weights and Adam's state",
    "load": "Making a model and reading its weights",
}
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A titled table of text.

    Attributes:
        title, note: Above and below it.
        head: One entry per column.
        rows: Of as many cells.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def all_tables(results: Results, wide: bool = True) -> list[Table]:
    """Every table that these results have figures for.

    Arguments:
        results: Of :func:`quarflow.experiments.speed.run.compare`.
        wide: Models side by side, for a page; otherwise one below the other, for a terminal.
    """
    tables = [_sizes(results)]
    tables += [(_ratios if wide else _long)(results, quantity) for quantity in TITLES]
    tables += [_limits(results), _growth(results), _starts(results)]

    return [table for table in tables if table.rows]


def exponent(points: Mapping[float, float]) -> float | None:
    """The exponent a of y = b x^a that fits best in logarithms; None below two points.

    Example:
        >>> round(exponent({1.0: 2.0, 10.0: 200.0, 100.0: 20000.0}), 3)
        2.0
    """
    if len(points) < 2:
        return None
    xs, ys = [math.log(x) for x in points], [math.log(y) for y in points.values()]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((a - x) ** 2 for a in xs)

    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / across


def points(
    results: Results, model: str, quantity: str, against: str, at: int
) -> dict[float, float]:
    """Median seconds by features (at a batch) or by batch (at a number of features).

    Arguments:
        results: Of the whole run.
        model: Whose.
        quantity: What was measured.
        against: ``"features"`` or ``"batch"``.
        at: The value of the other.
    """
    other = "batch" if against == "features" else "features"

    return {
        float(case[against]): median(case["values"])
        for case in results["cases"]
        if case["model"] == model
        and case["quantity"] == quantity
        and case["values"]
        and case[other] == at
    }


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(entry["model"] for entry in results["models"]))


def _sizes(results: Results) -> Table:
    rows = []
    for features in dict.fromkeys(entry["features"] for entry in results["models"]):
        for entry in results["models"]:
            if entry["features"] == features:
                fit = entry["fit"]
                rows.append(
                    [
                        str(features),
                        entry["model"],
                        str(entry["width"]),
                        f"{entry['weights']:,}",
                        str(fit["steps"]),
                        f"{fit['nats']:.2f}",
                    ]
                )
    head = ["D", "model", "width", "weights", "steps of fitting", "nats then"]

    return Table("What is compared", head, rows)


def _find(results: Results, quantity: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Cases by (features, batch), then by model."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for case in results["cases"]:
        if case["quantity"] == quantity:
            here = found.setdefault((case["features"], case["batch"]), {})
            # figures stand, whatever was left out later
            if case["values"] or case["model"] not in here:
                here[case["model"]] = case

    return found


def _ratios(results: Results, quantity: str) -> Table:
    found = _find(results, quantity)
    seen = {model for cases in found.values() for model in cases}
    models = [model for model in _models(results) if model in seen and model != REFERENCE]
    unit = "memory" if quantity == "memory" else "time"
    rows = []
    for (features, batch), cases in sorted(found.items()):
        base = cases.get(REFERENCE)
        values = base["values"] if base else []
        told = _bytes(values) if unit == "memory" else _seconds(values)
        size = [str(features), *([f"{batch:,}"] if batch else [])]
        rows.append([*size, told, *(_ratio(cases.get(model), values) for model in models)])
    sized = any(batch for _, batch in found)
    head = ["D", *(["batch"] if sized else []), REFERENCE, *models]
    note = (
        f"{REFERENCE}: median and range. The others: how many times the {unit} of {REFERENCE}, "
        "median and range over rounds measured in turn; above 1 they "
        f"{'take more' if unit == 'memory' else 'are slower'}. {_marks(quantity)}"
    )

    return Table(TITLES[quantity], head, rows, note)


def _long(results: Results, quantity: str) -> Table:
    """The same, a line for each model."""
    rows = []
    for (features, batch), cases in sorted(_find(results, quantity).items()):
        base = cases.get(REFERENCE, {"values": []})["values"]
        for model in _models(results):
            case = cases.get(model)
            if case is None:
                continue
            values = case["values"]
            told = _bytes(values) if quantity == "memory" else _seconds(values)
            ratio = "1" if model == REFERENCE and values else _ratio(case, base)
            rows.append([model, str(features), f"{batch:,}" if batch else "-", told, ratio])
    head = ["model", "D", "batch", "median (range)", f"times {REFERENCE}"]

    return Table(TITLES[quantity], head, rows, _marks(quantity))


def _marks(quantity: str) -> str:
    if quantity == "memory":
        return "- : stopped after the limit."

    return "> : stopped after the limit. * : fewer than 5 rounds fitted into it."


def _ratio(case: Mapping[str, Any] | None, base: Sequence[float]) -> str:
    if case is None or not base:
        return "-"
    if not case["values"] and case["quantity"] == "memory":
        return "-"  # the limit is one of seconds and tells nothing of bytes
    if not case["values"]:
        return f"> {_short(case['over'] / median(base))}" if "over" in case else "-"
    mine = case["values"]
    if len(mine) == len(base):  # measured in turn: ratios round by round
        ratios = [a / b for a, b in zip(mine, base, strict=True) if b]
    else:
        ratios = [a / median(base) for a in mine if median(base)]
    if not ratios:
        return "-"
    few = "*" if case["quantity"] != "memory" and len(mine) < 5 else ""

    return f"{_short(median(ratios))}{few} ({_short(min(ratios))}-{_short(max(ratios))})"


def _short(x: float) -> str:
    return f"{x:.2f}" if x < 9.95 else f"{x:.1f}" if x < 99.5 else f"{x:,.0f}"


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = median(values)
    scale, unit = (1e6, "us") if middle < 1e-3 else (1e3, "ms") if middle < 1 else (1.0, "s")
    low, high = min(values) * scale, max(values) * scale

    return f"{_short(middle * scale)} {unit} ({_short(low)}-{_short(high)})"


def _bytes(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = median(values) / 2**20

    return f"{middle:.1f} MiB" if middle < 1024 else f"{middle / 1024:.2f} GiB"


def _limits(results: Results) -> Table:
    """Achieved / limit of the QuAR rows."""
    rows = []
    sizes = {(e["model"], e["features"]): e["width"] for e in results["models"]}
    for case in results["cases"]:
        if "rates" not in case or not case["values"]:
            continue
        features, batch = case["features"], case["batch"]
        k = -(-sizes[case["model"], features] // features)
        training = case["quantity"] == "train"
        operations = batch * quar_operations(features, (k, k), TRANSFORMS, training)
        rate, seconds = median(case["rates"]), median(case["values"])
        rows.append(
            [
                case["model"],
                case["quantity"],
                str(features),
                f"{batch:,}",
                f"{operations / 1e9:.3g}",
                f"{rate / 1e9:.0f}",
                f"{operations / seconds / rate:.3f}",
            ]
        )
    note = (
        "Operations that the masked network must do (value pass over the allowed blocks, "
        "diagonal pass over the D blocks; three times that in training), over the rate of a "
        "large float32 matrix product measured between the rounds of the same case."
    )
    head = ["model", "", "D", "batch", "GFlop", "matrix GFlop/s", "achieved / limit"]

    return Table("How near the machine's limit", head, rows, note)


def _growth(results: Results) -> Table:
    rows = []
    batches = results["settings"]["batches"]
    for model in _models(results):
        for quantity in ("train", "log_prob", "sample"):
            cells = []
            for batch in batches:
                cells.append(_told(exponent(points(results, model, quantity, "features", batch))))
            for features in results["settings"]["features"]:
                cells.append(_told(exponent(points(results, model, quantity, "batch", features))))
            if any(cell != "-" for cell in cells):
                rows.append([model, quantity, *cells])
    head = [
        "model",
        "",
        *(f"in D, batch {b:,}" for b in batches),
        *(f"in batch, D = {d}" for d in results["settings"]["features"]),
    ]
    keep = [i for i in range(len(head)) if i < 2 or any(row[i] != "-" for row in rows)]
    note = "The exponent a of cost ~ D^a or batch^a, least squares in logarithms."

    return Table(
        "How cost grows", [head[i] for i in keep], [[row[i] for i in keep] for row in rows], note
    )


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _starts(results: Results) -> Table:
    starts = {name: values for name, values in results["starts"].items() if values}
    torch = starts.get("import torch")
    rows = []
    for name, values in starts.items():
        ratio = median(values) / median(torch) if torch else math.nan
        rows.append([name, _seconds(values), _short(ratio)])

    return Table("Until a fresh process is ready", ["", "time", "of import torch"], rows)
