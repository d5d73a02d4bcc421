"""`quarflow score` and `quarflow sample`: what a model is for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

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
from quarflow.cli.image_use import SHOWN, sample_images, score_images
from quarflow.cli.layout import nats, save_array

SCORE = "log_prob"
CHUNK = 65_536


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
) -> None:
    """Write the log-density of every row as a column log_prob: log p, more is likelier.

    Of discrete columns it holds the log-probability; `quarflow info` says which they are.

    For an image model: of every image, with its bits per dimension.

    Rows keep their order, and the table may be larger than memory. Columns are found by name.

    \b
    Example:
      quarflow score model new.csv -o scores.csv
      quarflow score model new.parquet -o scores.parquet --keep
    """
    if holds_images(model):
        if keep or allow_missing:
            raise CommandError("--keep and --allow-missing are for tables, not for image models.")
        return score_images(model, data, output)
    import numpy as np

    from quarflow.data import TableWriter, column_names, iter_table
    from quarflow.data.pipeline import Ahead, Behind

    check_output(output, (".csv", ".parquet", ".pq"), [data])
    estimator = load(model)
    names = needed(estimator)
    order = column_names(data) if keep else []
    if keep and SCORE in {*names, *order}:
        raise CommandError(
            f"--keep cannot copy the column {SCORE!r}: it has the scores' name. Rename it, or "
            "leave --keep out."
        )
    missing = "nan" if allow_missing else "error"
    rows = scored = impossible = 0
    total, start = 0.0, time.perf_counter()
    tables = iter_table(data, names, chunk_rows=CHUNK, missing=missing, keep=keep)
    # Reading and writing run beside the scoring; a failure anywhere leaves no file.
    with TableWriter(output) as writer, Behind(writer.write) as out, Ahead(tables) as ahead:
        for table in ahead:
            values = table.values
            whole = np.isfinite(values).all(1)
            log_prob = np.full(len(values), np.nan)
            if whole.any():
                X, context = split(estimator, values[whole])
                log_prob[whole] = estimator.score_samples(X, context=context)
            out.put({**(_kept(table, order) if keep else {}), SCORE: log_prob})
            finite = np.isfinite(log_prob)
            rows += len(values)
            scored += int(finite.sum())
            impossible += int(np.isneginf(log_prob).sum())
            total += float(log_prob[finite].sum())
    seconds = time.perf_counter() - start
    rate = rows / max(seconds, 1e-9)
    typer.echo(f"{rows:,} rows, {duration(seconds)} ({rate:,.0f} rows/s).")
    if scored:
        typer.echo(f"Mean: {nats(-total / scored)}.")
    if impossible:
        typer.echo(
            f"{impossible:,} rows lie outside the bounds of a column, or hold a value that it "
            "cannot take: log_prob is -inf."
        )
    if rows > scored + impossible:
        typer.echo(f"{rows - scored - impossible:,} rows with missing values have no log_prob.")
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
    if holds_images(model):
        if context_row is not None:
            raise CommandError("This model has no context columns; leave --context-row out.")
        return sample_images(model, output, number or SHOWN, seed)
    import numpy as np

    from quarflow.data import TableWriter

    number = number or 1000
    check_output(output, (".csv", ".parquet", ".pq", ".npy"))
    estimator = load(model)
    context = _context(estimator, context_row)
    names = list(estimator.columns_.names)
    start = time.perf_counter()
    parts = -(-number // CHUNK)
    # The first part is what estimator.sample(n, random_state=seed) gives.
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(parts - 1).tolist()]
    counts = [min(CHUNK, number - part * CHUNK) for part in range(parts)]
    drawn = (
        estimator.sample(count, random_state=int(state), context=context)
        for count, state in zip(counts, seeds, strict=True)
    )
    if output.suffix.lower() == ".npy":
        save_array(output, np.concatenate(list(drawn)))
    else:
        with TableWriter(output) as writer:
            for rows in drawn:
                writer.write({name: rows[:, i] for i, name in enumerate(names)})
    seconds = time.perf_counter() - start
    typer.echo(f"{number:,} samples in {duration(seconds)}, written to {output}.")


def _kept(table: Any, order: list[str]) -> dict[str, Any]:
    """All columns of a table in the order of the file; used ones as numbers."""
    used = {name: table.values[:, i] for i, name in enumerate(table.names)}
    if table.others is None:
        return {name: used[name] for name in order} if set(order) == set(used) else used
    return {name: used[name] if name in used else table.others[name] for name in order}


def _context(estimator: Any, text: str | None) -> Any:
    """One row of context (C,) from `name=value,...` or a JSON object."""
    import numpy as np

    if estimator.context_columns_ is None:
        if text is not None:
            raise CommandError("This model has no context columns; leave --context-row out.")
        return None
    names = list(estimator.context_columns_.names)
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
