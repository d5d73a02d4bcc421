"""What several commands show or write alike: tables on the terminal, figures in words, arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["certificate_table", "nats", "save_array", "two_columns"]


def nats(value: float | None) -> str:
    """Say a mean of -log p, with the sign and direction that all the commands share.

    Example:
        >>> nats(4.25)
        '4.2500 nats per row (-log p, less is better)'
        >>> nats(None)
        'unknown'
    """
    return "unknown" if value is None else f"{value:.4f} nats per row (-log p, less is better)"


def two_columns(title: str, rows: dict[str, Any]) -> Any:
    """A table of names and what belongs to them."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def certificate_table(flow: Any) -> Any:
    """A table of the certified bounds of a flow."""
    from rich import box
    from rich.table import Table

    table = Table(title="Certificate", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("step", "sigma", "certified bound on abs(d)"):
        table.add_column(heading, justify="right")
    for step in flow.certificate():
        table.add_row(str(step.step + 1), f"{step.sigma:.3f}", f"{step.bound:.4f}")
    return table


def save_array(path: Path, rows: Any) -> None:
    """Write an array as .npy, whole or not at all."""
    import numpy as np

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
