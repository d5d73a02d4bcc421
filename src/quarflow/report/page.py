"""From a fitted model (and rows) to the page: gather numbers and pictures, fill the template."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from quarflow.files import write_whole
from quarflow.report import figures
from quarflow.report.calibration import (
    Calibration,
    calibrate,
    gaussian_nats,
    ks_between,
    ks_by_chance,
    rank_correlations,
    round_trip,
)
from quarflow.report.model import Model
from quarflow.report.names import labels
from quarflow.report.structure import most_structured
from quarflow.report.style import picture
from quarflow.report.template import ReportError, filled, page_path
from quarflow.report.words import headline, number, settings_table

SCORED = 200_000  # rows scored for the densities and the extremes
SHOWN = 20_000  # rows for the calibration; as many samples at most
MEASURED = 5_000  # rows that abs(d) is measured on
INVERTED = 1_000  # samples sent to their latents and back
HISTOGRAMS = 24
PANELS = 12
EXTREMES = 8  # most and least likely rows shown
CELLS = 14  # columns shown of them


def write_report(
    estimator: Any,
    path: str | Path,
    X: Any = None,
    context: Any = None,
    *,
    title: str | None = None,
    seed: int = 0,
) -> Path:
    """Write the report on a fitted estimator to one self-contained HTML file.

    Arguments:
        estimator: A fitted ``QuARDensity``.
        path: The file to write; its folder must exist.
        X: Rows to compare the model with, (N, D) or a frame; best, rows it was not fitted to.
            None leaves out what needs them, and the page says so.
        context: Context rows (N, C) that belong to X, for a conditional model.
        title: Heading of the page.
        seed: Of the samples and of the choice of rows where there are too many.

    Raises:
        ValueError: If the estimator is not fitted, or the rows do not suit it.
        OSError: If the file cannot be written. The file appears whole or not at all.
    """
    path = page_path(path)
    content = gather(Model(estimator), X, context, title=title, seed=seed)
    write_whole(path, filled("page.html.j2", estimator, content))
    return path


def gather(model: Model, X: Any, context: Any, *, title: str | None, seed: int) -> dict[str, Any]:
    """Everything the template shows."""
    data, given = rows_of(model, X, context, seed)
    content: dict[str, Any] = {
        "title": title or "Density model",
        "names": model.names,
        "features": len(model.names),
        "context_names": model.context_names,
        "metrics": model.estimator.metrics_,
        "settings": settings_table(model),
        "preprocessing": list(model.columns.describe()),
        "context_preprocessing": (
            [] if model.context_columns is None else list(model.context_columns.describe())
        ),
        "training": training(model),
        "data": None,
        "pairs": None,
        "marginals": None,
        "calibration": None,
        "extremes": None,
    }
    samples, sample_context = samples_of(model, data, given, seed)
    if data is not None:
        values, given_context = data
        scored = choice(len(values), SCORED, seed)
        scores = model.log_prob(values[scored], pick(given_context, scored))
        content["data"] = data_facts(model, values, scores, given, scored)
        content["extremes"] = extremes(model, values, scored, scores)
        shown = choice(len(values), SHOWN, seed + 1)
        content |= comparison(model, values[shown], samples, seed)
        content["calibration"] = calibration(
            model, values[shown], pick(given_context, shown), scores, samples, sample_context, seed
        )
    elif samples is not None:
        content |= comparison(model, None, samples, seed)
    content["samples"] = None if samples is None else len(samples)
    content |= certificate(model, data, samples, sample_context)
    content["headline"] = headline(content)
    return content


def rows_of(
    model: Model, X: Any, context: Any, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray | None] | None, int]:
    """The rows given, checked, with their context; and how many they are."""
    if X is None:
        return None, 0
    values = model.rows(X, model.columns, "X")
    if model.conditional != (context is not None):
        raise ReportError(
            "This model has context columns: give their rows too (context=)."
            if model.conditional
            else "This model has no context columns; leave context out."
        )
    if context is None:
        return (values, None), len(values)
    matching = model.rows(context, model.context_columns, "context")
    if len(matching) != len(values):
        raise ReportError(f"X has {len(values)} rows and context has {len(matching)}.")
    return (values, matching), len(values)


def samples_of(
    model: Model, data: tuple[np.ndarray, np.ndarray | None] | None, given: int, seed: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Draw as many samples as there are rows (within limits), at the rows' own contexts.

    Arguments:
        model: What to sample.
        data: Rows (N, D) and their context (N, C) or None; None if none were given.
        given: How many rows.
        seed: Of the samples.
    """
    most = SHOWN if len(model.names) <= 50 else 4000  # inverting many columns takes its time
    count = int(np.clip(given, 2000, most)) if data is not None else 2000
    if model.conditional:
        if data is None or data[1] is None:
            return None, None
        at = np.random.default_rng(seed).integers(len(data[1]), size=count)
        return model.sample(count, seed, data[1][at]), data[1][at]
    return model.sample(count, seed, None), None


def choice(count: int, limit: int, seed: int) -> np.ndarray:
    """Row numbers, in order: all, or ``limit`` of them drawn without replacement."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def pick(rows: np.ndarray | None, at: np.ndarray) -> np.ndarray | None:
    """Some rows of what may be absent."""
    return None if rows is None else rows[at]


def training(model: Model) -> dict[str, Any] | None:
    """The training curves, if the model has a history."""
    history = [dict(entry) for entry in model.estimator.history_ or []]
    if not history:
        return None
    return {"figure": picture(figures.training_figure(history)), "evaluations": len(history)}


def data_facts(
    model: Model, values: np.ndarray, scores: np.ndarray, given: int, scored: np.ndarray
) -> dict[str, Any]:
    """The mean nats of the rows, its standard error, and a Gaussian's."""
    finite = scores[np.isfinite(scores)]
    return {
        "nats": float(-finite.mean()) if len(finite) else None,
        "error": float(finite.std() / math.sqrt(len(finite))) if len(finite) else None,
        "gaussian": None if model.conditional else gaussian_nats(values),
        "scored": len(scored),
        "given": given,
        "impossible": int(len(scores) - len(finite)),
    }


def comparison(
    model: Model, values: np.ndarray | None, samples: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Pictures of data against samples: pairs of the most structured columns, marginals.

    Arguments:
        model: For names and lattices.
        values, samples: Shape (N, D) each, or None.
        seed: Of the rows drawn.
    """
    names = labels(model.names)
    result: dict[str, Any] = {"pairs": None, "marginals": None}
    compare = None
    if values is not None and samples is not None:
        compare = [ks_between(values[:, i], samples[:, i]) for i in range(len(names))]
        if len(names) > 1:
            chosen = most_structured(values, seed=seed)
            drawn = figures.pair_figure(
                values[:, chosen],
                samples[:, chosen],
                [names[i] for i in chosen],
                [model.lattices[i] for i in chosen],
                seed=seed,
            )
            gap = np.abs(rank_correlations(values) - rank_correlations(samples))
            at = np.unravel_index(int(gap.argmax()), gap.shape)
            result["pairs"] = {
                "figure": picture(drawn),
                "count": len(chosen),
                "all": len(chosen) == len(names),
                "gap": float(gap.max()),
                "gap_names": [model.names[int(i)] for i in at],
                "points": min(3000, len(values), len(samples)),
            }
    if values is None and samples is None:
        return result
    if len(names) <= HISTOGRAMS:
        chosen = list(range(len(names)))
    elif compare is not None:
        chosen = sorted(np.argsort(-np.array(compare), kind="stable")[:HISTOGRAMS].tolist())
    else:
        chosen = list(range(HISTOGRAMS))
    drawn = figures.marginals_figure(
        None if values is None else values[:, chosen],
        None if samples is None else samples[:, chosen],
        [names[i] for i in chosen],
        [model.lattices[i] for i in chosen],
    )
    result["marginals"] = {
        "figure": picture(drawn),
        "count": len(chosen),
        "ks": max(compare) if compare else None,
        "ks_name": model.names[int(np.argmax(compare))] if compare else None,
        "chance": (
            ks_by_chance(len(values), len(samples))
            if values is not None and samples is not None
            else None
        ),
    }
    return result


def calibration(
    model: Model,
    values: np.ndarray,
    context: np.ndarray | None,
    scores: np.ndarray,
    samples: np.ndarray | None,
    sample_context: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    """Latents against the base: pictures of the worst coordinates, numbers of all."""
    z = model.normal_scores(model.latents(model.spread_out(values, seed), context))
    found: Calibration = calibrate(z)
    worst = sorted(found.worst[:PANELS])
    # Without a mix each latent belongs to the column at its place.
    mixed = str(model.estimator.settings_.get("mix", "none")) != "none"
    own = labels(model.names, 18)
    titles = [f"z{i + 1}" if mixed else f"z{i + 1}  {own[i]}" for i in range(z.shape[1])]
    sampled = None if samples is None else model.log_prob(samples, sample_context)
    return {
        "joint": picture(figures.joint_figure(found, scores, sampled)),
        "pit": picture(figures.pit_figure(found, worst, titles)),
        "quantiles": picture(figures.quantile_figure(found, worst, titles)),
        "shown": len(worst),
        "rows": len(z),
        "mixed": mixed,
        "joint_ks": found.joint_ks,
        "chance": found.chance,
        "worst_ks": float(found.ks.max()),
        "norm_mean": float(found.squared_norm.mean()),
        "density_ks": None if sampled is None else ks_between(scores, sampled),
        "student": str(model.estimator.settings_.get("base", "normal")) != "normal",
        "dequantised": any(model.steps),
        "table": [
            {
                "latent": i + 1,
                "name": "" if mixed else model.names[i],
                "mean": found.mean[i],
                "spread": found.spread[i],
                "ks": found.ks[i],
            }
            for i in range(z.shape[1])
        ],
    }


def extremes(
    model: Model, values: np.ndarray, scored: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """The most and least likely rows in data units, unusual values marked.

    Arguments:
        model: For names.
        values: Rows (N, D).
        scored: Which of them have scores.
        scores: Their log-densities, as many.
    """
    order = np.argsort(scores, kind="stable")
    least, most = order[:EXTREMES], order[::-1][:EXTREMES]
    low, high = np.quantile(values, [0.005, 0.995], axis=0)
    middle = np.median(values, axis=0)
    width = np.where(high > low, high - low, 1.0)
    if values.shape[1] > CELLS:
        away = (np.abs(values[scored[least]] - middle) / width).max(0)
        chosen = sorted(np.argsort(-away, kind="stable")[:CELLS].tolist())
    else:
        chosen = list(range(values.shape[1]))

    def table(rows: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "row": int(scored[row]) + 1,
                "score": float(scores[row]),
                "cells": [
                    {
                        "value": float(values[scored[row], i]),
                        "rare": not low[i] <= values[scored[row], i] <= high[i],
                    }
                    for i in chosen
                ],
            }
            for row in rows
        ]

    return {
        "names": [model.names[i] for i in chosen],
        "all": len(chosen) == values.shape[1],
        "least": table(least),
        "most": table(most),
    }


def certificate(
    model: Model,
    data: tuple[np.ndarray, np.ndarray | None] | None,
    samples: np.ndarray | None,
    context: np.ndarray | None,
) -> dict[str, Any]:
    """The certificate, measured on rows or samples, and what inverting samples took."""
    result: dict[str, Any] = {"inversion": None, "measured": None}
    if data is not None:
        at = choice(len(data[0]), MEASURED, 0)
        steps = model.certificate(data[0][at], pick(data[1], at))
        result["measured"] = f"{number(len(at))} of the rows given"
    elif samples is not None:
        at = choice(len(samples), MEASURED, 0)
        steps = model.certificate(samples[at], pick(context, at))
        result["measured"] = f"{number(len(at))} samples"
    else:
        steps = model.certificate(None, None)
    if samples is not None:
        at = choice(len(samples), INVERTED, 0)
        some, some_context = samples[at], pick(context, at)
        z = model.latents(some, some_context)
        error = round_trip(some, model.inverse(z, some_context))
        sweeps = model.sweeps(z, some_context)
        for step, sweep in zip(steps, sweeps, strict=True):
            step["sweeps"] = sweep
        result["inversion"] = {
            "rows": len(some),
            "error": float(error.max()),
            "median": float(np.median(error)),
            "sweeps": float(np.median([sweep["median"] for sweep in sweeps])),
            "most": max(sweep["most"] for sweep in sweeps),
        }
    result["certificate"] = steps
    return result
