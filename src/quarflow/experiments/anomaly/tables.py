"""Tables of the comparison, in the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quarflow.experiments.anomaly.detectors import OURS, PEERS
from quarflow.experiments.anomaly.sets import SETTINGS
from quarflow.experiments.page import markdown_rows, print_table

__all__ = ["show", "text_of"]

MEASURES = {"auc": "area under ROC", "ap": "average precision"}
NAMES = (*OURS, *PEERS)


def rows_of(results: Mapping[str, Any], setting: str, measure: str) -> list[list[str]]:
    """A row for each set, means over seeds, and their mean; the best of each in bold stars."""
    by_set: dict[str, list[list[float]]] = {}
    for key, found in results["found"].items():
        where, name, _ = key.split(" / ")
        if where == setting:
            by_set.setdefault(name, []).append([found[n][measure] for n in NAMES])
    means = {name: np.mean(values, axis=0) for name, values in by_set.items()}
    rows = [[name, *_starred(values)] for name, values in means.items()]
    if means:
        rows.append(["**mean**", *_starred(np.mean(list(means.values()), axis=0))])

    return rows


def _starred(values: Any) -> list[str]:
    texts = [f"{value:.3f}" for value in values]

    return [f"**{text}**" if text == max(texts) else text for text in texts]


def show(results: Mapping[str, Any]) -> None:
    """Print a table for each setting and measure."""
    from rich.console import Console

    console = Console()
    for setting in SETTINGS:
        for measure, title in MEASURES.items():
            rows = rows_of(results, setting, measure)
            plain = [[cell.strip("*") for cell in row] for row in rows]
            print_table(console, f"Fitted to {setting}: {title}", ["", *NAMES], plain)


def text_of(results: Mapping[str, Any], block: str) -> str:
    """The table of a block such as ``all-rows-auc`` of the page, with its line end.

    Raises:
        ValueError: if there is no such block.
    """
    for setting in SETTINGS:
        for measure in MEASURES:
            if block == f"{setting.replace(' ', '-')}-{measure}":
                return markdown_rows(["", *NAMES], rows_of(results, setting, measure)) + "\n"
    raise ValueError(f"There is no table {block!r}.")
