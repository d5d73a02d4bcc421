"""What finds anomalies: scores of rows, more is odder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

from quarflow.density.table import QuARDensity

__all__ = ["OURS", "PEERS", "ecod", "ours"]

Array = NDArray[np.float64]
Detector = Callable[[Array, Array, int], Array]

OURS = ("quarflow", "quarflow, -log p")
STEPS, BATCH = 2000, 256  # of training
MOST = 1e9  # stands for infinity, which measures of ranks refuse


def ours(
    fitted: Array, scored: Array, seed: int, contamination: Literal["none", "auto"]
) -> dict[str, Array]:
    """Anomaly scores and -log p of one fit with few steps."""
    epochs = max(round(STEPS * BATCH / len(fitted)), 1)
    density = QuARDensity(
        batch_size=BATCH, max_epochs=epochs, contamination=contamination, random_state=seed
    ).fit(fitted)
    found = density.anomaly_score(scored), -density.score_samples(scored)

    return {name: np.minimum(s, MOST) for name, s in zip(OURS, found, strict=True)}


def forest(fitted: Array, scored: Array, seed: int) -> Array:
    """Isolation forest of 100 trees."""
    return -IsolationForest(random_state=seed).fit(fitted).score_samples(scored)


def lof(fitted: Array, scored: Array, seed: int) -> Array:
    """Local outlier factor with 20 neighbours."""
    return -LocalOutlierFactor(novelty=True).fit(fitted).score_samples(scored)


def gaussian(fitted: Array, scored: Array, seed: int) -> Array:
    """A Gaussian mixture of one component, PyOD's default."""
    return _mixture(fitted, 1, seed).score_samples(scored) * -1


def mixture(fitted: Array, scored: Array, seed: int) -> Array:
    """A Gaussian mixture of 1 to 16 components, as many as the BIC says."""
    models = [_mixture(fitted, k, seed) for k in (1, 2, 4, 8, 16)]

    return -min(models, key=lambda model: model.bic(fitted)).score_samples(scored)


def _mixture(fitted: Array, components: int, seed: int) -> GaussianMixture:
    return GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(fitted)


def ecod(fitted: Array, scored: Array, seed: int = 0) -> Array:
    """Sum over columns of -log of the smaller tail of their empirical distribution.

    As in PyOD, the larger of left and right tail counts in each column, or the one that the
    skewness chooses, which is never larger.

    Reference:
        | ECOD: Unsupervised Outlier Detection Using Empirical Cumulative Distribution Functions
        | (Li et al., 2022), https://arxiv.org/abs/2201.00382

    Example:
        >>> x = np.arange(9.0)[:, None]
        >>> ecod(x, np.array([[4.0], [8.0], [20.0]])).round(2)
        array([0.51, 1.61, 2.3 ])
    """
    total, n = np.zeros(len(scored)), len(fitted)
    for column, x in zip(np.sort(fitted, axis=0).T, scored.T, strict=True):
        below = np.searchsorted(column, x, "right")
        above = n - np.searchsorted(column, x, "left")
        total -= np.log((np.minimum(below, above) + 1) / (n + 1))

    return total


PEERS: dict[str, Detector] = {
    "IsolationForest": forest,
    "LOF": lof,
    "GMM, one": gaussian,
    "GMM, BIC": mixture,
    "ECOD": ecod,
}
