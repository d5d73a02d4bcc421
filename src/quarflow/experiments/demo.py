"""The demo: fit MAGIC gamma, compare with a Gaussian, find hadrons, sample, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quarflow.data.frames import frame_of
from quarflow.files import write_json

MARK = ".quarflow-demo"  # says that a folder was written by us and may be written again
TEST_SHARE = 0.2
MINUTES_ALL, MINUTES_GAMMA = 0.9, 0.6


class DemoError(ValueError):
    """The demo cannot write where it was asked to."""


def run_demo(
    output: str | Path = "demo",
    *,
    seed: int = 0,
    say: Callable[[str], object] = print,
    minutes: tuple[float, float] = (MINUTES_ALL, MINUTES_GAMMA),
    samples: int = 10_000,
) -> dict[str, Any]:
    """Run everything, write it under ``output``, and return the figures (also in figures.json).

    Arguments:
        output: A new or empty folder, or that of an earlier demo.
        seed: Of the split, the fits and the samples.
        say: Called with each line to show.
        minutes: Time budgets of the two fits.
        samples: How many to draw, write and invert.

    Raises:
        ValueError: If the folder holds something else.
    """
    folder = _folder(Path(output))
    from quarflow.data.demo import load_magic

    start = time.perf_counter()
    magic = load_magic()
    order = np.random.default_rng(seed).permutation(len(magic.X))
    count = round(TEST_SHARE * len(order))
    test, train = order[:count], order[count:]
    say(
        f"MAGIC gamma telescope: {len(order):,} events, {len(magic.names)} columns; "
        f"{len(train):,} to fit, {len(test):,} held out."
    )

    say(f"\n1. A density of all events ({minutes[0] * 60:.0f} s of training)")
    estimator = _fit(magic.X[train], magic.names, seed, minutes[0])
    figures: dict[str, Any] = {"rows": len(order), "columns": len(magic.names), "seed": seed}
    figures |= _fit_figures(estimator, magic.X[train], magic.X[test])
    estimator.save(folder / "model")

    say(f"\n2. Gammas alone, to find hadrons ({minutes[1] * 60:.0f} s of training)")
    gamma = train[~magic.hadron[train]]
    figures["hadron_auc"] = _find_hadrons(
        _fit(magic.X[gamma], magic.names, seed, minutes[1]), magic, test
    )

    say("\n3. Samples and the report")
    figures |= _samples(estimator, magic, test, folder, samples, seed)
    rows = frame_of(magic.names, magic.X[test])
    estimator.report(
        folder / "report.html",
        rows,
        title="MAGIC gamma telescope: held-out events against the model",
        seed=seed,
    )
    figures["seconds"] = time.perf_counter() - start
    figures["data"] = magic.citation
    write_json(folder / "figures.json", figures, indent=2)
    for line in summary(figures, folder):
        say(line)
    return figures


def summary(figures: dict[str, Any], folder: Path) -> list[str]:
    """The figures as lines to read."""
    lead = figures["gaussian_test_nats"] - figures["test_nats"]
    return [
        "",
        f"Held-out nats, QuAR flow           {figures['test_nats']:8.3f}   (lower is better)",
        f"Held-out nats, Gaussian            {figures['gaussian_test_nats']:8.3f}"
        f"   (full covariance; {lead:.2f} worse)",
        f"Hadron against gamma, ROC AUC      {figures['hadron_auc']:8.3f}"
        "   (fitted to gammas alone, no labels used)",
        f"Inversion, largest relative error  {figures['inversion_error']:8.0e}"
        f"   ({figures['inverted']:,} samples there and back)",
        f"Samples per second                 {figures['samples_per_second']:8,.0f}",
        f"Certified bound on abs(d)          {figures['certified_bound']:8.3f}"
        "   (below 1: invertible everywhere)",
        f"In all                             {figures['seconds']:8.0f} s",
        "",
        f"Open {folder / 'report.html'}; the model is in {folder / 'model'}.",
    ]


def _folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is a file; give the demo a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise DemoError(
            f"{folder} is not empty and no earlier demo wrote it; choose another folder with -o."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


def _fit(X: np.ndarray, names: list[str], seed: int, minutes: float) -> Any:
    from quarflow import QuARDensity

    estimator = QuARDensity(minutes=minutes, random_state=seed, verbose=True)
    return estimator.fit(frame_of(names, X))


def _fit_figures(estimator: Any, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Held-out nats of the flow and of a Gaussian fitted to the same rows."""
    from quarflow.report.calibration import gaussian_nats

    scores = estimator.score_samples(frame_of(estimator.columns_.names, test))
    return {
        "train_rows": len(train),
        "test_rows": len(test),
        "test_nats": float(-scores.mean()),
        "test_nats_error": float(scores.std() / np.sqrt(len(scores))),
        "gaussian_test_nats": gaussian_nats(train, test),
        "validation_nats": estimator.metrics_["valid_nats"],
        "parameters": estimator.metrics_["parameters"],
        "training_seconds": estimator.metrics_["seconds"],
        "stopped": estimator.metrics_["stopped"],
        "certified_bound": max(float(s.bound) for s in estimator.flow_.certificate()),
    }


def _find_hadrons(gammas: Any, magic: Any, test: np.ndarray) -> float:
    """The ROC AUC of hadron against gamma, the density of gammas alone as the score."""
    from sklearn.metrics import roc_auc_score

    scores = gammas.score_samples(frame_of(magic.names, magic.X[test]))
    return float(roc_auc_score(magic.hadron[test], -scores))


def _samples(
    estimator: Any, magic: Any, test: np.ndarray, folder: Path, count: int, seed: int
) -> dict[str, Any]:
    """Write samples and their picture beside the held-out rows; time and invert them."""
    from quarflow.data import TableWriter
    from quarflow.report.calibration import round_trip
    from quarflow.report.figures import pair_figure
    from quarflow.report.structure import most_structured
    from quarflow.report.style import save_png

    start = time.perf_counter()
    samples = estimator.sample(count, random_state=seed)
    seconds = time.perf_counter() - start
    back = estimator.inverse_transform(estimator.transform(frame_of(magic.names, samples)))
    with TableWriter(folder / "samples.csv") as writer:
        writer.write({name: samples[:, i] for i, name in enumerate(magic.names)})
    chosen = most_structured(magic.X[test], 4, seed)
    drawn = pair_figure(
        magic.X[test][:, chosen], samples[:, chosen], [magic.names[i] for i in chosen], seed=seed
    )
    save_png(drawn, folder / "demo.png")
    return {
        "samples": count,
        "samples_per_second": count / seconds,
        "inverted": count,
        "inversion_error": float(round_trip(samples, back).max()),
    }
