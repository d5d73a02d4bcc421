"""`quarflow paper NAME`: the figures and tables of the paper, one recipe each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from quarflow.cli.common import INTERRUPTED, CommandError, guarded

__all__ = ["paper", "recipe"]

paper = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make a figure or table of the paper: trains, draws, and writes its numbers. A run that "
    "was cut off goes on when the same command is given again.",
)

Steps = Annotated[int | None, typer.Option(help="Updates per model.", min=1)]
Seed = Annotated[int, typer.Option(help="The first seed.", min=0)]
Seeds = Annotated[int, typer.Option(help="How many seeds.", min=1)]
Full = Annotated[bool, typer.Option("--full", help="The paper's setting: 20,000 updates.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder; by default paper-NAME.")
]


def recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Register a recipe as a sub-command of its name."""

    @wraps(command)
    def interruptible(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("Interrupted; the same command goes on from here.", err=True)
            raise typer.Exit(INTERRUPTED) from None

    paper.command()(guarded(interruptible))

    return command


def updates(steps: int | None, full: bool, default: int) -> int:
    """The number of updates asked for by --steps and --full."""
    if steps is not None and full:
        raise CommandError("--full is --steps 20000; give one of them.")

    return steps or (20_000 if full else default)
