"""What `score`, `sample`, `info` and `report` do with an image model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import typer

from quarflow.cli.common import CommandError, check_output, duration
from quarflow.cli.layout import certificate_table, save_array, two_columns

__all__ = ["image_info", "image_report", "sample_images", "score_images"]

DRAWS = 4
SHOWN = 64


def score_images(model: Path, data: Path, output: Path) -> None:
    """Write bits per dimension and log-density of every image."""
    import numpy as np

    from quarflow.data import TableWriter
    from quarflow.density.image import ImageModel, evaluate

    check_output(output, (".csv", ".parquet", ".pq"), [data])
    fitted = ImageModel.load(model)
    images = _read(data, fitted)
    found = evaluate(fitted.flow, images, draws=DRAWS)
    with TableWriter(output) as writer:
        writer.write(
            {
                "image": np.arange(1, len(images) + 1, dtype=np.float64),
                "bits_per_dim": found.bits_per_dim,
                "log_prob": found.log_prob,
            }
        )
    error = "" if found.error is None else f" ± {found.error:.4f}"
    rate = len(images) / max(found.seconds, 1e-9)
    typer.echo(
        f"{len(images):,} images, {found.mean:.4f}{error} bits per dimension, "
        f"{duration(found.seconds)} ({rate:,.0f} images/s).\nWritten to {output}."
    )


def sample_images(model: Path, output: Path, number: int, seed: int) -> None:
    """Draw images: a grid as .png, or an array (N, C, H, W) as .npy."""
    import torch

    from quarflow.density.image import ImageModel
    from quarflow.report.image_grid import save_grid

    check_output(output, (".png", ".npy"))
    fitted = ImageModel.load(model)
    flow: Any = fitted.flow
    device = next(flow.parameters()).device
    begun = time.perf_counter()
    images, evaluations = flow.sample_images(
        number, generator=torch.Generator(device).manual_seed(seed)
    )
    seconds = time.perf_counter() - begun
    pixels = images.cpu().numpy()
    if output.suffix.lower() == ".npy":
        save_array(output, pixels)
    else:
        save_grid(pixels, output, fitted.images.levels)
    typer.echo(
        f"{number:,} images in {duration(seconds)}, with {evaluations.double().median():.0f} "
        f"evaluations per step in the median and {int(evaluations.max())} at most; "
        f"written to {output}."
    )


def image_info(model: Path) -> None:
    """Show what an image model is."""
    from rich.console import Console
    from rich.text import Text

    from quarflow.density.image import ImageModel
    from quarflow.report.words import number, plain

    fitted = ImageModel.load(model, "cpu")
    metrics, (C, H, W) = fitted.metrics, fitted.images.shape
    counts = metrics.get("parameters")
    counts = counts if isinstance(counts, dict) else {}
    facts = {
        "model": str(model),
        "flow": str(fitted.settings.get("flow", type(fitted.flow).__name__)),
        "fitted to": f"{metrics.get('images') or 0:,} images, {fitted.images.name}",
        "images": f"{W} x {H} pixels, {C} channels, {fitted.images.levels} levels",
        "parameters": f"{counts.get('unmasked', 0):,} ({counts.get('total', 0):,} with masked)",
        "validation": f"{number(metrics.get('valid_bits_per_dim'))} bits per dimension",
        "training": (
            f"{metrics.get('steps') or 0:,} steps, {duration(metrics.get('seconds') or 0.0)}"
        ),
        "stopped": str(metrics.get("stopped") or ""),
    }
    console = Console(highlight=False)
    console.print(two_columns("Model", {key: Text(value) for key, value in facts.items()}))
    settings = {key: Text(plain(value)) for key, value in fitted.settings.items()}
    console.print(two_columns("Settings", settings))
    console.print(certificate_table(fitted.flow))


def image_report(
    model: Path, data: Path | None, output: Path, title: str | None, seed: int
) -> None:
    """Write the page of an image model."""
    from quarflow.density.image import ImageModel
    from quarflow.report.images import write_image_report

    check_output(output, (".html", ".htm"), [] if data is None or data.is_dir() else [data])
    fitted = ImageModel.load(model)
    images = None if data is None else _read(data, fitted)
    name = title or f"Image model: {os.path.basename(model.resolve())}"
    write_image_report(fitted, output, images, title=name, seed=seed)
    typer.echo(f"Written to {output}.")


def _read(data: Path, fitted: Any) -> Any:
    """Images to compare with: a file or folder, or the test part of a set."""
    from quarflow.data import load_set, read_images
    from quarflow.data.image_sets import SETS

    if not data.exists() and str(data) in SETS:
        return load_set(str(data), "test")
    if not data.exists():
        raise CommandError(f"There is no file or folder {data}.")

    return read_images(data, levels=fitted.images.levels)
