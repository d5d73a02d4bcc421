"""A model of a table in closed form: a Gaussian of the numbers for each row of a table of codes.

It answers what a fitted model answers (quarflow.density.questions_model.Answers), so that what
is made of the answers can be compared with formulas.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from quarflow.data.columns import Column, Columns


@dataclass
class Known:
    """What is known of each row: codes (N, d), -1 where unknown, and which numbers (N, Dn)."""

    codes: np.ndarray
    numbers: np.ndarray


class ClosedForm:
    """p(codes) by a table, p(numbers | codes) a Gaussian each.

    Arguments:
        columns: Numbers, which may have point masses, and categories, in any order.
        weights: Of all combinations of codes: those of categories and of point masses ("which
            of them, or none"), in the order of the columns.
        means, covariances: Of the numbers, for each combination in that order, (K, Dn) and
            (K, Dn, Dn).
    """

    def __init__(self, columns, weights, means, covariances):
        self.columns = Columns(tuple(columns))
        self.numbers = [j for j, c in enumerate(columns) if c.kind != "category"]
        self.discrete = [
            j for j, c in enumerate(columns) if c.kind == "category" or c.point_masses
        ]
        sizes = [
            len(columns[j].categories) or len(columns[j].point_masses) + 1 for j in self.discrete
        ]
        combinations = list(itertools.product(*map(range, sizes)))
        self.codes = np.array(combinations, int).reshape(len(combinations), len(sizes))
        self.log_weights = np.log(np.asarray(weights, float).ravel())
        self.means = np.asarray(means, float).reshape(len(self.codes), len(self.numbers))
        self.covariances = np.asarray(covariances, float).reshape(
            len(self.codes), len(self.numbers), len(self.numbers)
        )
        self.calls = 0

    # The five answers

    def log_prob(self, x, given, modelled, c=None):
        x, given, modelled = (t.numpy() for t in (x, given, modelled))
        self.calls += 1
        both = self._log_joint(x, self._known(x, given | modelled))
        alone = self._log_joint(x, self._known(x, given))
        return torch.from_numpy(_sum(both) - _sum(alone))

    def probabilities(self, x, given, column, c=None):
        x, given = x.numpy(), given.numpy().copy()
        given[:, column] = False
        log_joint = self._log_joint(x, self._known(x, given))
        part = np.exp(log_joint - _sum(log_joint)[:, None])
        which = self.discrete.index(column)
        size = self.codes[:, which].max() + 1
        found = [part[:, self.codes[:, which] == k].sum(1) for k in range(size)]
        return torch.from_numpy(np.stack(found, 1))

    def sample(self, x, given, modelled, c=None, generator=None):
        x, given, modelled = (t.numpy() for t in (x, given, modelled))
        seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator))
        rng = np.random.default_rng(seed)
        out = np.where(given, x, np.nan)
        log_joint = self._log_joint(x, self._known(x, given))
        total = np.exp(log_joint - _sum(log_joint)[:, None]).cumsum(1)
        which = (rng.random((len(x), 1)) * total[:, -1:] > total).sum(1)
        known, numbers = self._known(x, given), np.full((len(x), len(self.numbers)), np.nan)
        normals = rng.normal(size=numbers.shape)
        for rows, seen in _patterns(known.numbers):
            for k in np.unique(which[rows]):
                some = rows[which[rows] == k]
                values = x[np.ix_(some, np.array(self.numbers)[seen])]
                rest = np.setdiff1d(range(len(self.numbers)), seen)
                mean, covariance = _given(self.means[k], self.covariances[k], rest, seen, values)
                factor = np.linalg.cholesky(covariance)
                numbers[np.ix_(some, rest)] = mean + normals[np.ix_(some, rest)] @ factor.T
        out[:, self.numbers] = np.where(modelled[:, self.numbers], numbers, out[:, self.numbers])
        for d, j in enumerate(self.discrete):
            codes = self.codes[which, d]
            masses = np.array([value for value, _ in self.columns.columns[j].point_masses])
            here = modelled[:, j] & ((codes < len(masses)) | (len(masses) == 0))
            out[here, j] = masses[codes[here]] if len(masses) else codes[here]
        return torch.from_numpy(out)

    def noise(self, x, given, modelled, c=None):
        x, given, modelled = (t.numpy() for t in (x, given, modelled))
        out = np.zeros_like(x)
        for j, law in self._one_by_one(x, given, modelled):
            out[modelled[:, j], j] = law.score(x[modelled[:, j], j])
        return torch.from_numpy(out)

    def from_noise(self, z, x, given, modelled, c=None):
        z, x, given, modelled = (t.numpy() for t in (z, x, given, modelled))
        out = np.where(given, x, np.nan)
        for j, law in self._one_by_one(out, given, modelled):
            out[modelled[:, j], j] = law.value(z[modelled[:, j], j])
        return torch.from_numpy(out)

    # Formulas

    def law(self, x, given, j):
        """The mixture of normals that number j is (its continuous part), given others."""
        given = np.array(given)
        given[:, j] = False
        known = self._known(x, given)
        if j in self.discrete:
            known.codes[:, self.discrete.index(j)] = len(self.columns.columns[j].point_masses)
        return self._law(x, known, j)

    def _one_by_one(self, x, given, modelled):
        """Each modelled number given those before it; x is read again each time."""
        known = self._known(x, given)
        for d, j in enumerate(self.discrete):
            if j in self.numbers:  # the continuous part only
                known.codes[modelled[:, j], d] = len(self.columns.columns[j].point_masses)
            else:
                there = modelled[:, j] & ~np.isnan(x[:, j])
                known.codes[there, d] = x[there, j]
        for n, j in enumerate(self.numbers):
            rows = modelled[:, j]
            if rows.any():
                yield j, self._law(x[rows], Known(known.codes[rows], known.numbers[rows]), j)
                known.numbers[rows, n] = True

    def _law(self, x, known, j):
        log_joint = self._log_joint(x, known)
        weights = np.exp(log_joint - _sum(log_joint)[:, None])
        n = self.numbers.index(j)
        means, spreads = np.zeros_like(weights), np.zeros_like(weights)
        for rows, seen in _patterns(known.numbers):
            for k in range(len(self.codes)):
                values = x[np.ix_(rows, np.array(self.numbers)[seen])]
                mean, square = _given(self.means[k], self.covariances[k], [n], seen, values)
                means[rows, k], spreads[rows, k] = mean[:, 0], math.sqrt(square[0, 0])
        return Mixture(weights, means, spreads)

    def _known(self, x, mask):
        codes = np.full((len(x), len(self.discrete)), -1)
        numbers = mask[:, self.numbers] & ~np.isnan(x[:, self.numbers])
        for d, j in enumerate(self.discrete):
            masses = [value for value, _ in self.columns.columns[j].point_masses]
            here = mask[:, j] & ~np.isnan(x[:, j])
            if not masses:
                codes[here, d] = x[here, j]
                continue
            hit = x[:, j, None] == masses
            codes[here, d] = np.where(hit.any(1), hit.argmax(1), len(masses))[here]
            numbers[:, self.numbers.index(j)] &= ~hit.any(1)
        return Known(codes, numbers)

    def _log_joint(self, x, known):
        """Log of weight times density of what is known, for each combination: (N, K)."""
        fits = (known.codes[:, None] == self.codes) | (known.codes[:, None] == -1)
        out = np.where(fits.all(-1), self.log_weights, -np.inf)
        for rows, seen in _patterns(known.numbers):
            if not len(seen):
                continue
            values = x[np.ix_(rows, np.array(self.numbers)[seen])]
            for k in range(len(self.codes)):
                normal = stats.multivariate_normal(
                    self.means[k, seen], self.covariances[k][np.ix_(seen, seen)]
                )
                out[rows, k] += normal.logpdf(values)
        return out


@dataclass
class Mixture:
    """Mixtures of normals, one a row; all (N, K)."""

    weights: np.ndarray
    means: np.ndarray
    spreads: np.ndarray

    def mean(self):
        return (self.weights * self.means).sum(1)

    def cdf(self, v):
        return (self.weights * stats.norm.cdf((v[:, None] - self.means) / self.spreads)).sum(1)

    def above(self, v):
        return (self.weights * stats.norm.sf((v[:, None] - self.means) / self.spreads)).sum(1)

    def density(self, v):
        scores = (v[:, None] - self.means) / self.spreads
        return (self.weights * stats.norm.pdf(scores) / self.spreads).sum(1)

    def score(self, v):
        below, above = self.cdf(v), self.above(v)
        return np.where(below < above, stats.norm.ppf(below), stats.norm.isf(above))

    def value(self, z):
        """By bisection."""
        low = (self.means - 40 * self.spreads).min(1)
        high = (self.means + 40 * self.spreads).max(1)
        for _ in range(80):
            middle = (low + high) / 2
            less = self.score(middle) < z
            low, high = np.where(less, middle, low), np.where(less, high, middle)
        return (low + high) / 2


def _given(mean, covariance, a, b, values):
    """Means (n, a) and covariance of one part of a Gaussian, given values (n, b) of another."""
    gain = np.linalg.solve(covariance[np.ix_(b, b)], covariance[np.ix_(b, a)])
    return mean[a] + (values - mean[b]) @ gain, covariance[np.ix_(a, a)] - covariance[
        np.ix_(a, b)
    ] @ gain


def _patterns(masks):
    """Rows that have the same columns, and which these are."""
    if not len(masks):
        return
    kinds, which = np.unique(masks, axis=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        yield np.flatnonzero(which.ravel() == k), np.flatnonzero(kind)


def _sum(logs):
    return np.logaddexp.reduce(logs, 1)


def gaussian(covariance, mean=None, names="abcdefgh"):
    """Numbers only."""
    covariance = np.asarray(covariance, float)
    mean = np.zeros(len(covariance)) if mean is None else mean
    columns = [
        Column(name=name, mean=float(m), scale=float(s))
        for name, m, s in zip(names, mean, np.sqrt(np.diag(covariance)), strict=False)
    ]
    return ClosedForm(columns, [1.0], mean, covariance)


def mixed():
    """size, cut (three labels), paid (with a mass at 0), new (bool): all depend on all."""
    columns = [
        Column(name="size", mean=1.0, scale=2.0),
        Column(name="cut", kind="category", categories=("fair", "good", "ideal")),
        Column(name="paid", mean=5.0, scale=3.0, point_masses=((0.0, 0.3),)),
        Column(name="new", kind="category", categories=(False, True)),
    ]
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(12) * 3)  # cut x (mass or not) x new
    means = rng.normal(size=(12, 2)) * [2.0, 1.5] + [1.0, 5.0]
    factors = rng.normal(size=(12, 2, 2)) * 0.7 + np.eye(2)
    return ClosedForm(columns, weights, means, factors @ factors.transpose(0, 2, 1))
