"""`quarflow fit IMAGES`: from images to a model folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from quarflow.cli.common import CommandError, duration, quoted

__all__ = ["fit_image_model", "say", "tell", "wants_images"]

DATA_OPTIONS = ("levels", "layout", "flip", "keep_stand_ins", "validation_fraction", "flow")
FLOWS = ("ImageQuAR", "ImageResidualFlow")
OWN = {
    "minutes": "--minutes",
    "max_epochs": "--max-epochs",
    "seed": "--seed",
    "device": "--device",
}
TRAINING = {  # over the defaults of TrainingSettings, which are those for tables
    "batch_size": 64,
    "learning_rate": 3e-3,
    "clip": 1.0,
    "ema": 0.998,
    "checkpoint_seconds": 60.0,
}


def wants_images(data: Path) -> bool:
    """Whether `quarflow fit` shall treat its input as images: a set's name, a folder, an array."""
    from quarflow.data import is_images
    from quarflow.data.image_sets import SETS

    if data.is_dir():
        _check_no_table(data)
    return is_images(data) or (not data.exists() and str(data) in SETS)


def say(text: str) -> None:
    """Print a line, once where several processes fit together."""
    from quarflow.training.device import is_main_process

    if is_main_process():
        typer.echo(text)


def _check_no_table(folder: Path) -> None:
    """Refuse a folder that holds a model, or tables but no pictures, with the way out."""
    from quarflow.data.image_files import PICTURES
    from quarflow.data.tables import ENDINGS

    if (folder / "config.json").is_file():
        raise CommandError(f"{folder} is the folder of a model, where data are wanted.")
    endings = {path.suffix.lower(): path for path in sorted(folder.iterdir(), reverse=True)}
    tables = [path for ending, path in endings.items() if ending in ENDINGS]
    if tables and not endings.keys() & set(PICTURES):
        raise CommandError(
            f"{folder} is a folder, not a table; give one file of it, such as {min(tables)}."
        )


def fit_image_model(
    data: Path,
    checkpoint: Path,
    *,
    minutes: float | None,
    max_epochs: int | None,
    seed: int,
    device: str,
    resume: bool,
    settings: Sequence[str],
    save: Callable[[Any], None],
) -> tuple[Any, str | None]:
    """Fit an image flow and save it, whatever signal comes in between.

    Returns the :class:`quarflow.density.image.ImageModel` and the name of the signal, if any.
    """
    from quarflow.data import load_set, read_images
    from quarflow.density.image import fit_images
    from quarflow.training import StopSignals, TrainingProgress, TrainingSettings

    chosen = _settings(settings)
    name = chosen["data"].pop("flow", FLOWS[0])
    if name not in FLOWS:
        raise CommandError(f"--set flow is one of {', '.join(FLOWS)}, not {name!r}.")
    flip = chosen["data"].pop("flip", False)
    fraction = chosen["data"].pop("validation_fraction", 0.1)
    if data.exists():
        images = read_images(data, **chosen["data"])
    else:
        if chosen["data"]:
            raise CommandError(f"--set {next(iter(chosen['data']))} is for files, not for {data}.")
        images = load_set(str(data))
    if images.note:
        say(images.note)
    options: dict[str, Any] = {**TRAINING, **chosen["training"], "minutes": minutes, "seed": seed}
    if max_epochs is not None:
        options["max_epochs"] = max_epochs
    training = TrainingSettings(**options)
    with StopSignals(deliver=False) as signals:
        with TrainingProgress() as progress:
            model = fit_images(
                images,
                training,
                name=name,
                arguments=chosen["flow"],
                flip=bool(flip),
                validation_fraction=fraction,
                device=device,
                checkpoint=checkpoint,
                resume=resume,
                on_event=progress,
            )
        save(model)

    return model, signals.received


def tell(model: Any, output: Path) -> None:
    """Say what came out, and what to do next."""
    metrics, (C, H, W) = model.metrics, model.images.shape
    typer.echo(
        f"{metrics['images']:,} images of {W} x {H} pixels, {C} channel{'s'[: C > 1]}; "
        f"{metrics['parameters']['unmasked']:,} parameters.\n"
        f"Validation: {metrics['valid_bits_per_dim']:.4f} bits per dimension, "
        f"after {duration(metrics['seconds'])}."
    )
    if metrics["interrupted"]:
        typer.echo(f"The best so far is saved in {output}; --resume goes on with the run.")
    else:
        typer.echo(f"Saved in {output}.")
    typer.echo(f"Next: quarflow sample {quoted(output)} -o samples.png")


def _settings(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sort `--set key=value` into arguments of the images, the flow and the training."""
    from quarflow.flows import ImageQuAR, ImageResidualFlow
    from quarflow.training import TrainingSettings

    flow = {
        key
        for constructor in (ImageQuAR, ImageResidualFlow)
        for key in inspect.signature(constructor).parameters
    } - {"shape", "levels"}
    training = {field.name for field in fields(TrainingSettings)} - set(OWN)
    found: dict[str, dict[str, Any]] = {"data": {}, "flow": {}, "training": {}}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise CommandError(f"--set takes key=value, such as --set blocks=4, not {key!r}.")
        if key in OWN:
            raise CommandError(f"--set {key} is not needed: use {OWN[key]} instead.")
        part = (
            "data"
            if key in DATA_OPTIONS
            else "flow"
            if key in flow
            else "training"
            if key in training
            else None
        )
        if part is None:
            valid = ", ".join(sorted({*DATA_OPTIONS, *flow, *training}))
            raise CommandError(f"There is no setting {key!r}. For images they are: {valid}.")
        try:
            found[part][key] = json.loads(text)
        except ValueError:
            found[part][key] = text

    return found
