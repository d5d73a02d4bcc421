"""The page of an image model: samples beside images, bits per dimension, certificate."""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from quarflow.data.images import Images
from quarflow.files import write_whole
from quarflow.report.image_grid import grid_png
from quarflow.report.style import DATA, MODEL, Picture, picture, styled
from quarflow.report.template import filled, page_path
from quarflow.report.words import typed

__all__ = ["write_image_report"]

SHOWN = 36  # images in a grid
EXTREMES = 12
SCORED = 2000
MEASURED = 256
DRAWS = 2


def write_image_report(
    model: Any,
    path: str | os.PathLike[str],
    images: Images | None = None,
    *,
    title: str = "Image model",
    seed: int = 0,
) -> Path:
    """Write the report on an image model to one self-contained HTML file.

    Arguments:
        model: A fitted :class:`quarflow.ImageDensity`.
        path: The file to write; its folder must exist.
        images: To compare with; best, images it was not fitted to.
        title: Heading of the page.
        seed: Of the samples and of the choice of images where there are too many.

    Raises:
        ValueError: if the images do not suit the model, or there is no such folder.
    """
    path = page_path(path)
    content = gather(model, images, title, seed)
    write_whole(path, filled("images.html.j2", model, content))

    return path


def gather(model: Any, images: Images | None, title: str, seed: int) -> dict[str, Any]:
    """Everything the template shows."""
    flow: Any = model.flow_
    levels = model.images_.levels
    device = next(flow.parameters()).device
    samples, evaluations = flow.sample_images(
        SHOWN, generator=torch.Generator(device).manual_seed(seed)
    )
    content: dict[str, Any] = {
        "title": title,
        "uniform": math.log2(levels),
        "settings": {key: typed(value) for key, value in model.settings_.items()},
        "samples": _grid(samples.cpu().numpy(), levels),
        "shown": None,
        "extremes": None,
        "measured": 0,
        "training": _training(model.history_) if model.history_ else None,
    }
    score = None
    x = None
    if images is not None:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:SCORED])
        some = images.pick(chosen)
        score = model.evaluate(some, draws=DRAWS, seed=seed)
        content["shown"] = _grid(
            some.images[np.random.default_rng(seed).permutation(len(some))[:SHOWN]], levels
        )
        content["extremes"] = _extremes(some, score)
        x = torch.from_numpy(some.images[:MEASURED]).to(device)
        x = flow.dequantise(x, torch.Generator(device).manual_seed(seed))
        content["measured"] = len(x)
    steps = flow.certificate(x)
    counts = evaluations.double().cpu()
    content["certificate"] = [
        {
            "step": step.step + 1,
            "sigma": step.sigma,
            "bound": step.bound,
            "measured": step.measured,
            "median": float(count.median()),
            "most": int(count.max()),
        }
        for step, count in zip(steps, counts, strict=True)
    ]
    content["tiles"] = _tiles(model, score)

    return content


def _tiles(model: Any, score: Any) -> list[dict[str, str]]:
    valid, counts = model.metrics_.get("valid_bits_per_dim"), model.metrics_.get("parameters", {})
    tiles = []
    if score is not None:
        error = "" if score.error is None else f" ± {score.error:.4f}"
        note = f"bits per dimension of {len(score.bits_per_dim):,} images given; lower is better"
        tiles.append({"value": f"{score.mean:.4f}{error}", "note": note})
    if valid is not None:
        tiles.append({"value": f"{valid:.4f}", "note": "bits per dimension on validation images"})
    if counts:
        note = f"parameters; {counts['total']:,} if masked weights counted"
        tiles.append({"value": f"{counts['unmasked']:,}", "note": note})

    return tiles


def _grid(images: np.ndarray, levels: int) -> Picture:
    content, width = grid_png(images, levels)

    return Picture("data:image/png;base64," + base64.b64encode(content).decode("ascii"), width)


def _extremes(images: Images, score: Any) -> dict[str, Any] | None:
    """The most and least likely images."""
    if len(images) < 2 * EXTREMES:
        return None
    order = np.argsort(score.bits_per_dim, kind="stable")
    most, least = order[:EXTREMES], order[::-1][:EXTREMES]

    return {
        "most": _grid(images.images[most], images.levels),
        "least": _grid(images.images[least], images.levels),
        "lowest": float(score.bits_per_dim[order[0]]),
        "highest": float(score.bits_per_dim[order[-1]]),
    }


@styled
def _training(history: list[dict[str, Any]]) -> Picture:
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in history]
    mark = "o" if len(steps) < 8 else None
    for part, label, colour in (("train", "training", DATA), ("valid", "validation", MODEL)):
        bits = np.array([entry[f"{part}_bits_per_dim"] for entry in history], dtype=float)
        axes.plot(steps, bits, label=f"{label} images", color=colour, marker=mark, markersize=3)
    seen = np.array(
        [entry[f"{part}_bits_per_dim"] for entry in history for part in ("train", "valid")],
        dtype=float,
    )
    seen = seen[np.isfinite(seen)]
    if len(seen) > 20:  # the first steps would flatten everything that matters
        low, high = seen.min(), np.quantile(seen, 0.9)
        margin = 0.06 * max(high - low, 0.01)
        axes.set_ylim(low - margin, high + 2 * margin)
    axes.set(xlabel="steps", ylabel="bits per dimension", title="Lower is better")
    axes.legend(loc="upper right")

    return picture(figure)
