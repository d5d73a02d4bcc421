"""`quarflow score` and `quarflow sample`: what a model is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from quarflow.cli.common import CommandError, check_output, open_model, options_of


def score(
    model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")],
    data: Annotated[Path, typer.Argument(help="The table: .csv, .parquet, .npy or .npz.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File: .csv or .parquet.")],
    keep: Annotated[
        bool, typer.Option("--keep", help="Copy all columns of the table, used or not.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave rows with missing values without score.")
    ] = False,
    p_value: Annotated[
        bool, typer.Option("--p-value", help="Add the rank of each among held-out rows.")
    ] = False,
) -> None:
    """Write the log-density of every row as a column log_prob: log p, more is likelier.

    With --p-value also a column p_value: the part of the rows held out while fitting that score
    as low or lower. Of ordinary rows at most 1 in 100 have a p-value of 0.01 or less.

    Of discrete columns it holds the log-probability; `quarflow info` says which they are.

    For an image model: of every image, with its bits per dimension.

    Rows keep their order, and the table may be larger than memory. Columns are found by name.

    \b
    Example:
      quarflow score model new.csv -o scores.csv
      quarflow score model new.parquet -o scores.parquet --keep --p-value
    """
    from quarflow.data.table_writer import WRITTEN

    check_output(output, WRITTEN, [data])
    density = open_model(model)
    options = options_of(
        density, "score_file", keep=keep, allow_missing=allow_missing, p_value=p_value
    )
    scores = density.score_file(data, **options)
    scores.write(output)
    for line in scores.told:
        typer.echo(line)
    typer.echo(f"Written to {output}.")


def sample(
    model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File: .csv, .parquet, .npy; images: .png, .npy."),
    ],
    number: Annotated[
        int | None,
        typer.Option("-n", "--number", help="How many: 1000 rows, or 64 images.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0, max=2**32 - 1)] = 0,
    context_row: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...", help="The context to sample at (or as JSON)."),
    ] = None,
) -> None:
    """Draw rows, or images, from a model.

    \b
    Example:
      quarflow sample model -n 1000 -o samples.csv
      quarflow sample model -n 1000 -o samples.parquet --context-row angle=0.5,charge=-1
    """
    density = open_model(model)
    check_output(output, density.draws_to)
    options: dict[str, Any] = {} if number is None else {"n_samples": number}
    context = _context(density.context_names, context_row)
    if context is not None:
        options["context"] = context
    typer.echo(density.draw(seed=seed, **options).write(output))


def _context(names: list[str], text: str | None) -> Any:
    """One row of context (C,) from `name=value,...` or a JSON object."""
    import numpy as np

    if not names:
        if text is not None:
            raise CommandError("This model has no context columns; leave --context-row out.")
        return None
    example = ",".join(f"{name}=0" for name in names[:4])
    if text is None:
        raise CommandError(f"This model needs a context: give it by --context-row {example}")
    given = _assignments(text, example)
    for name in given:
        if name not in names:
            raise CommandError(
                f"--context-row: {name!r} is not a context column. {_listed(names)}"
            )
    for name in names:
        if name not in given:
            raise CommandError(f"--context-row lacks {name!r}. {_listed(names)}")
    try:
        row = np.array([float(given[name]) for name in names])
    except (TypeError, ValueError):
        raise CommandError(f"--context-row takes numbers, such as {example}.") from None
    if not np.isfinite(row).all():
        raise CommandError(f"--context-row takes finite numbers, such as {example}.")
    return row


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"The context columns are {shown}{', ...' if len(names) > 12 else ''}."


def _assignments(text: str, example: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise CommandError("--context-row is not valid JSON.") from None
        return dict(found)
    pairs = [part.rpartition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise CommandError(f"--context-row takes name=value,..., such as {example}.")
    return {name.strip(): value for name, _, value in pairs}
