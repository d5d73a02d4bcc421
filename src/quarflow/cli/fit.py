"""`quarflow fit`: from a table, or images, to a model folder."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from quarflow.cli.common import (
    INTERRUPTED,
    CommandError,
    duration,
    frame_of,
    names_of,
    quoted,
)
from quarflow.cli.fit_images import fit_image_model, say, tell, wants_images
from quarflow.cli.layout import nats

CHECKPOINT = "checkpoint"
OWN_OPTIONS = {
    "minutes": "--minutes",
    "max_epochs": "--max-epochs",
    "random_state": "--seed",
    "device": "--device",
    "resume": "--resume",
    "checkpoint": "-o",
    "verbose": "",
}


def fit(
    data: Annotated[Path, typer.Argument(help="A table (.csv, .parquet, .npy, .npz), or images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    columns: Annotated[
        str | None, typer.Option(help="Columns to model, a,b,c; by default all but the context.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Columns to condition on instead of modelling them.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget for the training.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Passes over the rows, at most.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off.")
    ] = (False),
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out rows with missing values.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of QuARDensity; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model that is in the folder.")
    ] = False,
) -> None:
    """Fit a density to a table, or to images, and save it as a folder.

    Images are a folder of equally sized PNG, JPEG or WebP files, an array (N, H, W) or with
    channels in .npy or .npz, or `digits`. Ctrl-C stops early and saves the best model so far.

    \b
    Example:
      quarflow fit data.csv -o model
      quarflow fit data.parquet -o model --columns mass,energy --context angle --minutes 5
      quarflow fit data.csv -o model --set hidden_features=[64,64] --set 'bounds={"age":[0,null]}'
      quarflow fit pictures/ -o model --minutes 30 --set blocks=8 --set flip=true
    """
    if resume and force:
        raise CommandError(
            "--resume goes on with a run and --force replaces it; give one of them."
        )
    with _alone(output):
        if resume and _is_finished(output):
            say(f"{output} holds a finished model; there is nothing to resume.")
            return
        _check_folder(output, resume, force)
        if wants_images(data):
            for value, option in (
                (columns, "--columns"),
                (context, "--context"),
                (drop_missing, "--drop-missing"),
            ):
                if value:
                    raise CommandError(f"{option} is for tables, and {data} holds images.")
            fitted, received = fit_image_model(
                data,
                output / CHECKPOINT,
                minutes=minutes,
                max_epochs=max_epochs,
                seed=seed,
                device=device,
                resume=resume,
                settings=setting or [],
                save=partial(_save, output=output),
            )
            told = partial(tell, fitted, output)
        else:
            parameters = _parameters(
                setting or [],
                minutes=minutes,
                max_epochs=max_epochs,
                random_state=seed,
                device=device,
            )
            names = _names(data, columns, context)
            fitted, received = _fit(data, names, output, parameters, drop_missing, resume)
            told = partial(_tell, fitted, data, output)
    if _is_main():
        told()
    if received:
        raise typer.Exit(128 + signal.Signals[received])


def _is_main() -> bool:
    from quarflow.training.device import is_main_process

    return is_main_process()


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Be the only fit into the folder, and leave nothing there when nothing came of it."""
    from quarflow.store.exchange import recover
    from quarflow.training import LockedError, has_checkpoint, locked

    if not _is_main():  # of several processes only the first one looks after the folder
        yield
        return
    _check_place(output)
    place = Path(os.path.realpath(output))
    existed = output.exists()
    with locked(output, place.with_name(f".{place.name}.lock")):
        recover(output)
        try:
            yield
        except KeyboardInterrupt:  # at once: before training, or at a second Ctrl-C
            _tidy(output, existed)
            left = "before there was anything to keep"
            if has_checkpoint(output / CHECKPOINT):
                left = "at once; --resume goes on from the last checkpoint"
            typer.echo(f"Interrupted {left}.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except LockedError:
            raise
        except ValueError:
            _tidy(output, existed)
            raise


def _is_finished(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / CHECKPOINT).exists()


def _check_place(folder: Path) -> None:
    """Refuse a place where no folder can be written."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder} is a file; give the model a folder of its own.")
    if not folder.exists() or not any(folder.iterdir()):
        parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        if not os.access(parent, os.W_OK):
            raise CommandError(f"The folder {parent} cannot be written to.")


def _check_folder(folder: Path, resume: bool, force: bool) -> None:
    """Refuse a folder that holds something else."""
    if not _is_main() or not folder.exists() or not any(folder.iterdir()):
        return
    finished, unfinished = (folder / "config.json").is_file(), (folder / CHECKPOINT).is_dir()
    inside = {entry.name for entry in folder.iterdir()}
    if (not finished and inside > {CHECKPOINT}) or not (finished or unfinished):
        raise CommandError(f"{folder} holds other files; give the model a folder of its own.")
    if finished and not _is_ours(folder):
        raise CommandError(f"{folder} holds something else than a quarflow model; choose another.")
    if resume or force:
        return
    if unfinished:
        raise CommandError(
            f"{folder} holds a run that is not finished. "
            "Go on with it by --resume, or start again by --force."
        )
    raise CommandError(
        f"{folder} already holds a model. Replace it by --force, or choose another."
    )


def _is_ours(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == "quarflow model"


def _parameters(assignments: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return arguments of QuARDensity from `--set key=value` and the command's own options."""
    from quarflow import QuARDensity

    known = inspect.signature(QuARDensity).parameters
    result = {key: value for key, value in options.items() if value is not None}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise CommandError(f"--set takes key=value, such as --set transforms=4, not {key!r}.")
        if OWN_OPTIONS.get(key):
            raise CommandError(f"--set {key} is not needed: use {OWN_OPTIONS[key]} instead.")
        if key not in known or key in OWN_OPTIONS:
            valid = ", ".join(name for name in known if name not in OWN_OPTIONS)
            raise CommandError(f"There is no setting {key!r}. The settings are: {valid}.")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def _names(data: Path, columns: str | None, context: str | None) -> tuple[list[str], list[str]]:
    """Return the columns to model, empty for all of a table without context; and the context's."""
    from quarflow.data import column_names

    wanted = names_of(columns, "--columns") or []
    given = names_of(context, "--context") or []
    for name in given:
        if name in wanted:
            raise CommandError(f"The column {name!r} is in --columns and in --context.")
    if given and not wanted:
        wanted = [name for name in column_names(data) if name not in given]
        if not wanted:
            raise CommandError("All columns are in --context; leave at least one to model.")
    return wanted, given


def _fit(
    data: Path,
    names: tuple[list[str], list[str]],
    output: Path,
    parameters: dict[str, Any],
    drop_missing: bool,
    resume: bool,
) -> tuple[Any, str | None]:
    """Fit to a table and save, whatever signal comes in between; tell which one came."""
    from quarflow import QuARDensity
    from quarflow.data import read_table
    from quarflow.training import StopSignals

    wanted, context_names = names
    table = read_table(data, [*wanted, *context_names] or None, drop_missing=drop_missing)
    if table.dropped:
        say(f"{table.dropped:,} rows with missing values were left out.")
    width = len(table.names) - len(context_names)
    X = frame_of(table.names[:width], table.values)
    given = frame_of(context_names, table.values[:, width:]) if context_names else None
    estimator = QuARDensity(
        **parameters, checkpoint=output / CHECKPOINT, resume=resume, verbose=True
    )
    with StopSignals(deliver=False) as signals:
        estimator.fit(X, context=given)
        _save(estimator, output)

    return estimator, signals.received


def _tidy(output: Path, existed: bool) -> None:
    """Remove the folder that this command made, if nothing worth keeping is in it."""
    if not existed and output.is_dir():
        for folder in (output / CHECKPOINT, output):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _save(model: Any, output: Path) -> None:
    """Save the model; the checkpoint of a run stopped by a signal stays, to go on from."""
    from quarflow.store.exchange import exchange
    from quarflow.training import has_checkpoint

    if not _is_main():
        return
    numbers = model.metrics_ if hasattr(model, "metrics_") else model.metrics
    checkpoint, place = output / CHECKPOINT, Path(os.path.realpath(output))
    new = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if numbers["interrupted"] and has_checkpoint(checkpoint):
            model.save(new)
            shutil.copytree(checkpoint, new / CHECKPOINT, copy_function=_link)
            exchange(new, place)
        else:
            model.save(output)
    except OSError as error:
        kept = (
            "The checkpoint is kept: make room, then --resume saves the model without training "
            "it again."
            if has_checkpoint(checkpoint)
            else "There is no checkpoint to go on from."
        )
        raise CommandError(
            f"The model could not be saved in {output}: {error.strerror or error}. {kept}"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not on this file system
        shutil.copy2(source, target)


def _tell(estimator: Any, data: Path, output: Path) -> None:
    metrics = estimator.metrics_
    context = f" given {metrics['context']}" if metrics.get("context") else ""
    typer.echo(
        f"{metrics['rows']:,} rows, {len(estimator.columns_.names)} columns{context}, "
        f"{metrics['parameters']:,} parameters.\n"
        f"Validation: {nats(metrics['valid_nats'])}, after {duration(metrics['seconds'])}."
    )  # why it stopped, the progress has said
    model, rows = quoted(output), quoted(data)
    if metrics.get("interrupted"):
        typer.echo(f"The best so far is saved in {output}; --resume goes on with the run.")
    else:
        typer.echo(f"Saved in {output}.")
    typer.echo(f"Next: quarflow report {model} {rows} -o report.html")
