r"""A reference density for a bounded column, right at its bounds, and the map by its CDF."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_detect import TAIL_ROWS, subsample

__all__ = ["ReferenceMap", "fit_reference"]

LOG_ROOT = 0.5 * float(np.log(2 * np.pi))
LEAST = -690.0  # logarithms below are cut: exp of them would underflow
ROUND = (0.5, 1.0, 1.5, 2.0, 3.0)  # exponents at a bound that are worth to be preferred


class ReferenceMap:
    r"""Bounded columns to normal scores, by the CDF of a reference density; d columns at once.

    With y the distance to the bound (the lower one of two) in units of s, or of the distance
    between the two bounds,

    .. math::
        G &= (1 - e^{-t})^c, \qquad t = y^b \quad \text{or} \quad -s \log(1 - y^b), \\
        z &= \Phi^{-1}(G) \quad \text{or, for an upper bound alone,} \quad -\Phi^{-1}(G)

    so that the density goes like :math:`y^{bc - 1}` at the (lower) bound and, with two bounds,
    like :math:`(1 - y)^{s - 1}` at the upper one: it may be finite, zero or infinite there.

    Arguments:
        columns: Columns with a bound or two, and a shape (b, c, s).

    Reference:
        The exponentiated Weibull and Kumaraswamy distributions.
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
        log_g, log_cdf = self._density(t, slope)
        # from the smaller of the two tails, which keeps its digits
        low = log_cdf < -0.6931471805599453
        tail = torch.where(low, log_cdf, self._log_survival(t, log_cdf)).clamp(min=LEAST)
        z = torch.special.ndtri(tail.exp())
        z = torch.where(low == self.mirrored, -z, z)
        ladj = log_g + 0.5 * z * z + LOG_ROOT

        return z, torch.where(outside, -torch.inf, ladj)

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d)."""
        q = torch.special.log_ndtr(torch.where(self.mirrored, -z, z)) / self.c
        q = q.clamp(min=LEAST, max=-torch.finfo(z.dtype).tiny)
        deep = q < -0.6931471805599453
        t = torch.where(
            deep,
            -torch.log1p(-torch.where(deep, q, -1.0).exp()),
            -torch.log(-torch.expm1(torch.where(deep, -1.0, q))),
        )
        one = torch.where(self.both, 1.0, t).log() / self.b
        two = torch.log(-torch.expm1(-torch.where(self.both, t, 1.0) / self.s)) / self.b
        two = two.clamp(max=-torch.finfo(z.dtype).tiny)
        y = torch.where(self.both, two, one).exp()
        from_upper = torch.where(self.both, -torch.expm1(two), y)  # 1 - y, with its digits
        upwards = torch.where(self.both, y <= 0.5, ~self.mirrored)
        lower, upper = (torch.where(e.isfinite(), e, 0.0) for e in (self.lower, self.upper))

        return torch.where(upwards, lower + self.width * y, upper - self.width * from_upper)

    def log_density(self, x: Tensor) -> Tensor:
        """Log of the reference density at x (*, d); -inf outside."""
        outside = (x <= self.lower) | (x >= self.upper)

        return torch.where(outside, -torch.inf, self._density(*self._t(x, outside))[0])

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
        rest = torch.log(-torch.expm1(torch.where(self.both, power, -1.0)))
        t = torch.where(self.both, -self.s * rest, torch.where(self.both, -1.0, power).exp())
        slope = self.b.log() + power - log_y - self.width.log()
        slope = slope + torch.where(self.both, self.s.log() - rest, 0.0)

        return t, slope

    def _density(self, t: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the density and of the CDF."""
        inner = _log_one_minus_exp(t)

        return self.c.log() - t + (self.c - 1) * inner + slope, self.c * inner

    def _log_survival(self, t: Tensor, log_cdf: Tensor) -> Tensor:
        far = t > 40
        near = torch.log(-torch.expm1(torch.where(far, -1.0, log_cdf).clamp(max=-1e-300)))

        return torch.where(far, self.c.log() - t, near)


def fit_reference(
    x: np.ndarray, lower: float | None, upper: float | None
) -> tuple[tuple[float, float, float], float]:
    """The shape (b, c, s) of greatest likelihood for x (N), and its mean log-density.

    Exponents at a bound that are as good as 1/2, 1, 3/2, 2 or 3 (by the BIC) are taken for that:
    far below the smallest value a density depends on nothing else.
    """
    from scipy.optimize import minimize

    x = subsample(x, TAIL_ROWS)
    values = torch.from_numpy(np.ascontiguousarray(x))[:, None]
    both = lower is not None and upper is not None
    spread = float(np.mean(x - lower if lower is not None else (upper or 0.0) - x))

    def shape(p: np.ndarray, at: tuple[float | None, float | None]) -> tuple[float, float, float]:
        b, end, s = np.exp(np.clip(p, -12, 12))
        exponent = end if at[0] is None else at[0]
        s = s if not both else s if at[1] is None else at[1]
        return float(b), float(exponent / b), float(s if both else s * spread)

    def loss(p: np.ndarray, at: tuple[float | None, float | None]) -> float:
        bounded = Column(name="", lower=lower, upper=upper, shape=shape(p, at))
        found = float(ReferenceMap([bounded]).log_density(values).mean())
        return -found if np.isfinite(found) else 1e10

    def fitted(
        start: np.ndarray, at: tuple[float | None, float | None]
    ) -> tuple[np.ndarray, float]:
        free = [True, at[0] is None, not both or at[1] is None]
        where = np.flatnonzero(free)

        def some(q: np.ndarray) -> float:
            p = start.copy()
            p[where] = q
            return loss(p, at)

        options = {"xatol": 1e-4, "fatol": 1e-7, "maxfev": 400}
        found = minimize(some, start[where], method="Nelder-Mead", options=options)
        p = start.copy()
        p[where] = found.x
        return p, float(found.fun)

    start, best = fitted(np.zeros(3), (None, None))
    nearest = [min(ROUND, key=lambda r: abs(np.log(r) - value)) for value in (start[1], start[2])]
    choices: list[tuple[float, tuple[float, float, float], float]] = []
    for first, second in product((None, nearest[0]), (None, nearest[1]) if both else (None,)):
        p, value = (start, best) if first is second is None else fitted(start, (first, second))
        free = (first is None) + (second is None)
        penalty = 0.5 * free * np.log(len(x)) / len(x)
        choices.append((value + penalty, shape(p, (first, second)), -value))
    _, chosen, mean = min(choices)

    return chosen, mean


def _log_one_minus_exp(t: Tensor) -> Tensor:
    """log(1 - exp(-t)) for t > 0, with its digits."""
    small = t < 0.6931471805599453
    near = torch.log(-torch.expm1(-torch.where(small, t, 1.0).clamp(min=1e-300)))

    return torch.where(small, near, torch.log1p(-torch.where(small, 1.0, t).exp().reciprocal()))
