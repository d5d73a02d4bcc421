"""Table 1: bits per dimension of image models, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from quarflow.data.image_sets import SETS, load_set
from quarflow.data.images import Images
from quarflow.experiments.paper.image_settings import PUBLISHED, recipe_for
from quarflow.experiments.paper.run import Numbers, RecipeError, Run
from quarflow.image_fitting import ImageModel, evaluate, fit_images

__all__ = ["MODELS", "table1"]

MODELS = {"quar": "QuAR", "residual": "Residual"}
SAMPLES = 64
EPOCHS = 300  # appendix A.1


def table1(
    folder: Path,
    dataset: str,
    models: Sequence[str] = ("quar",),
    setting: Literal["paper", "best"] = "best",
    epochs: int | None = None,
    minutes: float | None = None,
    data: Path | None = None,
    seed: int = 0,
    draws: int = 4,
    test_images: int | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Numbers:
    """Train each model, score the test images, draw samples; returns the numbers.

    Arguments:
        folder: For everything that is written.
        dataset: ``digits``, ``mnist`` or ``cifar10``.
        models: ``quar``, ``residual`` or both.
        setting: ``paper`` (its architecture and training) or ``best`` (ours).
        epochs, minutes: Budget of each model's training; 300 epochs if neither is given.
        data: Folder with the files; see :func:`quarflow.data.load_set`.
        seed: Of weights, order, noise and samples.
        draws: Draws of the dequantisation noise when testing.
        test_images: How many of the test images are scored; all by default.
        precision: ``bf16`` trains the branches under autocast; tests are in float32 anyway.
        compile: Whether the training loss goes through ``torch.compile``.
        device: ``auto``, ``cpu`` or ``cuda``.
        quiet: Print nothing.

    Raises:
        ValueError: if an argument is out of its range, or the images are not to be had.
    """
    if dataset not in SETS or setting not in ("paper", "best"):
        raise RecipeError(f"dataset must be one of {SETS}, setting 'paper' or 'best'.")
    for model in models:
        if model not in MODELS:
            raise RecipeError(f"There is no model {model!r}; the models are {', '.join(MODELS)}.")
    train, test = (load_set(dataset, part, data) for part in ("train", "test"))
    if test_images is not None:
        test = test.pick(slice(test_images))
    settings = {
        "dataset": dataset,
        "models": list(models),
        "setting": setting,
        "epochs": epochs if epochs or minutes else EPOCHS,
        "minutes": minutes,
        "seed": seed,
        "draws": draws,
        "test_images": len(test),
        "precision": precision,
        "compile": compile,
    }
    run = Run("table1", folder, settings, free=("models",), quiet=quiet)
    for part in (train, test):
        if part.note:
            run.say(f"{part.name}: {part.note}")
    found: dict[str, Numbers] = {}
    for model in models:
        fitted = run.part(f"{model}-training", partial(_fit, run, model, train, device))
        scores = run.part(f"{model}-test", partial(_score, run, model, test, device))
        samples = run.part(f"{model}-samples", partial(_sample, run, model, device))
        found[model] = {**fitted, **scores, **samples}
    numbers: Numbers = {
        "images": {
            "train": len(train),
            "test": len(test),
            "notes": [part.note for part in (train, test) if part.note],
        },
        "models": found,
        "paper": PUBLISHED[dataset],
    }
    _print(run, dataset, setting, numbers)
    run.figure(_curves(found), "table1-curve")
    run.finish(numbers)

    return numbers


def _fit(run: Run, model: str, train: Images, device: str, folder: Path) -> Numbers:
    """Train one model; its weights stay in its folder."""
    from quarflow.training import TrainingProgress, TrainingSettings, has_checkpoint

    asked = run.settings
    recipe = recipe_for(asked["dataset"], model, asked["setting"])
    settings = TrainingSettings(
        max_epochs=asked["epochs"] or 1_000_000,
        minutes=asked["minutes"],
        seed=asked["seed"],
        precision=asked["precision"],
        compile=asked["compile"],
        checkpoint_seconds=180,
        **recipe.training,
    )
    with TrainingProgress(verbose=not run.quiet, console=run.console) as progress:
        fitted = fit_images(
            train,
            settings,
            name=recipe.flow,  # type: ignore[arg-type]
            arguments=recipe.arguments,
            flip=recipe.flip,
            device=device,
            checkpoint=folder / "checkpoint",
            resume=has_checkpoint(folder / "checkpoint"),
            on_event=progress,
        )
    if fitted.metrics["interrupted"]:
        raise KeyboardInterrupt
    fitted.save(folder / "model")

    return {"settings": fitted.settings, "history": fitted.history, **fitted.metrics}


def _trained(run: Run, model: str, device: str) -> ImageModel:
    return ImageModel.load(run.keep(f"{model}-training") / "model", device)


def _score(run: Run, model: str, test: Images, device: str, folder: Path) -> Numbers:
    """Bits per dimension of the test images, by the averaged weights."""
    fitted = _trained(run, model, device)
    score = evaluate(fitted.flow, test, draws=run.settings["draws"], seed=run.settings["seed"])

    return {
        "bits_per_dim": score.mean,
        "standard_error": score.error,
        "test_seconds": score.seconds,
        "test_draws": score.draws,
    }


def _sample(run: Run, model: str, device: str, folder: Path) -> Numbers:
    """A grid of samples, and what inverting the flow took."""
    import time

    from quarflow.report.image_grid import save_grid
    from quarflow.solvers import InversionError

    fitted = _trained(run, model, device)
    flow: Any = fitted.flow
    home = next(flow.parameters()).device
    generator = torch.Generator(home).manual_seed(run.settings["seed"])
    begun = time.perf_counter()
    try:
        images, evaluations = flow.sample_images(SAMPLES, generator=generator)
    except InversionError as error:
        run.say(f"{model}: no samples, a step could not be inverted: {error}")
        return {"sampling_error": str(error)}
    seconds = time.perf_counter() - begun
    path = run.folder / f"samples-{model}.png"
    save_grid(images.cpu().numpy(), path, fitted.images.levels)
    run.say(f"wrote {path}")
    counts = evaluations.double().cpu().numpy()

    return {
        "samples": SAMPLES,
        "sampling_seconds": seconds,
        "evaluations_per_step": {
            "median": np.median(counts, axis=1).tolist(),
            "most": counts.max(axis=1).tolist(),
        },
    }


def _print(run: Run, dataset: str, setting: str, numbers: Numbers) -> None:
    rows: list[list[object]] = []
    for model, found in numbers["models"].items():
        counts, error = found["parameters"], found["standard_error"]
        rows.append(
            [
                f"{MODELS[model]}, {setting}",
                f"{found['bits_per_dim']:.4f}" + (f" ± {error:.4f}" if error else ""),
                _or_dash(numbers["paper"].get(MODELS[model])),
                _short(counts["total"]),
                _short(counts["unmasked"]),
                f"{found['steps']:,}",
                f"{found['seconds']:.0f}",
            ]
        )
    for name, bits in numbers["paper"].items():
        if name not in {MODELS[model] for model in numbers["models"]}:
            rows.append([f"{name} (paper)", "", f"{bits:.3f}", "", "", "", ""])
    run.table(
        f"Table 1: {dataset}, bits per dimension",
        ["model", "here", "paper", "numbers", "unmasked", "updates", "s"],
        rows,
    )


def _or_dash(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.3f}"


def _short(count: int) -> str:
    """A count of parameters in thousands or millions."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"


def _curves(found: dict[str, Numbers]) -> Any:
    """Validation bits per dimension against minutes of training."""
    from matplotlib.figure import Figure

    from quarflow.report.style import house_style

    colours = {"quar": "#2b5c8a", "residual": "#d9772b"}
    with house_style():
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        lowest, highest = np.inf, -np.inf
        for model, numbers in found.items():
            minutes = [entry["seconds"] / 60 for entry in numbers["history"]]
            bits = [entry["valid_bits_per_dim"] for entry in numbers["history"]]
            axes.plot(minutes, bits, label=MODELS[model], color=colours[model], marker=".")
            lowest = min(lowest, *bits)
            highest = max(highest, float(np.quantile(bits, 0.9)))
        margin = 0.05 * max(highest - lowest, 0.02)
        axes.set_ylim(lowest - margin, highest + 2 * margin)
        axes.set(
            xlabel="minutes of training",
            ylabel="validation bits per dimension",
            title="Averaged weights (lower is better)",
        )
        axes.legend()

    return figure
