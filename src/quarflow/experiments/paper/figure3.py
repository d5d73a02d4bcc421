"""Figure 3: eight Gaussians as three kinds of flow see them, with numbers beside the contours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quarflow.experiments.paper.eight import (
    DATA,
    FLOOR,
    MODELS,
    Model,
    log_density,
    score_seconds,
    train,
    trained,
    update_seconds,
)
from quarflow.experiments.paper.run import Numbers, Run, mean_and_error, one_of, with_error

__all__ = ["figure3", "seconds_to"]

GRID = 201  # points a side


def figure3(
    folder: Path,
    steps: int,
    seed: int = 0,
    seeds: int = 1,
    models: Sequence[str] = tuple(MODELS),
    quiet: bool = False,
) -> Numbers:
    """Train every model with every seed, compare, draw; returns the numbers.

    Arguments:
        folder: For everything that is written.
        steps: Updates per flow.
        seed, seeds: The first seed and how many.
        models: Names of :data:`quarflow.experiments.paper.eight.MODELS`.
        quiet: Print nothing.
    """
    one_of("models", models, MODELS)
    chosen = [MODELS[name] for name in models]
    settings = {"steps": steps, "seed": seed, "seeds": seeds, "models": list(models)}
    run = Run("figure3", folder, settings, free=("seeds",), quiet=quiet)
    parts: dict[str, list[Numbers]] = {model.name: [] for model in chosen}
    for number in range(seed, seed + seeds):
        for model in chosen:
            name = f"{model.name}-{number}"
            parts[model.name].append(run.part(name, partial(train, run, model, steps, number)))
    times = {m.name: run.part(f"time-{m.name}", partial(_times, run, m, seed)) for m in chosen}

    numbers: Numbers = {
        "models": {m.name: _summary(parts[m.name], times[m.name]) for m in chosen},
        "versus residual": _races(parts),
    }
    _tables(run, chosen, numbers)
    maps = {m.name: _map(trained(m, run.keep(f"{m.name}-{seed}"))) for m in chosen}
    run.figure(_draw(chosen, maps, {m.name: parts[m.name][0] for m in chosen}))
    run.figure(_draw_curves(chosen, parts), "figure3-time")
    run.finish(numbers)

    return numbers


def _times(run: Run, model: Model, seed: int, folder: Path) -> Numbers:
    """Seconds per update, and per 10,000 points scored by the trained flow."""
    flow = model.make()
    exact = trained(model, run.keep(f"{model.name}-{seed}"))
    flow.load_state_dict(exact.state_dict())

    return {
        "update_seconds": update_seconds(model),
        "score_seconds": score_seconds(flow),  # a residual flow: 20 terms and the roulette
        "exact_score_seconds": score_seconds(exact),
    }


def _summary(parts: Sequence[Numbers], times: Numbers) -> Numbers:
    """Mean and standard error over seeds, of one model."""
    kl, kl_error = mean_and_error([p["kl"] for p in parts])
    sparse, sparse_error = mean_and_error([p["sparse_error"][f"{FLOOR:g}"] for p in parts])

    return {
        "parameters": parts[0]["parameters"],
        "kl": kl,
        "kl_error": kl_error if kl_error is not None else parts[0]["kl_error"],
        "sparse_error": sparse,
        "sparse_error_error": sparse_error,
        "train_seconds": mean_and_error([p["seconds"] for p in parts])[0],
        **times,
        "seeds": list(parts),
    }


def seconds_to(curve: Sequence[Numbers], kl: float, clock: str = "seconds") -> float:
    """Training seconds after which a curve that gets there is first at or below a KL.

    Arguments:
        curve: What was measured, in order.
        kl: The KL to get to.
        clock: Which of its numbers is the time.

    Example:
        >>> seconds_to([{"seconds": 1.0, "kl": 0.5}, {"seconds": 2.0, "kl": 0.1}], 0.2)
        2.0
    """
    return next(float(point[clock]) for point in curve if point["kl"] <= kl)


def _races(parts: dict[str, list[Numbers]]) -> Numbers:
    """How much sooner than the residual flow the others get as far, seed by seed.

    As far is what both reach in the end: the larger of the two last KL.
    """
    races: Numbers = {}
    for name, ours in parts.items():
        theirs = parts.get("residual", [])
        if name == "residual" or not theirs:
            continue
        rows = []
        for a, b in zip(ours, theirs, strict=True):
            target = max(a["curve"][-1]["kl"], b["curve"][-1]["kl"])
            row: Numbers = {"kl": target}
            for clock, ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
                row[clock] = seconds_to(a["curve"], target, clock)
                row[f"residual_{clock}"] = seconds_to(b["curve"], target, clock)
                row[ratio] = row[f"residual_{clock}"] / row[clock]
            rows.append(row)
        mean, error = mean_and_error([row["ratio"] for row in rows])
        cpu = mean_and_error([row["cpu_ratio"] for row in rows])[0]
        races[name] = {"ratio": mean, "ratio_error": error, "cpu_ratio": cpu, "seeds": rows}

    return races


def _tables(run: Run, chosen: Sequence[Model], numbers: Numbers) -> None:
    rows = []
    for model in chosen:
        found = numbers["models"][model.name]
        race = numbers["versus residual"].get(model.name)
        rows.append(
            [
                model.title,
                f"{found['parameters']:,}",
                with_error(found["kl"], found["kl_error"], 4),
                with_error(found["sparse_error"], found["sparse_error_error"], 2),
                f"{1e3 * found['update_seconds']:.0f}",
                f"{found['score_seconds']:.2f}",
                f"{found['train_seconds']:,.0f}",
                "" if race is None else f"{race['ratio']:.1f} x",
            ]
        )
    settings = run.settings
    run.table(
        f"Eight Gaussians, {settings['steps']:,} updates, {settings['seeds']} seed(s): KL to the "
        f"data, error of log p in the sparse region (clipped at {FLOOR:g})",
        [
            "flow",
            "parameters",
            "KL (nats)",
            "sparse error (nats)",
            "ms / update",
            "s / 10,000 scored",
            "s trained",
            "sooner than residual",
        ],
        rows,
    )


def _grid() -> tuple[np.ndarray, Tensor]:
    low, high = DATA.limits
    side = torch.linspace(low, high, GRID)
    x, y = torch.meshgrid(side, side, indexing="xy")

    return side.numpy(), torch.stack((x.flatten(), y.flatten()), -1)


def _map(flow: Any) -> np.ndarray:
    """Log-density on the grid."""
    return log_density(flow, _grid()[1]).reshape(GRID, GRID).numpy()


def _draw(chosen: Sequence[Model], maps: dict[str, np.ndarray], parts: dict[str, Numbers]) -> Any:
    """Contours of the log-density, one colour scale for all."""
    from matplotlib.figure import Figure

    from quarflow.report.style import house_style

    side, points = _grid()
    truth = DATA.log_prob(points.double()).reshape(GRID, GRID).numpy()
    panels = [("Data", "the truth", truth)]
    for model in chosen:
        found = parts[model.name]
        caption = f"KL {found['kl']:.4f} · sparse error {found['sparse_error'][f'{FLOOR:g}']:.2f}"
        panels.append((model.title, caption, maps[model.name]))
    top = -2.0  # the modes are at -1.8
    levels = np.arange(FLOOR, top + 0.1, 1.0)
    with house_style():
        rows = 1 if len(panels) < 5 else 2
        across = -(-len(panels) // rows)
        size = (3.05 * across + 0.6, 3.45 * rows + 0.15)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False).ravel()
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        for panel, (title, caption, log_p) in zip(axes, panels, strict=False):
            shown = np.clip(log_p, FLOOR, None)
            filled = panel.contourf(side, side, shown, levels, cmap="magma", extend="both")
            panel.contour(
                side, side, log_p, levels[1::2], colors="white", linewidths=0.4, linestyles="solid"
            )
            panel.set_title(f"{title}\n{caption}", linespacing=1.45)
            panel.set_aspect("equal")
            panel.grid(visible=False)
        bar = figure.colorbar(filled, ax=list(axes), shrink=0.86, pad=0.01)
        bar.set_label("log p (nats)")
        bar.outline.set_visible(False)

    return figure


COLOURS = {
    "autoregressive": "#7b848f",
    "residual": "#2b5c8a",
    "quar": "#d9772b",
    "quar-elu": "#5b9a57",
    "quar-paper": "#8a5a9e",
}


def _draw_curves(chosen: Sequence[Model], parts: dict[str, list[Numbers]]) -> Any:
    """KL against seconds of training, and against updates."""
    from matplotlib.figure import Figure

    from quarflow.report.style import house_style

    with house_style():
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        for panel, key in zip(
            figure.subplots(1, 2, sharey=True), ("seconds", "step"), strict=True
        ):
            for model in chosen:
                for i, part in enumerate(parts[model.name]):
                    panel.plot(
                        [point[key] for point in part["curve"]],
                        [max(point["kl"], 1e-4) for point in part["curve"]],
                        color=COLOURS[model.name],
                        label=model.title if i == 0 else None,
                        linewidth=1.4,
                        alpha=1.0 if len(parts[model.name]) == 1 else 0.7,
                    )
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter("{x:g}")
        left, right = figure.axes
        left.set(xlabel="seconds of training", ylabel="KL to the data (nats)")
        left.set_title("For the time spent")
        right.set(xlabel="updates", title="For the updates")
        right.legend(loc="lower left")

    return figure
