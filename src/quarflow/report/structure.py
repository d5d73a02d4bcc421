"""Which columns hold the most structure: how far each pair is from a Gaussian copula."""

import math
from functools import lru_cache

import numpy as np
from scipy import stats

BINS = 10


def ranks(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The ranks 0 ... N-1 of each column of ``values`` (N, D); ties are broken at random."""
    rng = np.random.default_rng(seed)
    order = np.empty(values.shape, dtype=np.int64)
    for column in range(values.shape[1]):
        sorted_rows = np.lexsort((rng.random(len(values)), values[:, column]))
        order[sorted_rows, column] = np.arange(len(values))
    return order


@lru_cache(maxsize=1)
def gaussian_cells() -> tuple[np.ndarray, np.ndarray]:
    """Correlations (R,) and what a Gaussian pair puts in each of BINS x BINS cells (R, B²).

    The cells hold one tenth of the rows in each direction, whatever the columns are.
    """
    correlations = np.linspace(-0.995, 0.995, 200)
    edges = stats.norm.ppf(np.linspace(0, 1, BINS + 1))
    inside = (np.arange(BINS * 40) + 0.5) / (BINS * 40)  # midpoints, in probability
    x = stats.norm.ppf(inside)
    table = []
    for r in correlations:
        below = stats.norm.cdf((edges - r * x[:, None]) / math.sqrt(1 - r * r))
        table.append(np.diff(below, axis=1).reshape(BINS, 40, BINS).mean(1).ravel() / BINS)
    return correlations, np.clip(np.stack(table), 1e-12, None)


def structure(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric (D, D) matrix, in nats: how far each pair is from a Gaussian copula.

    The divergence is taken between the pair's rank histogram and that of a Gaussian pair with the
    same rank correlation: 0 means that correlation tells all there is to tell.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> angle = rng.random(2000) * 6.28
        >>> ring = np.stack([np.cos(angle), np.sin(angle), rng.normal(size=2000)], 1)
        >>> gap = structure(ring)
        >>> bool(gap[0, 1] > 0.5 and gap[0, 2] < 0.02)
        True
    """
    count, features = values.shape
    order = ranks(values, seed)
    cell = order * BINS // count
    scores = stats.norm.ppf((order + 0.5) / count)
    correlation = np.atleast_2d(np.corrcoef(scores, rowvar=False))
    known, expected = gaussian_cells()
    bias = (BINS - 1) ** 2 / (2 * count)
    result = np.zeros((features, features))
    for i in range(features):
        for j in range(i):
            seen = np.bincount(cell[:, i] * BINS + cell[:, j], minlength=BINS * BINS) / count
            law = expected[min(np.searchsorted(known, correlation[i, j]), len(known) - 1)]
            some = seen > 0
            gap = float((seen[some] * np.log(seen[some] / law[some])).sum()) - bias
            result[i, j] = result[j, i] = max(gap, 0.0)
    return result


def most_structured(
    values: np.ndarray, count: int = 5, seed: int = 0, rows: int = 5000
) -> list[int]:
    """Up to ``count`` columns of ``values`` (N, D), picked by ``structure``, in column order.

    Pairs are taken from the furthest from Gaussian on, until their columns are enough; a last
    place that no whole pair fits in goes to the column with the most structure against the rest.

    Arguments:
        values: Shape (N, D).
        count: How many columns.
        seed: Of the rows looked at, and of how ties are broken.
        rows: How many are looked at, at most.
    """
    features = values.shape[1]
    if features <= count:
        return list(range(features))
    if len(values) > rows:
        values = values[np.random.default_rng(seed).choice(len(values), rows, replace=False)]
    gaps = structure(values, seed)
    first, second = np.triu_indices(features, 1)
    chosen: list[int] = []
    for at in np.argsort(-gaps[first, second], kind="stable"):
        new = [int(i) for i in (first[at], second[at]) if i not in chosen]
        if len(chosen) + len(new) <= count:
            chosen += new
        if len(chosen) >= count - 1:
            break
    while len(chosen) < count:
        gain = gaps[chosen].max(0)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
    return sorted(chosen)
