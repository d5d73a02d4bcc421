"""`quarflow info` and `quarflow report`: what a model is, and how well it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quarflow.cli.common import CommandError, check_output, open_model, options_of


def info(model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")]) -> None:
    """Show what a model is: its columns, settings, figures and certificate.

    \b
    Example:
      quarflow info model
    """
    density = open_model(model)
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for number, section in enumerate(density.info()):
        headings = section.headings
        table = Table(
            title=section.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=bool(headings),
        )
        for heading in headings:
            table.add_column(heading, justify="right")
        if not headings:
            table.add_column(style="bold", no_wrap=True)
            table.add_column(overflow="fold")
        if number == 0:
            table.add_row("model", Text(str(model)))
        for name, *rest in section.rows:
            table.add_row(name, *map(Text, rest))
        console.print(table)


def report(
    model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Rows to compare with; best, rows it was not fitted to."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="File: .html.")] = Path(
        "report.html"
    ),
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out rows with missing values.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Write a page that shows how well a model fits: one HTML file with pictures.

    \b
    Example:
      quarflow report model test.csv -o report.html
    """
    inputs = [] if data is None or data.is_dir() else [data]
    check_output(output, (".html", ".htm"), inputs)
    density = open_model(model)
    options = options_of(density, "report", drop_missing=drop_missing)
    if drop_missing and data is None:
        raise CommandError("--drop-missing needs a table of rows.")
    name = title or f"Density of {density.of}: {model.resolve().name}"
    density.report(output, data, title=name, seed=seed, say=typer.echo, **options)
    typer.echo(f"Written to {output}.")
