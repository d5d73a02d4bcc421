"""Two log-log pictures: cost against D, and against batch, with the fitted exponents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quarflow.experiments.speed.tables import Results, exponent, points
from quarflow.files import whole

__all__ = ["draw"]

# Colours that stay apart for the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
QUANTITIES = {"train": "training step", "log_prob": "log_prob", "sample": "samples"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write speed-features.png and speed-batch.png; those that there are figures for."""
    batches, features = results["settings"]["batches"], results["settings"]["features"]
    wanted = {
        "features": batches[len(batches) // 2],
        "batch": features[len(features) // 2],
    }
    written = []
    for against, at in wanted.items():
        path = folder / f"speed-{against}.png"
        if _draw(results, against, at, path):
            written.append(path)

    return written


def _draw(results: Results, against: str, at: int, path: Path) -> bool:
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(entry["model"] for entry in results["models"]))
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    any_line = False
    for axis, (quantity, title) in zip(axes, QUANTITIES.items(), strict=True):
        for i, model in enumerate(models):
            line = points(results, model, quantity, against, at)
            grows = exponent(line)
            if grows is None:
                continue
            any_line = True
            xs = sorted(line)
            axis.loglog(
                xs,
                [1e3 * line[x] for x in xs],
                "o-",
                color=COLOURS[i % len(COLOURS)],
                label=f"{model}: {grows:.2f}",
                linewidth=2 if model == "QuAR" else 1,
                markersize=4,
            )
        fixed = f"batch {at:,}" if against == "features" else f"D = {at}"
        axis.set_title(f"{title}, {fixed}", fontsize=10)
        axis.set_xlabel("features D" if against == "features" else "batch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7, title="exponent", title_fontsize=7)
    axes[0].set_ylabel("milliseconds")
    if any_line:
        with whole(path) as unfinished:
            figure.savefig(unfinished, dpi=130, format="png")

    return any_line
