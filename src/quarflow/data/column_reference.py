r"""A reference density for a bounded column, right at its bounds, and the map by its CDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_detect import TAIL_ROWS, subsample

__all__ = ["BetaMap", "GammaMap", "fit_reference", "nearest_round", "reference_maps"]

LOG_ROOT = 0.5 * float(np.log(2 * np.pi))
LEAST = -690.0  # logarithms below are cut: exp of them would underflow
TINY = 1e-300
ROUND = (0.5, 1.0, 1.5, 2.0, 3.0)  # exponents at a bound that are worth to be preferred


class _Reference:
    """z = Phi^-1(G(x)) for the CDF G of a density on an interval; d columns at once."""

    lower: Tensor
    upper: Tensor

    def to(self, device: torch.device) -> None:
        """Move the tables."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log dz/dx, both (*, d), of x (*, d); -inf outside the bounds and on them."""
        inside, outside = self._inside(x)
        below, above = self._tails(inside)
        low = below < above  # the smaller of the two tails keeps its digits
        tail = torch.where(low, below, above).clamp(min=LEAST)
        z = torch.special.ndtri(tail.exp())
        z = torch.where(low, z, -z)
        ladj = self._density(inside) + 0.5 * z * z + LOG_ROOT

        return z, torch.where(outside, -torch.inf, ladj)

    def log_density(self, x: Tensor) -> Tensor:
        """Log of the reference density at x (*, d); -inf outside."""
        inside, outside = self._inside(x)

        return torch.where(outside, -torch.inf, self._density(inside))

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d)."""
        raise NotImplementedError

    def _density(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of the CDF and of one minus it, each with its digits where it is small."""
        raise NotImplementedError

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outside = (x <= self.lower) | (x >= self.upper)
        low, high = self.lower.isfinite(), self.upper.isfinite()
        middle = torch.where(low, self.lower, self.upper - 1) / 2
        middle = middle + torch.where(high, self.upper, self.lower + 1) / 2

        return torch.where(outside, middle, x), outside


class GammaMap(_Reference):
    r"""Columns with one bound to normal scores, by the generalised gamma distribution.

    With y the distance to the bound in units of s, the CDF (for an upper bound, one minus it) is
    :math:`P(c, y^b)`, with the regularised incomplete gamma function P. So the density goes like
    :math:`y^{bc - 1}` at the bound: it may be finite, zero or infinite there.

    Arguments:
        columns: Columns with one bound and a shape (b, c, s).

    Reference:
        Stacy (1962), A Generalization of the Gamma Distribution.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.mirrored = torch.tensor([column.lower is None for column in columns])
        self.lower = _row([c.lower if c.lower is not None else -np.inf for c in columns])
        self.upper = _row([c.upper if c.upper is not None else np.inf for c in columns])
        shapes = [column.shape or (1.0, 1.0, 1.0) for column in columns]
        self.b, self.c, self.s = (_row([shape[i] for shape in shapes]) for i in range(3))

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d), by bisection for log t = b log y."""
        z = torch.where(self.mirrored, -z, z)
        q, above = (torch.special.log_ndtr(side).clamp(min=LEAST) for side in (z, -z))
        low = (LEAST / self.c.clamp(max=1.0) - 10).clamp(min=-700.0).expand_as(z)
        high = (self.c + 2000.0).log().expand_as(z)
        for _ in range(64):
            middle = (low + high) / 2
            less_than, more_than = self._gamma_tails(middle.exp())
            less = torch.where(z < 0, less_than < q, more_than > above)
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        y = self.s * ((low + high) / 2 / self.b).exp()

        return torch.where(self.mirrored, self.upper - y, self.lower + y)

    def _log_y(self, x: Tensor) -> Tensor:
        return torch.where(self.mirrored, self.upper - x, x - self.lower).log() - self.s.log()

    def _density(self, x: Tensor) -> Tensor:
        log_y = self._log_y(x)
        power = self.b * log_y
        flat = self.c * power - torch.lgamma(self.c) - log_y

        return flat - power.exp() + self.b.log() - self.s.log()

    def _tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        near, far = self._gamma_tails((self.b * self._log_y(x)).exp())

        return torch.where(self.mirrored, far, near), torch.where(self.mirrored, near, far)

    def _gamma_tails(self, t: Tensor) -> tuple[Tensor, Tensor]:
        c = self.c.expand_as(t)
        few = t < 1e-2 * (1 + c)  # the series: gammainc would underflow
        part = torch.where(few, t, 0.0)
        term, series = torch.ones_like(part), torch.ones_like(part)
        for i in range(1, 9):
            term = term * part / (c + i)
            series = series + term
        power = c * torch.where(few, t, 1.0).clamp(min=TINY).log() - torch.lgamma(c + 1)
        near = torch.special.gammainc(c, torch.where(few, 1.0, t)).clamp(min=TINY).log()
        near = torch.where(few, power - part + series.log(), near)
        beyond = t > c + 500  # two terms of the asymptotic series
        over = torch.where(beyond, t, c + 500)
        tail = (c - 1) * over.log() - over - torch.lgamma(c) + torch.log1p((c - 1) / over)
        far = torch.special.gammaincc(c, torch.where(beyond, 1.0, t)).clamp(min=TINY).log()

        return near, torch.where(beyond, tail, far)


class BetaMap(_Reference):
    r"""Columns between two bounds to normal scores, by the beta distribution.

    The density goes like :math:`y^{b - 1}` at the lower and :math:`(1 - y)^{s - 1}` at the upper
    bound, y being the distance to the lower one, in units of the distance between them.

    Arguments:
        columns: Columns with two bounds and a shape (b, 1, s).
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.lower = _row([float(column.lower or 0.0) for column in columns])
        self.upper = _row([float(column.upper or 0.0) for column in columns])
        self.width = self.upper - self.lower
        shapes = [column.shape or (1.0, 1.0, 1.0) for column in columns]
        self.b, self.s = (_row([shape[i] for shape in shapes]) for i in (0, 2))

    def inverse(self, z: Tensor) -> Tensor:
        """x (*, d) of z (*, d)."""
        from scipy.special import betaincinv

        tails = [torch.special.ndtr(side).clamp(min=TINY) for side in (z, -z)]
        b, s, below, above = (v.detach().cpu().numpy() for v in (self.b, self.s, *tails))
        near = torch.from_numpy(np.asarray(betaincinv(b, s, below))).to(z)
        far = torch.from_numpy(np.asarray(betaincinv(s, b, above))).to(z)
        x = torch.where(near < 0.5, self.lower + self.width * near, self.upper - self.width * far)
        if not z.requires_grad:
            return x
        # the derivative of the inverse, by a Newton step that changes nothing
        z_of, ladj = self.call(x.detach())

        return x.detach() + (z - z_of.detach()) * (-ladj.detach()).exp()

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.lower) / self.width, (self.upper - x) / self.width

    def _density(self, x: Tensor) -> Tensor:
        b, s = self.b, self.s
        y, rest = self._sides(x)
        constant = torch.lgamma(b + s) - torch.lgamma(b) - torch.lgamma(s) - self.width.log()

        return (b - 1) * y.log() + (s - 1) * rest.log() + constant

    def _tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, rest = self._sides(x)
        below = _LogBeta.apply(y, rest, self.b.expand_as(y), self.s.expand_as(y))
        above = _LogBeta.apply(rest, y, self.s.expand_as(y), self.b.expand_as(y))

        return below, above


class _LogBeta(torch.autograd.Function):
    """Log of the regularised incomplete beta function of y, given 1 - y as well."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, rest: Tensor, b: Tensor, s: Tensor) -> Tensor:
        from scipy.special import betainc

        parts = (v.detach().cpu().numpy() for v in (b, s, y))
        found = torch.from_numpy(np.asarray(betainc(*parts))).to(y)
        # the first term of the series, where the function underflows
        constant = torch.lgamma(b + s) - torch.lgamma(b + 1) - torch.lgamma(s)
        small = b * y.clamp(min=TINY).log() + constant
        found = torch.where(found > TINY, found.clamp(min=TINY).log(), small)
        ctx.save_for_backward(y, rest, b, s, found)

        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        y, rest, b, s, found = ctx.saved_tensors
        constant = torch.lgamma(b + s) - torch.lgamma(b) - torch.lgamma(s)
        density = (b - 1) * y.log() + (s - 1) * rest.log() + constant

        return gradient * (density - found).exp(), None, None, None


def reference_maps(columns: Sequence[Column]) -> list[tuple[list[int], GammaMap | BetaMap]]:
    """The maps of those columns that have a shape, each with their indices."""
    kinds: tuple[list[int], list[int]] = ([], [])
    for j, column in enumerate(columns):
        if column.shape is not None and not column.levels:
            kinds[column.lower is not None and column.upper is not None].append(j)
    found: list[tuple[list[int], GammaMap | BetaMap]] = []
    if kinds[0]:
        found.append((kinds[0], GammaMap([columns[j] for j in kinds[0]])))
    if kinds[1]:
        found.append((kinds[1], BetaMap([columns[j] for j in kinds[1]])))

    return found


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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
        if both:
            return float(exponent), 1.0, float(s)
        return float(b), float(exponent / b), float(s * unit)

    def loss(p: np.ndarray) -> float:
        if np.abs(p).max() > 12:
            return 1e10
        column = Column(name="", lower=lower, upper=upper, shape=shape(p))
        found = float(reference_maps([column])[0][1].log_density(values).mean())
        return -found if np.isfinite(found) else 1e10

    powers = (1.0,) if both else (None, 1.0)
    start, best = _minimum(loss, np.zeros(3), (powers[0], None, None))
    first, last = (nearest_round(float(np.exp(start[i]))) for i in (1, 2))
    choices = []
    for fixed in product(powers, (None, first), (None, last) if both else (None,)):
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
