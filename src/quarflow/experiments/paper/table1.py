"""Table 1: bits per dimension of image models, beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quarflow.data.image_sets import SETS, load_set
from quarflow.data.images import Images
from quarflow.density.image import ImageDensity
from quarflow.density.image_fit import make_flow
from quarflow.experiments.paper.budget import SWEEPS, Limit, plan_for, seconds_per_image
from quarflow.experiments.paper.forecast import Progress
from quarflow.experiments.paper.image_settings import PUBLISHED, recipe_for
from quarflow.experiments.paper.run import Numbers, Run, one_of, stop_if, with_error
from quarflow.solvers import InversionError
from quarflow.training import TrainingSettings, has_checkpoint
from quarflow.training.device import choose_device

__all__ = ["MODELS", "table1"]

MODELS = {"quar": "QuAR", "residual": "Residual"}
SAMPLES = 64
EPOCHS = 300  # appendix A.1
UNLIMITED = 1_000_000  # epochs, where minutes are the limit


def table1(
    folder: Path,
    dataset: str,
    models: Sequence[str] = ("quar",),
    setting: str = "best",
    epochs: int | None = None,
    minutes: float | None = None,
    data: Path | None = None,
    seed: int = 0,
    draws: int = 4,
    test_images: int | None = None,
    precision: str = "float32",
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
        epochs: Passes over the images; 300 if neither they nor minutes are given.
        minutes: Time limit of each model: setting up, training, test and samples.
        data: Folder with the files; see :func:`quarflow.data.load_set`.
        seed: Of weights, order, noise and samples.
        draws: Draws of the dequantisation noise when testing.
        test_images: How many of the test images are scored; all by default.
        precision: ``bf16`` trains the branches under autocast; tests are in float32 anyway.
        compile: Whether the training loss goes through ``torch.compile``.
        device: ``auto``, ``cpu`` or ``cuda``.
        quiet: Print nothing.

    Raises:
        ValueError: if an argument is out of its range, or the images cannot be loaded.
    """
    one_of("dataset", [dataset], SETS)
    one_of("setting", [setting], ("paper", "best"))
    one_of("precision", [precision], ("float32", "bf16"))
    one_of("model", models, MODELS)
    limit = Limit(minutes)
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
        found[model] = _model(run, model, train, test, device, limit)
        limit = Limit(minutes)
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


def _model(
    run: Run, model: str, train: Images, test: Images, device: str, limit: Limit
) -> Numbers:
    """Everything about one model, part after part."""
    fitted = run.part(f"{model}-training", partial(_fit, run, model, train, device, limit))
    limit.used(fitted["seconds"])
    scores = run.part(f"{model}-test", partial(_score, run, model, test, device, limit))
    samples = run.part(f"{model}-samples", partial(_sample, run, model, test, device, limit))

    return {**fitted, **scores, **samples}


def _fit(run: Run, model: str, train: Images, device: str, limit: Limit, folder: Path) -> Numbers:
    """Train one model; its weights stay in its folder."""
    asked, checkpoint = run.settings, folder / "checkpoint"
    recipe = recipe_for(asked["dataset"], model, asked["setting"])
    flow = make_flow(recipe.flow, recipe.arguments, asked["seed"]).to(choose_device(device))
    scores = asked["test_images"] * asked["draws"] + SAMPLES * SWEEPS
    plan = plan_for(run, limit, flow, train, scores, folder / "plan.json")
    del flow
    settings = TrainingSettings(  # what a recipe does not name is the trainer's own
        max_epochs=asked["epochs"] or UNLIMITED,
        minutes=plan.minutes,
        precision=asked["precision"],
        compile=asked["compile"],
        checkpoint_seconds=180,
        **recipe.training,
    )
    chosen = {**recipe.arguments, **asdict(settings)}
    chosen = {k: v for k, v in chosen.items() if k not in ("shape", "levels", "seed")}
    epochs = asked["epochs"] or EPOCHS
    part = epochs / settings.max_epochs
    with Progress(run, model, f"{epochs:,} epochs", part, asked["minutes"]) as progress:
        density = ImageDensity(
            flow=recipe.flow,
            flip=recipe.flip,
            validation_fraction=plan.validation_fraction,
            first=plan.first,
            device=device,
            random_state=asked["seed"],
            checkpoint=checkpoint,
            resume=has_checkpoint(checkpoint),
            **chosen,
        )
        density.fit(train, on_event=progress)
    metrics = density.metrics_
    stop_if(metrics["interrupted"], metrics["stopped"])
    density.save(folder / "model")

    return {"settings": density.settings_, "history": density.history_, **metrics}


def _trained(run: Run, model: str, device: str) -> ImageDensity:
    return ImageDensity.load(run.keep(f"{model}-training") / "model", device)


def _score(run: Run, model: str, test: Images, device: str, limit: Limit, folder: Path) -> Numbers:
    """Bits per dimension of the test images, by the averaged weights."""
    density, draws = _trained(run, model, device), run.settings["draws"]
    if limit.minutes is not None:
        each = draws * seconds_per_image(density.flow_, test) if limit.left() else math.inf
        count = limit.count(run, f"{model}: test images", len(test), each, 0.7, least=2)
        test = test.pick(slice(count))
    score = density.evaluate(test, draws=draws, seed=run.settings["seed"])

    return {
        "bits_per_dim": score.mean,
        "standard_error": score.error,
        "test_seconds": score.seconds,
        "test_draws": score.draws,
        "test_images": len(test),
    }


def _sample(
    run: Run, model: str, test: Images, device: str, limit: Limit, folder: Path
) -> Numbers:
    """A grid of samples, and what inverting the flow took."""
    count = SAMPLES if limit.left() else limit.count(run, f"{model}: samples", SAMPLES, math.inf)
    if not count:
        return {"samples": 0}
    density = _trained(run, model, device)
    if limit.minutes is not None:
        each = SWEEPS * seconds_per_image(density.flow_, test)
        count = limit.count(run, f"{model}: samples", SAMPLES, each)
    if not count:
        return {"samples": 0}
    try:
        drawn = density.draw(count, run.settings["seed"])
    except InversionError as error:
        run.say(f"{model}: no samples, a step could not be inverted: {error}")
        return {"sampling_error": str(error)}
    path = run.folder / f"samples-{model}.png"
    drawn.write(path)
    run.say(f"wrote {path}")
    counts = drawn.evaluations.astype(float)

    return {
        "samples": count,
        "sampling_seconds": drawn.seconds,
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
                with_error(found["bits_per_dim"], error, 4),
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
