"""`quarflow query`: what some columns may be, given others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quarflow.cli.common import CommandError, check_output, names_of, open_model
from quarflow.cli.use import context_at

if TYPE_CHECKING:
    from quarflow.density.conditional import Conditional

LABELS = 12  # labels shown of a category


def query(
    model: Annotated[Path, typer.Argument(help="Folder of a fitted model.")],
    given: Annotated[
        list[str] | None,
        typer.Option("--given", metavar="NAME=VALUE", help="What is known; may be repeated."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Columns asked about (or as JSON); else all others."
        ),
    ] = None,
    quantiles: Annotated[
        str, typer.Option(metavar="Q,...", help="Which quantiles of numbers to show.")
    ] = ".05,.5,.95",
    sample: Annotated[
        int | None, typer.Option(help="Draw so many rows too; needs --output.", min=1)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for the rows: .csv or .parquet.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows.", min=0, max=2**32 - 1)] = 0,
    context_row: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...", help="The context to ask at (or as JSON)."),
    ] = None,
) -> None:
    """Show what some columns of a table may be, given others.

    What is neither given nor asked about is integrated out. Of each number: mean, likeliest value
    and quantiles; of each category: the probabilities of its labels. Each column is shown by
    itself; drawn rows (--sample) are of all of them together.

    \b
    Example:
      quarflow query model --given price=300 --given color=D
      quarflow query model --given price=300 --of carat,cut --quantiles .1,.9
      quarflow query model --given price=300 --sample 100 -o draws.csv
    """
    from quarflow.data.table_writer import WRITTEN

    if (sample is None) != (output is None):
        raise CommandError("--sample and --output go together: how many rows, and where to.")
    if output is not None:
        check_output(output, WRITTEN)
    levels = _levels(quantiles)
    density = open_model(model)
    if not hasattr(density, "given"):
        raise CommandError(f"query is for tables, not for {density.of}.")
    wanted = names_of(of, "--of")
    known = _assignments(given or [], density.columns_.names)
    context = context_at(density.context_names, context_row)
    if known:
        asked = density.given(known, of=wanted, context=context)
    else:
        asked = density.marginal(wanted, context=context)
    _show(asked, levels)
    if sample is not None and output is not None:
        from quarflow.data.table_writer import TableWriter

        rows = asked.sample(sample, random_state=seed)
        with TableWriter(output) as writer:
            writer.write({name: rows[name] for name in rows.columns})
        typer.echo(f"{sample:,} rows written to {output}.")


def _levels(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise CommandError("--quantiles takes numbers between 0 and 1, such as .05,.5,.95.")

    return list(dict.fromkeys(levels))


def _assignments(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Values, still as text, by column; names may have = in them.

    Example:
        >>> _assignments(["price=300", "a=b=1"], ["price", "a=b"])
        {'price': '300', 'a=b': '1'}
    """
    found: dict[str, str] = {}
    for text in texts:
        starts = [name for name in names if text.startswith(f"{name}=")]
        name, equals, value = text.partition("=")
        if starts:
            name = max(starts, key=len)
            value = text[len(name) + 1 :]
        if not equals or not value:
            raise CommandError(f"--given takes NAME=VALUE, such as {names[0]}=1, not {text!r}.")
        if name in found:
            raise CommandError(f"--given names the column {name!r} twice.")
        found[name] = value

    return found


def _show(asked: Conditional, levels: list[float]) -> None:
    """Tables of the numbers and of the categories."""
    from rich.console import Console

    console = Console(highlight=False)
    numbers, categories = asked.sorts()
    if numbers:
        console.print(_numbers(asked, numbers, levels))
    for name in categories:
        console.print(_labels(asked.only(name).prob(), name))


def _numbers(asked: Conditional, names: list[str], levels: list[float]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    means, modes, quantiles = asked.mean(), asked.mode(), asked.quantile(levels)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("mean", "likeliest", *(f"{100 * level:g} %" for level in levels)):
        table.add_column(heading, justify="right")
    for name in names:
        cells = [means[name][0], modes[name][0]]
        cells += [quantiles[f"{name}_{level:g}"][0] for level in levels]
        table.add_row(Text(name), *map(_written, cells))

    return table


def _labels(shares: Any, name: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    pairs = sorted(((shares[label][0], label) for label in shares.columns), reverse=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(Text(name))
    table.add_column("probability", justify="right")
    for share, label in pairs[:LABELS]:
        table.add_row(Text(label), f"{share:.4f}")
    if len(pairs) > LABELS:
        rest = sum(share for share, _ in pairs[LABELS:])
        table.add_row(f"{len(pairs) - LABELS} others", f"{rest:.4f}")

    return table


def _written(value: Any) -> str:
    from quarflow.report.words import number

    return number(value) if isinstance(value, float) else str(value)
