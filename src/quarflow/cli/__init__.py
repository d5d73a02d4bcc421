"""The command line: `quarflow fit | score | sample | info | report | demo`.

Only typer is imported here; each command imports what it needs when it runs, so that help and
refusals come at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from quarflow import __version__
from quarflow.cli.bench import bench
from quarflow.cli.common import guarded
from quarflow.cli.demo import demo
from quarflow.cli.fit import fit
from quarflow.cli.paper import paper, recipe
from quarflow.cli.paper_images import table1, table2
from quarflow.cli.query import query
from quarflow.cli.show import info, report
from quarflow.cli.use import sample, score

__all__ = ["app", "main"]

app = typer.Typer(
    name="quarflow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quarflow {__version__}")
        raise typer.Exit


@app.callback()
def _quarflow(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Exact-likelihood density estimation with QuAR flows.

    From a table to a density: fit it, score rows, draw samples, see how well it fits.

    \b
    Example:
      quarflow fit data.csv -o model
      quarflow score model new.csv -o scores.csv
      quarflow report model new.csv -o report.html
    """


for command in (fit, score, sample, query, info, report, demo, bench):
    app.command()(guarded(command))
recipe(table1)
recipe(table2)
app.add_typer(paper, name="paper")


def main() -> None:
    """Run the command line; the entry point of the package."""
    app()
