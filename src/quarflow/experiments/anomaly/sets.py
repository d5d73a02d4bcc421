"""Sets of rows with known anomalies, and which of them are fitted to and scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SETTINGS", "Task", "set_files", "task"]

SETTINGS = ("all rows", "normal rows")
MOST_FITTED, MOST_SCORED = 10_000, 50_000
LEAST_ODD = 100  # anomalies that are scored, if there are as many


@dataclass(frozen=True)
class Task:
    """What is fitted to, what is scored, and which of that is an anomaly.

    Attributes:
        fitted: Rows (n, D), standardised by their own means and deviations.
        scored: Rows (m, D), in the same units.
        odd: Which of them are anomalies, (m).
    """

    fitted: NDArray[np.float64]
    scored: NDArray[np.float64]
    odd: NDArray[np.bool_]


def set_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each set in a folder of ADBench's .npz files, by name.

    Raises:
        ValueError: if there are none.
    """
    for place in (folder, folder / "adbench", folder / "tabular" / "adbench"):
        files = sorted(place.glob("*_*.npz"), key=lambda path: path.stem.partition("_")[2].lower())
        if files:
            yield from ((path.stem.partition("_")[2], path) for path in files)
            return
    raise ValueError(f"{folder} holds no sets of ADBench, such as 38_thyroid.npz.")


def task(path: Path, setting: str, seed: int) -> Task:
    """The rows of a set, drawn at random.

    Of ``all rows`` those fitted to are any, and all are scored. Of ``normal rows`` they are drawn
    from half of the normal ones, and the other half is scored, with all anomalies. 10,000 rows
    are fitted to at most. 50,000 are scored at most: there anomalies keep their share, or are
    100 at least.
    """
    data = np.load(path, allow_pickle=False)
    X, odd = data["X"].astype(np.float64), data["y"] > 0
    rng = np.random.default_rng(seed)
    if setting == "all rows":
        fitted = rng.permutation(len(X))
        scored = np.arange(len(X))
    else:
        normal = rng.permutation(np.flatnonzero(~odd))
        fitted = normal[: len(normal) // 2]
        scored = np.concatenate([normal[len(normal) // 2 :], np.flatnonzero(odd)])
    fitted, scored = fitted[:MOST_FITTED], _fewer(scored, odd, rng)
    told = X[fitted].std(0) > 0
    mean, scale = X[fitted][:, told].mean(0), X[fitted][:, told].std(0)

    return Task(
        (X[fitted][:, told] - mean) / scale, (X[scored][:, told] - mean) / scale, odd[scored]
    )


def _fewer(
    scored: NDArray[np.int64], odd: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    if len(scored) <= MOST_SCORED:
        return scored
    anomalies = rng.permutation(scored[odd[scored]])
    share = round(MOST_SCORED * len(anomalies) / len(scored))
    anomalies = anomalies[: max(share, LEAST_ODD)]
    others = rng.permutation(scored[~odd[scored]])

    return np.concatenate([others[: MOST_SCORED - len(anomalies)], anomalies])
