r"""A reference density for a bounded column, right at its bounds, and the map by its CDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_detect import TAIL_ROWS, subsample

__all__ = ["ReferenceMap", "fit_reference", "nearest_round"]

LOG_ROOT = 0.5 * float(np.log(2 * np.pi))
LEAST = -690.0  # logarithms below are cut: exp of them would underflow
TINY = 1e-300
ROUND = (0.5, 1.0, 1.5, 2.0, 3.0)  # exponents at a bound that are worth to be preferred


class ReferenceMap:
    r"""Bounded columns to normal scores, by the CDF of a reference density; d columns at once.

    With y the distance to the bound (the lower one of two) in units of s, or of the distance
    between the two bounds,

    .. math::
        G &= P(c, y^b) \quad \text{or, between two bounds,} \quad (1 - (1 - y^b)^s)^c, \\
        z &= \Phi^{-1}(G) \quad \text{or, for an upper bound alone,} \quad -\Phi^{-1}(G)

    with the regularised incomplete gamma function P. So the density goes like
    :math:`y^{bc - 1}` at the (lower) bound and, with two bounds, like :math:`(1 - y)^{s - 1}` at
    the upper one: it may be finite, zero or infinite there.

    Arguments:
        columns: Columns with a bound or two, and a shape (b, c, s).

    Reference:
        Stacy (1962), generalized gamma; Lemonte et al. (2013), exponentiated Kumaraswamy.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        def row(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        both = [c.lower is not None and c.upper is not None for c in columns]
        self.both = torch.tensor(both)
        self.mirrored = torch.tensor([c.lower is None for c in columns])
        self.lower = row([c.lower if c.lower is not None else -np.inf for c in columns])
        self.upper = row([c.upper if c.upper is not None else np.inf for c in columns])
        shapes = [c.shape or (1.0, 1.0, 1.0) for c in columns]
        self.b, self.c, self.s = (row([shape[i] for shape in shapes]) for i in range(3))
        width = torch.where(self.both, self.upper - self.lower, 1.0)
        self.width = torch.where(self.both, width, self.s)

    def to(self, device: torch.device) -> None:
        """Move the tables."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx, both (*, d), of x (*, d); -inf outside the bounds and on them."""
        outside = (x <= self.lower) | (x >= self.upper)
        t, slope = self._t(x, outside)
        below, above = self._tails(t)
        low = below < above  # the smaller of the two tails keeps its digits
        tail = torch.where(low, below, above).clamp(min=LEAST)
        z = torch.special.ndtri(tail.exp())
        z = torch.where(low == self.mirrored, -z, z)
        ladj = self._density(t, slope) + 0.5 * z * z + LOG_ROOT

        return z, torch.where(outside, -torch.inf, ladj)

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d)."""
        t = self._t_of(torch.where(self.mirrored, -z, z))
        one = torch.where(self.both, 1.0, t).log() / self.b
        two = _log_one_minus_exp(torch.where(self.both, t, 1.0) / self.s) / self.b
        two = two.clamp(max=-torch.finfo(z.dtype).tiny)
        y = torch.where(self.both, two, one).exp()
        from_upper = torch.where(self.both, -torch.expm1(two), y)  # 1 - y, with its digits
        upwards = torch.where(self.both, y <= 0.5, ~self.mirrored)
        lower, upper = (torch.where(e.isfinite(), e, 0.0) for e in (self.lower, self.upper))

        return torch.where(upwards, lower + self.width * y, upper - self.width * from_upper)

    def log_density(self, x: Tensor) -> Tensor:
        """Log of the reference density at x (*, d); -inf outside."""
        outside = (x <= self.lower) | (x >= self.upper)

        return torch.where(outside, -torch.inf, self._density(*self._t(x, outside)))

    def _t(self, x: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
        """t and log dt/dx."""
        below = torch.where(outside | self.mirrored, self.width / 2, x - self.lower) / self.width
        over = self.both | self.mirrored
        above = torch.where(outside | ~over, self.width / 2, self.upper - x) / self.width
        y = torch.where(self.mirrored, above, below)
        near = self.both & (above < 0.5)
        log_y = torch.where(near, torch.log1p(-torch.where(near, above, 0.0)), y.log())
        power = self.b * log_y
        # log(1 - y^b), for two bounds
        rest = _log_one_minus_exp(-torch.where(self.both, power, -1.0))
        t = torch.where(self.both, -self.s * rest, torch.where(self.both, -1.0, power).exp())
        slope = self.b.log() + power - log_y - self.width.log()
        slope = slope + torch.where(self.both, self.s.log() - rest, 0.0)

        return t, slope

    def _density(self, t: Tensor, slope: Tensor) -> Tensor:
        """Log of the density, where dt/dx has the logarithm `slope`."""
        one = torch.where(self.both, 1.0, t).log() * (self.c - 1) - torch.lgamma(self.c)
        two = self.c.log() + (self.c - 1) * _log_one_minus_exp(torch.where(self.both, t, 1.0))

        return torch.where(self.both, two, one) - t + slope

    def _tails(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the CDF and of one minus it, each with its digits where it is small."""
        two = self.c * _log_one_minus_exp(t)
        near = torch.log(-torch.expm1(two.clamp(max=-1e-300)))
        two_above = torch.where(t > 40, self.c.log() - t, near)
        single = torch.where(self.both, 1.0, t)
        few = single < 1e-2 * (1 + self.c)  # the series: gammainc would underflow
        part = torch.where(few, single, 0.0)
        term, series = torch.ones_like(part), torch.ones_like(part)
        for i in range(1, 9):
            term = term * part / (self.c + i)
            series = series + term
        power = self.c * torch.where(few, single, 1.0).log() - torch.lgamma(self.c + 1)
        c = self.c.expand_as(single)
        one = torch.special.gammainc(c, torch.where(few, 1.0, single)).clamp(min=TINY).log()
        one = torch.where(few, power - part + series.log(), one)
        far = single > self.c + 500  # two terms of the asymptotic series
        over = torch.where(far, single, self.c + 500)
        tail = (c - 1) * over.log() - over - torch.lgamma(c) + torch.log1p((c - 1) / over)
        one_above = torch.special.gammaincc(c, torch.where(far, 1.0, single)).clamp(min=TINY).log()
        one_above = torch.where(far, tail, one_above)

        return torch.where(self.both, two, one), torch.where(self.both, two_above, one_above)

    def _t_of(self, z: Tensor) -> Tensor:
        """t where the CDF is that of the normal at z."""
        q = torch.special.log_ndtr(z).clamp(min=LEAST, max=-torch.finfo(z.dtype).tiny)
        inner = q / self.c
        deep = inner < -0.6931471805599453
        two = torch.where(
            deep,
            -torch.log1p(-torch.where(deep, inner, -1.0).exp()),
            -torch.log(-torch.expm1(torch.where(deep, -1.0, inner))),
        )
        if bool(self.both.all()):
            return two
        # no closed form: bisect for log t, on the tail that is small
        above = torch.special.log_ndtr(-z).clamp(min=LEAST)
        low = (LEAST / self.c.clamp(max=1.0) - 10).clamp(min=-700.0).expand_as(z)
        high = (self.c + 2000.0).log().expand_as(z)
        for _ in range(64):
            middle = (low + high) / 2
            below, beyond = self._tails(middle.exp())
            less = torch.where(z < 0, below < q, beyond > above)
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)

        return torch.where(self.both, two, ((low + high) / 2).exp())


Shape = tuple[float, float, float]
Fixed = tuple[float | None, float | None, float | None]


def fit_reference(x: np.ndarray, lower: float | None, upper: float | None) -> tuple[Shape, float]:
    """The shape (b, c, s) of greatest likelihood for x (N), and its mean log-density.

    Exponents at a bound that are as good as 1/2, 1, 3/2, 2 or 3, and powers b as good as 1 (by
    the BIC), are taken for that: beyond the data the density depends on little else.
    """
    x = subsample(x, TAIL_ROWS)
    values = torch.from_numpy(np.ascontiguousarray(x))[:, None]
    both = lower is not None and upper is not None
    distance = x - lower if lower is not None else (upper or 0.0) - x
    unit = 1.0 if both else float(distance.mean())

    def shape(p: np.ndarray) -> Shape:
        b, exponent, s = np.exp(p)
        return float(b), float(exponent / b), float(s * unit)

    def loss(p: np.ndarray) -> float:
        if np.abs(p).max() > 12:
            return 1e10
        column = Column(name="", lower=lower, upper=upper, shape=shape(p))
        found = float(ReferenceMap([column]).log_density(values).mean())
        return -found if np.isfinite(found) else 1e10

    start, best = _minimum(loss, np.zeros(3), (None, None, None))
    first, last = (nearest_round(float(np.exp(start[i]))) for i in (1, 2))
    choices = []
    for fixed in product((None, 1.0), (None, first), (None, last) if both else (None,)):
        free = sum(value is None for value in fixed)
        p, value = (start, best) if free == 3 else _minimum(loss, start, fixed)
        choices.append((value + 0.5 * free * np.log(len(x)) / len(x), shape(p), -value))
    _, chosen, mean = min(choices)

    return chosen, mean


def nearest_round(exponent: float) -> float:
    """The round exponent nearest to one, as a factor."""
    return min(ROUND, key=lambda r: abs(np.log(r / exponent)))


def _minimum(
    loss: Callable[[np.ndarray], float], start: np.ndarray, fixed: Fixed
) -> tuple[np.ndarray, float]:
    """Where the loss of three logarithms is least, with those fixed that have a value."""
    from scipy.optimize import minimize

    p = np.array(
        [at if value is None else np.log(value) for at, value in zip(start, fixed, strict=True)]
    )
    where = np.flatnonzero([value is None for value in fixed])
    if len(where) == 0:
        return p, loss(p)

    def some(q: np.ndarray) -> float:
        at = p.copy()
        at[where] = q
        return loss(at)

    options = {"xatol": 1e-4, "fatol": 1e-8, "maxfev": 150 * len(where)}
    found = minimize(some, p[where], method="Nelder-Mead", options=options)
    p[where] = found.x
    return p, float(found.fun)


def _log_one_minus_exp(t: Tensor) -> Tensor:
    """log(1 - exp(-t)) for t > 0, with its digits."""
    small = t < 0.6931471805599453
    near = torch.log(-torch.expm1(-torch.where(small, t, 1.0).clamp(min=1e-300)))

    return torch.where(small, near, torch.log1p(-torch.where(small, 1.0, t).exp().reciprocal()))
