"""What columns depend on, why rows are odd, and how well missing cells are filled in."""

from __future__ import annotations

from typing import Any

import numpy as np

from quarflow.report.model import Model

DARKEST = 1.0  # nats from which on a cell of the table of dependence gets no darker


def questions(
    model: Model, values: np.ndarray, context: np.ndarray | None, seed: int
) -> dict[str, Any] | None:
    """What the section on questions shows; None for a model that answers none.

    Arguments:
        model: What to ask.
        values: Rows (N, D).
        context: Context of the rows, or None.
        seed: Of the choice of rows and of the cells that are hidden.
    """
    if not answers(model):
        return None
    found = model.estimator.findings(values, context, seed)
    names = [model.names[j] for j in found.shown]
    table = [
        {
            "name": name,
            "said": float(found.said[i]),
            "cells": [None if i == k else _cell(value) for k, value in enumerate(found.alone[i])],
        }
        for i, name in enumerate(names)
    ]

    return {
        "names": names,
        "all": len(names) == len(model.names),
        "dependence": table,
        "rows": found.rows,
        "checked": found.checked,
        "filled": _filled(model, found.check),
    }


def reasons(
    model: Model, values: np.ndarray, context: np.ndarray | None, rows: list[int]
) -> list[list[str]] | None:
    """Why some of the rows are odd, in sentences; None for a model that cannot say.

    Arguments:
        model: What to ask.
        values: Rows (N, D).
        context: Context of the rows, or None.
        rows: Which of them.
    """
    if not answers(model):
        return None
    at = None if context is None else context[rows]
    found: list[list[str]] = model.estimator.told_reasons(values[rows], at)

    return found


def answers(model: Model) -> bool:
    """Whether the model can be asked about some columns given others."""
    return bool(getattr(model.estimator, "answers_questions", False))


def _cell(nats: float) -> dict[str, Any]:
    shade = float(np.clip(np.nan_to_num(nats) / DARKEST, 0.0, 1.0)) ** 0.5

    return {"nats": float(nats), "shade": f"{0.75 * shade:.2f}"}


def _filled(model: Model, check: Any) -> dict[str, Any]:
    """A line for each column, and the means over numbers."""
    labels = np.isnan(check.coverage[0.9])
    lines = [
        {
            "name": name,
            "label": bool(labels[j]),
            "cells": int(check.cells[j]),
            "error": float(check.error[j]),
            "simple": float(check.simple[j]),
            "regressions": _or_none(check.regressions[j]),
            "half": _or_none(check.coverage[0.5][j]),
            "most": _or_none(check.coverage[0.9][j]),
        }
        for j, name in enumerate(model.names)
        if check.cells[j]
    ]
    numbers = ~labels & (check.cells > 0)
    if not numbers.any():
        return {"lines": lines, "mean": None}
    weights = check.cells[numbers]
    mean = {
        "error": float(check.error[numbers].mean()),
        "simple": float(check.simple[numbers].mean()),
        "regressions": _or_none(check.regressions[numbers].mean()),
        "half": float(np.average(check.coverage[0.5][numbers], weights=weights)),
        "most": float(np.average(check.coverage[0.9][numbers], weights=weights)),
    }

    return {"lines": lines, "mean": mean}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
