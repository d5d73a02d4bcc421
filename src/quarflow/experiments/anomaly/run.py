"""The comparison, set by set; what was found before is kept."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from quarflow.experiments.anomaly.detectors import OURS, PEERS, ours
from quarflow.experiments.anomaly.sets import SETTINGS, Task, set_files, task
from quarflow.experiments.machine import machine
from quarflow.files import write_json

__all__ = ["compare"]

Results = dict[str, Any]


def compare(
    folder: Path,
    output: Path,
    *,
    seeds: Sequence[int] = (0,),
    sets: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> Results:
    """Measure every detector on every set, fitted to all rows and to normal ones.

    Arguments:
        folder: Of ADBench's .npz files.
        output: A JSON file for the results, written after each set. What it holds already is
            taken from there.
        seeds: Of the choice of rows and of the detectors.
        sets: Names of those to measure, all if empty.
        say: Told about each.

    Raises:
        ValueError: if the folder holds no sets.
    """
    results: Results = {"machine": machine("cpu"), "found": {}}
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    for seed in seeds:
        for setting in SETTINGS:
            for name, path in set_files(folder):
                key = f"{setting} / {name} / {seed}"
                if key in results["found"] or (sets and name not in sets):
                    continue
                results["found"][key] = measured(task(path, setting, seed), setting, seed)
                write_json(output, results)
                say(_line(key, results["found"][key]))

    return results


def measured(rows: Task, setting: str, seed: int) -> dict[str, Any]:
    """Area under ROC, average precision and seconds of every detector."""
    found: dict[str, Any] = {
        "fitted": len(rows.fitted),
        "scored": len(rows.scored),
        "odd": int(rows.odd.sum()),
    }
    contamination: Any = "auto" if setting == SETTINGS[0] else "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that depend, and of ties in LOF
        begun = time.perf_counter()
        scores = ours(rows.fitted, rows.scored, seed, contamination)
        seconds = dict.fromkeys(OURS, time.perf_counter() - begun)
        for name, detector in PEERS.items():
            begun = time.perf_counter()
            scores[name] = detector(rows.fitted, rows.scored, seed)
            seconds[name] = time.perf_counter() - begun
    for name, score in scores.items():
        found[name] = {
            "auc": float(roc_auc_score(rows.odd, score)),
            "ap": float(average_precision_score(rows.odd, score)),
            "seconds": float(np.round(seconds[name], 1)),
        }

    return found


def _line(key: str, found: dict[str, Any]) -> str:
    parts = [
        f"{name} {found[name]['auc']:.3f} {found[name]['ap']:.3f}" for name in (*OURS, *PEERS)
    ]

    return f"{key}: {', '.join(parts)} ({found[OURS[0]]['seconds']:.0f} s)"
