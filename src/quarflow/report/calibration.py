"""Numbers that say whether a fitted flow fits: latents against the base, samples against data."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


def ks_to_uniform(u: np.ndarray) -> float:
    """The largest gap between the distribution of ``u`` (N,) and the uniform one on [0, 1].

    Example:
        >>> round(ks_to_uniform(np.array([0.25, 0.75])), 3)
        0.25
    """
    u = np.sort(u)
    step = np.arange(len(u) + 1) / len(u)
    return float(max((step[1:] - u).max(), (u - step[:-1]).max()))


def ks_between(a: np.ndarray, b: np.ndarray) -> float:
    """The largest gap between the distributions of two sets of numbers.

    Example:
        >>> ks_between(np.array([0.0, 1.0]), np.array([5.0, 6.0]))
        1.0
    """
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    below_a = np.searchsorted(a, at, side="right") / len(a)
    below_b = np.searchsorted(b, at, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


def ks_by_chance(count: int, other: float = math.inf) -> float:
    """The KS distance that a perfect model exceeds in 1 of 20 draws of ``count`` rows."""
    return 1.358 * math.sqrt(1 / count + 1 / other)


def normal_scores(z: np.ndarray, df: np.ndarray | float | None = None) -> np.ndarray:
    """Map latents ``z`` (N, D) to numbers that are standard normal if the model fits.

    The identity for a normal base (df None). For a Student-t base with ``df`` degrees of freedom
    each coordinate goes through the base's distribution function and back through the normal's,
    from the nearer tail for exactness.
    """
    if df is None:
        return z
    tail = np.clip(stats.t.sf(np.abs(z), df), 1e-300, 0.5)
    return np.asarray(np.sign(z) * stats.norm.isf(tail))


@dataclass(frozen=True)
class Calibration:
    """Latents against the base: per coordinate (D,), and all together through the squared norm."""

    scores: np.ndarray  # (N, D), standard normal if the model fits
    mean: np.ndarray
    spread: np.ndarray
    ks: np.ndarray
    squared_norm: np.ndarray  # (N,), chi-square with D degrees of freedom if the model fits
    joint_ks: float
    chance: float  # the KS distance that chance alone exceeds once in twenty

    @property
    def pit(self) -> np.ndarray:
        """Probability integral transform (N, D): uniform on [0, 1] if the model fits."""
        return np.asarray(stats.norm.cdf(self.scores))

    @property
    def worst(self) -> list[int]:
        """Coordinates, the largest KS distance first."""
        return [int(i) for i in np.argsort(-self.ks, kind="stable")]


def calibrate(scores: np.ndarray) -> Calibration:
    """Compare normal scores (N, D) with the standard normal, each coordinate and jointly."""
    squared = (scores**2).sum(1)
    pit = stats.norm.cdf(scores)
    return Calibration(
        scores=scores,
        mean=scores.mean(0),
        spread=scores.std(0),
        ks=np.array([ks_to_uniform(column) for column in pit.T]),
        squared_norm=squared,
        joint_ks=ks_to_uniform(np.asarray(stats.chi2.cdf(squared, scores.shape[1]))),
        chance=ks_by_chance(len(scores)),
    )


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """The (D, D) Spearman correlations of ``values`` (N, D); 0 where a column is constant."""
    order = stats.rankdata(values, axis=0)
    order -= order.mean(0)
    length = np.sqrt((order**2).sum(0))
    order /= np.where(length > 0, length, 1.0)
    return np.asarray(order.T @ order)


def gaussian_nats(fit: np.ndarray, score: np.ndarray | None = None) -> float | None:
    """Mean -log p of a full-covariance Gaussian fitted to ``fit``, on ``score`` or on itself.

    None when the covariance is singular.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(5000, 2))
        >>> round(gaussian_nats(x) / 2.84, 1)
        1.0
    """
    score = fit if score is None else score
    if len(fit) <= fit.shape[1] or len(fit) < 2:
        return None
    mean, covariance = fit.mean(0), np.atleast_2d(np.cov(fit, rowvar=False))
    scale = np.sqrt(np.diag(covariance))
    if not (scale > 0).all():
        return None
    correlation = covariance / np.outer(scale, scale)
    try:
        factor = np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        return None
    white = np.linalg.solve(factor, ((score - mean) / scale).T)
    logdet = float(np.log(np.diag(factor)).sum() + np.log(scale).sum())
    return float(
        0.5 * (white**2).sum(0).mean() + logdet + 0.5 * fit.shape[1] * math.log(2 * math.pi)
    )


def round_trip(x: np.ndarray, back: np.ndarray) -> np.ndarray:
    """abs(back - x) / (1 + abs(x)) of rows (N, D), per row the largest: (N,).

    Example:
        >>> round_trip(np.array([[1.0, 0.0]]), np.array([[1.5, 0.0]]))
        array([0.25])
    """
    return np.asarray((np.abs(back - x) / (1 + np.abs(x))).max(1))
