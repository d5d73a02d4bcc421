"""The tables in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from quarflow.experiments.speed.page import machine_sentence
from quarflow.experiments.speed.tables import Results, all_tables

__all__ = ["show"]


def show(results: Results, console: Console | None = None) -> None:
    """Print every table, the machine, and what was left out."""
    console = console or Console()
    for table in all_tables(results, wide=False):
        rich = RichTable(title=table.title, title_justify="left", caption_justify="left")
        for i, name in enumerate(table.head):
            rich.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
        if table.note:
            console.print(table.note, style="dim", markup=False, highlight=False)
    for told in results["left_out"]:
        console.print(f"Left out: {told}.", markup=False, highlight=False)
    console.print(machine_sentence(results), markup=False, highlight=False)
