r"""Cells of discrete values, and strips at bounds, over which a density is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.column_circle import Circles
from quarflow.data.column_levels import LevelMap, OtherValues
from quarflow.data.column_reference import BetaMap, GammaMap, reference_maps

__all__ = ["Cells"]

ALONE = 16  # nodes for one column, Gauss and Legendre's
# Sobol's, for several of which none, one or two, or more have wide cells
NARROW, PAIR, MORE = 16, 64, 128
WIDE = 10  # with fewer levels than this, cells are wide
PERIODIC = 4  # columns with levels up to which nodes are made to thin out at the ends of cells


@dataclass(frozen=True)
class _Edge:
    """A strip at a bound of column j: where it ends and what the density is like in it."""

    j: int
    bound: float
    width: float
    exponent: float
    upper: bool
    reference: GammaMap | BetaMap | None = None
    log_mass: float = 0.0  # of the strip, under the reference

    def inside(self, x: Tensor) -> Tensor:
        """Whether each x (n) lies in the strip."""
        distance = self.bound - x if self.upper else x - self.bound

        return (distance > 0) & (distance < self.width)

    def at(self, t: Tensor) -> Tensor:
        """Points that are even under the power law, for even t."""
        distance = self.width * t ** (1 / self.exponent)

        return self.bound - distance if self.upper else self.bound + distance

    def log_power(self, x: Tensor) -> Tensor:
        """Log-density of the power law in the strip."""
        part = (self.bound - x if self.upper else x - self.bound) / self.width

        return math.log(self.exponent / self.width) + (self.exponent - 1) * part.log()

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in the strip, given that x is in it."""
        if self.reference is None:
            return self.log_power(x)

        return self.reference.log_density(x[:, None])[:, 0] - self.log_mass

    def draw(self, t: Tensor) -> Tensor:
        """Points of the strip that have its density, for t uniform on (0, 1)."""
        if self.reference is None:
            return self.at(t)
        z = torch.special.ndtri((t * math.exp(self.log_mass)).clamp(min=1e-300))

        return self.reference.inverse((-z if self.upper else z)[:, None])[:, 0]


class Cells:
    """What a table's columns have besides points with a density.

    The mass of a discrete value is the integral over its cell: of a level, its part of the unit
    line; of a lattice point, the step around it. In the strip at a bound a density keeps the
    strip's mass and has a shape of its own, since nothing but that is known so near to it.

    Arguments:
        columns: The fitted preprocessing of each column.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.by_levels = [j for j, column in enumerate(columns) if column.levels]
        self.by_step = [j for j, c in enumerate(columns) if c.step is not None and not c.levels]
        self.wide = sum(len(columns[j].levels) < WIDE for j in self.by_levels)
        self.map = LevelMap([columns[j] for j in self.by_levels]) if self.by_levels else None
        steps = [columns[j].step or 0.0 for j in self.by_step]
        self.steps = torch.tensor(steps, dtype=torch.float64)
        self.lattice = [i for i, j in enumerate(self.by_step) if columns[j].lattice]
        discrete = [*self.by_levels, *(self.by_step[i] for i in self.lattice)]
        units = {j: math.log(columns[j].unit) for j in discrete}
        logs = {self.by_step[i]: math.log(steps[i]) for i in self.lattice}
        self.log_steps = float(sum(logs.values())) - sum(units.values())
        own = [logs.get(j, 0.0) - units.get(j, 0.0) for j in range(len(columns))]
        self.log_step = torch.tensor(own, dtype=torch.float64)
        self.circles = Circles(columns)
        self.others = [(j, OtherValues(columns[j])) for j in self.by_levels]
        self.edges = [edge for j, column in enumerate(columns) for edge in _edges(j, column)]

    @property
    def discrete(self) -> bool:
        """Whether some column's score is a probability, or one per step."""
        return bool(self.by_levels or self.lattice)

    def noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (*, D) with noise that is even over the cells of discrete values; NaN stays NaN."""
        index = self.by_levels + self.by_step
        shape, home = (*x.shape[:-1], len(index)), generator.device
        t = torch.rand(shape, generator=generator, dtype=torch.float64, device=home)

        return self._spread(x, t.to(x.device), list(range(len(self.by_step))))

    def log_measure(self, x: Tensor, modelled: Tensor | None = None) -> Tensor:
        """What turns log-densities of points x (*, D) into those of cells: logs of widths.

        Arguments:
            x: Points.
            modelled: Which of the values (*, D) count; None: all.
        """
        if modelled is not None:
            return self._log_widths(x, modelled)
        widths = torch.full(x.shape[:-1], self.log_steps, dtype=torch.float64, device=x.device)
        if self.map is not None:
            self.map.to(x.device)
            widths = widths + self.map.log_widths(x[..., self.by_levels].double()).sum(-1)

        return widths

    def needed(self, x: Tensor, modelled: Tensor | None = None) -> Tensor:
        """Which rows (n) of x (n, D) take an average.

        Arguments:
            x: Rows.
            modelled: Which of the values (n, D) count; None: all.
        """
        if modelled is None:
            rows = torch.full((len(x),), self.discrete or bool(self.circles))
            for edge in self.edges:
                rows |= edge.inside(x[:, edge.j])
            return rows
        lattice = [self.by_step[i] for i in self.lattice]
        where = [*self.by_levels, *lattice, *self.circles.index]
        rows = modelled[:, where].any(-1)
        for edge in self.edges:
            rows |= edge.inside(x[:, edge.j]) & modelled[:, edge.j]

        return rows

    def average(
        self, x: Tensor, log_prob: Callable[[Tensor], Tensor], modelled: Tensor | None = None
    ) -> Tensor:
        """Log of the mean density (n) over the cells and strips that the rows x (n, D) are in.

        Arguments:
            x: Rows, on the circle where columns are periodic.
            log_prob: Of rows; it is called with as many (n, D) as there are nodes.
            modelled: Which of the values (n, D) count; the others stay as they are. None: all.
        """
        if not self.circles:
            return self._average(x, log_prob, modelled)
        total = torch.full((len(x),), -torch.inf, dtype=torch.float64)
        for image, here in self.circles.images(x, modelled):
            found = self._average(image, log_prob, modelled)
            total = torch.logaddexp(total, torch.where(here, found, -torch.inf))

        return total

    def _average(
        self, x: Tensor, log_prob: Callable[[Tensor], Tensor], modelled: Tensor | None
    ) -> Tensor:
        nodes, log_weights = self._nodes(modelled)
        if not len(nodes):
            return log_prob(x).double()
        inside = [edge.inside(x[:, edge.j]) for edge in self.edges]
        if modelled is not None:
            inside = [
                here & modelled[:, edge.j] for edge, here in zip(self.edges, inside, strict=True)
            ]
        discrete = len(self.by_levels) + len(self.lattice)
        total = torch.full((len(x),), -torch.inf, dtype=torch.float64)
        for t, log_weight in zip(nodes, log_weights, strict=True):
            at = self._spread(x, t[:discrete].expand(len(x), -1), self.lattice)
            if modelled is not None:
                at = torch.where(modelled, at, x)
            shift = torch.zeros(len(x), dtype=torch.float64)
            for edge, here, part in zip(self.edges, inside, t[discrete:], strict=True):
                at[here, edge.j] = edge.at(part)
                shift -= torch.where(here, edge.log_power(edge.at(part)), 0.0)
            total = torch.logaddexp(total, log_prob(at).double() + shift + log_weight)
        for edge, here in zip(self.edges, inside, strict=True):
            total[here] += edge.log_density(x[here, edge.j])
        for j, others in self.others:
            share = torch.from_numpy(others.log_share(x[:, j].numpy()))
            total += share if modelled is None else torch.where(modelled[:, j], share, 0.0)

        return total

    def settle(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Samples x (n, D) with new places in the strips, where the flow has no say."""
        x = x.clone()
        for edge in self.edges:
            here = edge.inside(x[:, edge.j])
            t = torch.rand(len(x), generator=generator, dtype=torch.float64)
            x[here, edge.j] = edge.draw(t[here])

        return x

    def _spread(self, x: Tensor, t: Tensor, steps: list[int]) -> Tensor:
        """x with t (*, m) in (0, 1) as the places in the cells of m columns."""
        x, count = x.to(torch.float64).clone(), len(self.by_levels)
        if self.map is not None:
            self.map.to(x.device)
            held = x[..., self.by_levels]
            spread = self.map.within(held, t[..., :count])
            x[..., self.by_levels] = torch.where(held.isnan(), held, spread)
        if steps:
            self.steps = self.steps.to(x.device)
            where = [self.by_step[i] for i in steps]
            x[..., where] += (t[..., count:] - 0.5) * self.steps[steps]

        return x

    def _log_widths(self, x: Tensor, modelled: Tensor) -> Tensor:
        """``log_measure`` of some of the values."""
        self.log_step = self.log_step.to(x.device)
        widths = torch.where(modelled, self.log_step, 0.0).sum(-1)
        if self.map is not None:
            self.map.to(x.device)
            own = self.map.log_widths(x[..., self.by_levels].double())
            widths = widths + torch.where(modelled[..., self.by_levels], own, 0.0).sum(-1)

        return widths

    def _nodes(self, modelled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nodes (k, m) in the unit cube and logs of their weights (k), or of each row's (k, n)."""
        sizes = len(self.by_levels), len(self.lattice), len(self.edges)
        if sum(sizes) == 0:
            return torch.empty(0, 0), torch.empty(0)
        if sum(sizes) == 1:
            places, weights = np.polynomial.legendre.leggauss(ALONE)
            return torch.from_numpy(places[:, None] / 2 + 0.5), torch.from_numpy(weights / 2).log()
        count = MORE if self.wide > 2 else PAIR if self.wide else NARROW
        t = torch.quasirandom.SobolEngine(sum(sizes)).draw(count, dtype=torch.float64)
        t, log_weights = t + 0.5 / count, torch.zeros(count, dtype=torch.float64)
        if self.wide and sizes[0] <= PERIODIC:
            # the outermost cells reach to infinity, where the density in u may have no bound:
            # t^2 (3 - 2t) makes the integrand vanish there, and periodic
            part = t[:, : sizes[0]]
            each = (part * (1 - part)).log()
            log_weights = each.sum(-1)
            if modelled is not None:  # only of the columns that are averaged over
                log_weights = each @ modelled[:, self.by_levels].double().T
            t[:, : sizes[0]] = part * part * (3 - 2 * part)

        return t, log_weights - log_weights.logsumexp(0)


def _edges(j: int, column: Column) -> list[_Edge]:
    found = []
    for upper, bound, strip in (
        (False, column.lower, column.edge_lower),
        (True, column.upper, column.edge_upper),
    ):
        if bound is None or strip is None:
            continue
        width, exponent = strip
        if column.shape is None or not math.isclose(exponent, own_exponent(column, upper)):
            found.append(_Edge(j, bound, width, exponent, upper))
            continue
        reference = reference_maps([column])[0][1]
        end = bound - width if upper else bound + width
        z = reference.call(torch.tensor([end], dtype=torch.float64))[0]
        log_mass = float(torch.special.log_ndtr(-z if upper else z))
        found.append(_Edge(j, bound, width, exponent, upper, reference, log_mass))

    return found


def own_exponent(column: Column, upper: bool) -> float:
    """The exponent of the reference density's CDF at a bound."""
    b, c, s = column.shape or (1.0, 1.0, 1.0)

    return s if upper and column.lower is not None else b * c
