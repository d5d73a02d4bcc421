"""`quarflow fit`: from a table, or images, to a model folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quarflow.cli.common import INTERRUPTED, CommandError, names_of, options_of, quoted
from quarflow.store.exchange import exchange, recover

CHECKPOINT = "checkpoint"
OWN_OPTIONS = {
    "minutes": "--minutes",
    "max_epochs": "--max-epochs",
    "random_state": "--seed",
    "seed": "--seed",
    "device": "--device",
    "resume": "--resume",
    "checkpoint": "-o",
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
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=KIND", help="What a column is, such as zip=category; repeatable."
        ),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="File that says so of columns: .toml or .json.")
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
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the density; repeatable."),
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
      quarflow fit data.csv -o model --kind zip=category --kind angle=periodic:360
      quarflow fit data.csv -o model --set hidden_features=[64,64] --set 'bounds={"age":[0,null]}'
      quarflow fit pictures/ -o model --minutes 30 --set transforms=8 --set flip=true
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
        density, received = _fit(
            data,
            output,
            _names(columns, context) | {"drop_missing": drop_missing},
            setting or [],
            _kinds(kind or [], schema),
            minutes=minutes,
            max_epochs=max_epochs,
            random_state=seed,
            device=device,
            resume=resume,
        )
    if _is_main():
        _tell(density, data, output)
    if received:
        raise typer.Exit(128 + signal.Signals[received])


def _fit(
    data: Path,
    output: Path,
    options: dict[str, Any],
    settings: Sequence[str],
    kinds: dict[str, Any],
    **parameters: Any,
) -> tuple[Any, str | None]:
    """Fit and save, whatever signal comes in between; tell which one came."""
    from quarflow import density_for
    from quarflow.training import StopSignals

    kind = density_for(data)
    density = kind(
        **_with_kinds(kind, _settings(kind, settings), kinds),
        **{key: value for key, value in parameters.items() if value is not None},
        checkpoint=output / CHECKPOINT,
        verbose=True,
    )
    found = density.read(data, **options_of(kind, "read", **options), say=say)
    with StopSignals(deliver=False) as signals:
        density.fit(**found)
        _save(density, output)

    return density, signals.received


def say(text: str) -> None:
    """Print a line, once where several processes fit together."""
    if _is_main():
        typer.echo(text)


def _is_main() -> bool:
    from quarflow.training.device import is_main_process

    return is_main_process()


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Be the only fit into the folder, and leave nothing there when nothing came of it."""
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


def _settings(kind: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Arguments of a density from `--set key=value`."""
    known = [name for name in kind.setting_names() if name not in OWN_OPTIONS]
    found = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise CommandError(f"--set takes key=value, such as --set {known[0]}=4, not {key!r}.")
        if key in OWN_OPTIONS:
            raise CommandError(f"--set {key} is not needed: use {OWN_OPTIONS[key]} instead.")
        if key not in known and key not in kind.former_setting_names():
            raise CommandError(
                f"There is no setting {key!r} for {kind.of}. The settings are: {', '.join(known)}."
            )
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _kinds(options: Sequence[str], schema: Path | None) -> dict[str, Any]:
    """What a schema file and --kind say of columns."""
    from quarflow.data.schema_file import join_kinds

    return join_kinds(options, schema)


def _with_kinds(kind: Any, settings: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """Settings of a density with what is said of columns, for those that have columns."""
    if not kinds:
        return settings
    if "kinds" not in kind.setting_names():
        raise CommandError(f"--kind and --schema are for tables, not for {kind.of}.")
    said = settings.get("kinds") or {}
    if not isinstance(said, dict):
        raise CommandError("--set kinds takes a JSON object; --kind is simpler.")

    return settings | {"kinds": {**said, **kinds}}


def _names(columns: str | None, context: str | None) -> dict[str, list[str] | None]:
    """The columns to model and those of the context, as far as they are given."""
    wanted, given = names_of(columns, "--columns"), names_of(context, "--context")
    for name in given or []:
        if name in (wanted or []):
            raise CommandError(f"The column {name!r} is in --columns and in --context.")
    return {"columns": wanted, "context": given}


def _tidy(output: Path, existed: bool) -> None:
    """Remove the folder that this command made, if nothing worth keeping is in it."""
    if not existed and output.is_dir():
        for folder in (output / CHECKPOINT, output):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _save(density: Any, output: Path) -> None:
    """Save the model; the checkpoint of a run stopped by a signal stays, to go on from."""
    from quarflow.training import has_checkpoint

    if not _is_main():
        return
    checkpoint, place = output / CHECKPOINT, Path(os.path.realpath(output))
    new = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if density.metrics_["interrupted"] and has_checkpoint(checkpoint):
            density.save(new)
            shutil.copytree(checkpoint, new / CHECKPOINT, copy_function=_link)
            exchange(new, place)
        else:
            density.save(output)
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


def _tell(density: Any, data: Path, output: Path) -> None:
    for line in density.summary():
        typer.echo(line)
    if density.metrics_.get("interrupted"):
        typer.echo(f"The best so far is saved in {output}; --resume goes on with the run.")
    else:
        typer.echo(f"Saved in {output}.")
    typer.echo(f"Next: quarflow report {quoted(output)} {quoted(data)} -o report.html")
