"""`quarflow info` and `quarflow report`: what a model is, and how well it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quarflow.cli.common import (
    CommandError,
    check_output,
    duration,
    holds_images,
    load,
    needed,
    split,
)
from quarflow.cli.image_use import image_info, image_report
from quarflow.cli.layout import certificate_table, nats, two_columns


def info(model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")]) -> None:
    """Show what a model is: its columns, settings, figures and certificate.

    \b
    Example:
      quarflow info model
    """
    if holds_images(model):
        return image_info(model)
    estimator = load(model)
    from rich.console import Console
    from rich.text import Text

    from quarflow.report.names import readable
    from quarflow.report.words import number, plain

    console = Console(highlight=False)
    metrics = estimator.metrics_
    facts = {
        "model": str(model),
        "rows": f"{metrics.get('rows') or 0:,}",
        "columns": f"{len(estimator.columns_.names):,}",
        "parameters": number(sum(p.numel() for p in estimator.flow_.parameters())),
        "validation": nats(metrics.get("valid_nats")),
        "training": (
            f"{metrics.get('steps') or 0:,} steps, {duration(metrics.get('seconds') or 0.0)}"
        ),
        "stopped": str(metrics.get("stopped") or ""),
    }
    console.print(two_columns("Model", {key: Text(value) for key, value in facts.items()}))
    context = estimator.context_columns_
    names = [readable(name) for name in estimator.columns_.names]
    shown = {"modelled": Text(", ".join(names))}
    if context is not None:
        shown["context"] = Text(", ".join(readable(name) for name in context.names))
    sentences = list(estimator.columns_.describe())
    sentences += [] if context is None else [f"Context: {line}" for line in context.describe()]
    shown["preprocessing"] = Text(
        "\n".join(readable(line, 300) for line in ["Every column is standardised.", *sentences])
    )
    console.print(two_columns("Columns", shown))
    settings = {key: Text(plain(value)) for key, value in estimator.settings_.items()}
    console.print(two_columns("Settings", settings))
    console.print(certificate_table(estimator.flow_))


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
    if holds_images(model):
        if drop_missing:
            raise CommandError("--drop-missing is for tables, not for image models.")
        return image_report(model, data, output, title, seed)
    check_output(output, (".html", ".htm"), [] if data is None else [data])
    estimator = load(model)
    rows = context = None
    if data is not None:
        from quarflow.data import read_table

        table = read_table(data, needed(estimator), drop_missing=drop_missing)
        if table.dropped:
            typer.echo(f"{table.dropped:,} rows with missing values were left out.")
        rows, context = split(estimator, table.values)
    elif drop_missing:
        raise CommandError("--drop-missing needs a table of rows.")
    from quarflow.report import write_report

    name = title or f"Density model: {model.resolve().name}"
    write_report(estimator, output, rows, context, title=name, seed=seed)
    typer.echo(f"Written to {output}.")
