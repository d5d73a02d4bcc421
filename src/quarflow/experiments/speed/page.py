"""The figures as they are shown: in the terminal, and on a page of documentation."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from quarflow.experiments.page import fill, markdown_rows, print_table
from quarflow.experiments.speed.tables import Results, all_tables

__all__ = ["refresh", "show"]


def show(results: Results, console: Console | None = None) -> None:
    """Print every table, what was left out, and the machine."""
    console = console or Console()
    for table in all_tables(results, wide=False):
        print_table(console, table.title, table.head, table.rows, table.note)
    for line in [*(f"Left out: {told}." for told in results["left_out"]), _machine(results)]:
        console.print(line, markup=False, highlight=False)


def refresh(path: Path, results: Results) -> None:
    """Put the tables between the marks of a page; see :func:`quarflow.experiments.page.fill`."""
    parts = [_machine(results)]
    for table in all_tables(results):
        rows = markdown_rows(table.head, table.rows, left=len(table.head))
        parts += [f"### {table.title}", rows, *([table.note] if table.note else [])]
    if results["left_out"]:
        parts += ["### Left out", "\n".join(f"* {told}" for told in results["left_out"])]
    fill(path, lambda _: "\n\n".join(parts) + "\n")


def _machine(results: Results) -> str:
    """What was run, on what."""
    here, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    device = "" if here["device"] == "cpu" else f" and {here['device']}"
    threads = settings["threads"]
    load = "" if here.get("load") is None else f"load {here['load']:g} before it began, "
    kernels = f"kernels {here['kernels']}, " if "kernels" in here else ""

    return (
        f"{here['processor']}{device}, {here['cores']} cores, {here['memory_gib']:g} GiB, "
        f"{here['system']}, Python {here['python']}; {versions}; "
        f"{threads} thread{'s' if threads > 1 else ''} in each process, {kernels}medians of "
        f"{settings['rounds']} rounds, {load}{results['seconds'] / 60:.0f} minutes in all. "
        f"Command: `{results['command']}`."
    )
