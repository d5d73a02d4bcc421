r"""Gaussians in closed form, and which of them rows that were held out bear out best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

__all__ = ["Gaussian", "best_gaussian", "marginal_entropies"]

Array = NDArray[np.float64]

MOST_FEATURES = 4096  # beyond, a covariance takes longer than it is worth
MOST_FACTORS = 64
LEAST_SHARE = 1e-5  # of its variance that every column keeps for itself: copies have a density
ROUNDS, SETTLED = 300, 1e-5  # of the factors


@dataclass(frozen=True)
class Gaussian:
    r"""Given c, z = matrix x + shift + context c is standard normal.

    Attributes:
        kind: ``independent`` columns, ``shrunk`` covariance or ``factors``.
        matrix: Lower triangular with a positive diagonal, shape (D, D).
        shift: Shape (D).
        context: Shape (D, C).
    """

    kind: str
    matrix: Array
    shift: Array
    context: Array

    def standardised(self, x: Array, c: Array | None = None) -> Array:
        """Rows z of given rows, shape (n, D)."""
        z = x @ self.matrix.T + self.shift

        return z if c is None else z + c @ self.context.T

    @property
    def ladj(self) -> float:
        """Log abs det of the matrix."""
        return float(np.log(self.matrix.diagonal()).sum())

    def nats(self, x: Array, c: Array | None = None) -> Array:
        """-log p of each row, shape (n)."""
        z = self.standardised(x, c)

        return np.asarray(0.5 * ((z * z).sum(1) + x.shape[1] * math.log(2 * math.pi)) - self.ladj)


def gaussians(x: Array, c: Array | None = None, w: Array | None = None) -> Iterator[Gaussian]:
    """Those that rows (n, D) suggest: means are linear in the context (n, C), if there is one.

    Rows count by weights w (n), if there are any, and are as many as tell the same by Kish.
    Independent columns come first.
    """
    D, w = x.shape[1], _shares(x, w)
    n = 1 / float(w @ w)
    mean, slope = _regression(x, c, w)
    if c is None:
        spread = np.sqrt(w @ (x - mean) ** 2)
        mean = _settled(mean, 0.0, spread / math.sqrt(n), n)
    left = x - mean if c is None else x - mean - c @ slope.T
    scale = np.sqrt(w @ (left * left) + 1e-12)
    left /= scale
    scale = _settled(scale, 1.0, math.sqrt(0.5 / n), n)

    def standard(kind: str, matrix: Array) -> Gaussian:
        matrix = matrix / scale

        return Gaussian(kind, matrix, -matrix @ mean, -matrix @ slope)

    yield standard("independent", np.eye(D))
    if 1 < D <= MOST_FEATURES:
        correlation = (left * w[:, None]).T @ left
        yield standard("shrunk", _whitening(_shrunk(left, correlation, w)))
        factors = _factors(correlation, n)
        if factors is not None:
            yield standard("factors", _whitening(factors))


def _shares(x: Array, w: Array | None) -> Array:
    """What part of the whole each row is, (n)."""
    return np.full(len(x), 1 / len(x)) if w is None else w / w.sum()


def _settled(found: Array, usual: float, error: Array | float, rows: float) -> Array:
    """Estimates, or what standardised columns have, where that is as good (by the BIC).

    Estimating them once more, from fewer rows than columns were standardised by, adds noise.
    """
    return np.where(np.abs(found - usual) < math.sqrt(math.log(rows)) * error, usual, found)


def _regression(x: Array, c: Array | None, w: Array) -> tuple[Array, Array]:
    """Mean at c = 0, (D), and slopes, (D, C), by a ridge as strong as one row."""
    mean = w @ x
    if c is None:
        return mean, np.zeros((x.shape[1], 0))
    centre = w @ c
    moved = c - centre
    weighed = moved.T * w
    one = float(w @ w)  # of as many rows as tell the same
    slope = np.linalg.solve(weighed @ moved + one * np.eye(c.shape[1]), weighed @ (x - mean)).T

    return mean - slope @ centre, np.asarray(slope)


def _whitening(covariance: Array) -> Array:
    """The inverse of the Cholesky factor."""
    covariance = covariance * (1 - LEAST_SHARE) + LEAST_SHARE * np.eye(len(covariance))
    lower = cholesky(covariance, lower=True)

    return np.asarray(solve_triangular(lower, np.eye(len(lower)), lower=True))


def _shrunk(x: Array, correlation: Array, w: Array) -> Array:
    """Towards independence, as far as Ledoit and Wolf say.

    Arguments:
        x: Rows of mean 0, (n, D).
        correlation: Their second moments, (D, D).
        w: What part of the whole each row is, (n).

    Reference:
        | A well-conditioned estimator for large-dimensional covariance matrices
        | (Ledoit & Wolf, 2004), https://doi.org/10.1016/S0047-259X(03)00096-4
    """
    D, squares = len(correlation), x * x
    size = float((correlation * correlation).sum())
    # how far one row's products are from their mean, over as many rows as tell the same
    noise = (float(w @ squares.sum(1) ** 2) - size) * float(w @ w)
    far = size - float(correlation.trace()) ** 2 / D
    share = min(max(noise / far, 0.0), 1.0) if far > 0 else 0.0

    return (1 - share) * correlation + share * np.eye(D)


def _factors(correlation: Array, rows: float) -> Array | None:
    r"""Factor analysis by maximum likelihood, None where there is no factor.

    There are as many factors as eigenvalues above what noise alone would have,
    :math:`(1 + \sqrt{D / n})^2`.
    """
    D = len(correlation)
    most = min(MOST_FACTORS, D // 2)
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(D, most)))[0]
    for _ in range(20):
        directions = np.linalg.qr(correlation @ directions)[0]
    values, turn = np.linalg.eigh(directions.T @ correlation @ directions)
    found = values > (1 + math.sqrt(D / rows)) ** 2
    if not found.any():
        return None
    directions = directions @ turn[:, found]
    own = np.full(D, 0.5)
    for _ in range(ROUNDS):
        # Warm subspace iteration instead of an eigendecomposition for each estimate of `own`.
        root = np.sqrt(own)
        scaled = correlation / root[:, None] / root
        directions = np.linalg.qr(scaled @ directions)[0]
        values, turn = np.linalg.eigh(directions.T @ scaled @ directions)
        loadings = root[:, None] * (directions @ turn) * np.sqrt(np.maximum(values - 1, 0))
        before, own = own, np.maximum(1 - (loadings * loadings).sum(1), 1e-3)
        if np.abs(own - before).max() < SETTLED:
            break

    return np.asarray(loadings @ loadings.T + np.diag(own))


def best_gaussian(
    x: Array,
    c: Array | None,
    valid: Array,
    valid_c: Array | None,
    w: Array | None = None,
    valid_w: Array | None = None,
) -> tuple[Gaussian, float]:
    """The one with the fewest nats on validation rows, and its nats.

    Arguments:
        x, c: Rows, (n, D), and their context, (n, C) or None.
        valid, valid_c: The same of the validation rows.
        w, valid_w: Weights of both, (n), None if all rows count the same.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 3)) + rng.normal(size=(400, 1))
        >>> best_gaussian(x[:300], None, x[300:], None)[0].kind != "independent"
        True
    """
    share = _shares(valid, valid_w)
    found = [(g, float(share @ g.nats(valid, valid_c))) for g in gaussians(x, c, w)]

    return min(found, key=lambda pair: pair[1])


def marginal_entropies(x: Array) -> Array:
    r"""Differential entropy of each column by its spacings, in nats, shape (D).

    The sum over columns is what a density of independent columns, each of any shape, can reach.

    Reference:
        | A test for normality based on sample entropy (Vasicek, 1976)

    Example:
        >>> x = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> round(float(marginal_entropies(x)[0]), 1)  # (1 + log(2 pi)) / 2
        1.4
    """
    n = len(x)
    m = max(round(math.sqrt(n)), 1)
    if n <= m:
        return np.zeros(x.shape[1])
    ordered = np.sort(x, axis=0)
    spacings = np.maximum(ordered[m:] - ordered[:-m], 1e-12)

    return np.asarray(np.log(spacings * (n / m)).mean(0))
