"""Tables on a page, between marks and never typed by hand, and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quarflow.files import write_whole

__all__ = ["fill", "markdown_rows", "print_table"]

Rows = Sequence[Sequence[object]]
BLOCK = re.compile(r"(<!-- results ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: Path, text_of: Callable[[str], str]) -> list[str]:
    """Replace what stands between ``<!-- results NAME -->`` and ``<!-- end -->`` in a page.

    Arguments:
        page: The Markdown file; it is replaced as a whole.
        text_of: From the name of a block to what belongs there, with its line end.

    Returns:
        The names of all blocks.

    Raises:
        ValueError: if the page has no block.
    """
    names: list[str] = []

    def filled(block: re.Match[str]) -> str:
        names.append(block[2])
        return block[1] + text_of(block[2]) + block[3]

    text = BLOCK.sub(filled, page.read_text(encoding="utf-8"))
    if not names:
        raise ValueError(f"{page} has no block <!-- results NAME --> ... <!-- end -->.")
    write_whole(page, text)

    return names


def markdown_rows(columns: Sequence[str], rows: Rows, left: int = 1) -> str:
    """A Markdown table; the first columns hold names and stand to the left, then come numbers.

    Arguments:
        columns: Titles.
        rows: Cells, row by row.
        left: How many columns hold names.

    Example:
        >>> print(markdown_rows(["", "KL"], [["QuAR", 0.01]]))
        |  | KL |
        | --- | ---: |
        | QuAR | 0.01 |
    """
    ruler = ["---" if i < left else "---:" for i in range(len(columns))]

    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (columns, ruler, *rows))


def print_table(
    console: Any, title: str, columns: Sequence[str], rows: Rows, note: str = ""
) -> None:
    """Print a table, names in the first column, then numbers, and a note below it.

    Arguments:
        console: A ``rich.console.Console``.
        title: Above the table.
        columns: Titles.
        rows: Cells, row by row.
        note: Below the table; empty for none.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    if note:
        console.print(note, style="dim", markup=False, highlight=False)
