"""The report: one self-contained HTML file that shows how well a model fits."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    # Pictures need matplotlib: imported when a report is asked for.
    if name == "write_report":
        return import_module("quarflow.report.page").write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
