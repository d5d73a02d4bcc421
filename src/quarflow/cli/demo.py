"""`quarflow demo`: the whole way on a real table that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.", min=0)] = 0,
) -> None:
    """Fit the built-in MAGIC gamma telescope data and show what comes out; takes 2 to 3 minutes.

    \b
    Example:
      quarflow demo -o demo
    """
    from quarflow.experiments.demo import run_demo

    run_demo(output, seed=seed, say=typer.echo)
