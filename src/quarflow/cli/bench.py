"""`quarflow bench`: how fast this machine trains, scores and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quarflow.cli.common import CommandError, check_output, stopped_by_signals


def bench(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File for all figures: .json.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="D,...", help="Numbers of features.")
    ] = None,
    batches: Annotated[str | None, typer.Option(metavar="N,...", help="Batch sizes.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A part of it, in a minute.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Training steps through torch.compile, too.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads; all cores unless given.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure training steps, log-densities, samples and memory on this machine.

    QuAR against ResidualFlow and against what the masked network must do at the rate of a matrix
    product here. The comparison with other libraries is benchmarks/speed.py of the source.

    \b
    Example:
      quarflow bench --quick
      quarflow bench --features 8,64 --batches 256,16384 -o bench.json
    """
    from quarflow.experiments.speed.contestants import OURS
    from quarflow.experiments.speed.page import show
    from quarflow.experiments.speed.plan import QUICK, Plan, chosen
    from quarflow.experiments.speed.run import compare

    if output is not None:
        check_output(output, (".json",))
    if device not in ("cpu", "cuda"):
        raise CommandError(f"--device is cpu or cuda, not {device!r}.")
    settings: dict[str, Any] = dict(QUICK) if quick else {}
    settings["device"] = device
    if features is not None:
        settings["features"] = _numbers(features, "--features")
    if batches is not None:
        settings["batches"] = _numbers(batches, "--batches")
    if threads is not None:
        settings["threads"] = threads
    contestants = chosen(OURS, compiled=compiled, scaling=not quick)
    told = "Interrupted" + (f"; {output} has the figures so far." if output else ".")
    with stopped_by_signals(told):
        results = compare(
            contestants,
            Plan(**settings),
            output=output,
            say=lambda told: typer.echo(told, err=True),
        )
    show(results)
    if output is not None:
        typer.echo(f"Written to {output}.")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise CommandError(f"{option} takes whole numbers above 0, such as {option} 8,32.")

    return tuple(int(part) for part in parts)
