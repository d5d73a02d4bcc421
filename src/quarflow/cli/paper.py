"""`quarflow paper NAME`: the figures and tables of the paper, one recipe each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from quarflow.cli.common import CommandError, guarded, names_of, stopped_by_signals

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
    def stoppable(*args: object, **kwargs: object) -> None:
        with stopped_by_signals("Interrupted; the same command goes on from here."):
            command(*args, **kwargs)

    paper.command()(guarded(stoppable))

    return command


def folder(output: Path | None, name: str) -> Path:
    """Where a recipe writes."""
    return Path(f"paper-{name}") if output is None else output


def updates(steps: int | None, full: bool, default: int) -> int:
    """The number of updates asked for by --steps and --full."""
    if steps is not None and full:
        raise CommandError("--full is --steps 20000; give one of them.")

    from quarflow.experiments.paper.run import FULL_STEPS

    return steps or (FULL_STEPS if full else default)


@recipe
def figure2(
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = 5,
    full: Full = False,
    output: Output = None,
) -> None:
    """Two uniform densities in 1-D, with and without the Lipschitz Trick: curves and KL.

    \b
    Example:
      quarflow paper figure2 --seeds 5
    """
    from quarflow.experiments.paper.figure2 import figure2

    figure2(folder(output, "figure2"), updates(steps, full, 1000), seed, seeds)


@recipe
def figure3(
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    full: Full = False,
    output: Output = None,
    models: Annotated[
        str, typer.Option(help="Which flows, with commas: autoregressive, residual, quar, ...")
    ] = "autoregressive,residual,quar,quar-elu,quar-paper",
) -> None:
    """Eight Gaussians: contours of log p, KL, error where data are sparse, and times.

    \b
    Example:
      quarflow paper figure3 --steps 2000 --seeds 5
    """
    from quarflow.experiments.paper.figure3 import figure3

    names = names_of(models, "--models") or []
    figure3(folder(output, "figure3"), updates(steps, full, 1000), seed, seeds, names)


Source = Annotated[
    Path | None,
    typer.Option("--from", help="Folder of a figure3, to take its flow instead of training one."),
]


def modes_command(name: str, kind: str) -> Callable[..., None]:
    """The command of figure 4, 5 or 6."""

    def command(
        steps: Steps = None,
        seed: Seed = 0,
        full: Full = False,
        output: Output = None,
        source: Source = None,
    ) -> None:
        from quarflow.experiments.paper.modes import modes

        asked = steps is not None or full  # otherwise the source's flow, whatever its updates
        count = updates(steps, full, 1000) if source is None or asked else None
        modes(name, folder(output, name), count, seed, source)

    command.__name__ = name
    command.__doc__ = f"""Where the eight modes go, flow by flow, in {kind} flow.

    \b
    Example:
      quarflow paper {name} --from paper-figure3
    """

    return command


MODES = {"figure4": "an autoregressive", "figure5": "a QuAR", "figure6": "a residual"}
for name, kind in MODES.items():
    recipe(modes_command(name, kind))


@recipe
def ablation(
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = 3,
    full: Annotated[
        bool, typer.Option("--full", help="All 48 combinations, 2,000 updates each.")
    ] = False,
    output: Output = None,
    data: Annotated[
        str, typer.Option(help="Toys, magic, and files of tables, with commas between them.")
    ] = "eight_gaussians,checkerboard,two_spirals,pinwheel,magic",
) -> None:
    """What each choice of a QuAR flow is worth: norm, order, activation, trick, mix.

    \b
    Example:
      quarflow paper ablation --data two_spirals,magic,more.csv
    """
    from quarflow.experiments.paper.ablation import ablation

    names = names_of(data, "--data") or []
    count = steps or (2000 if full else 400)
    ablation(folder(output, "ablation"), count, seed, seeds, names, factorial=full)
