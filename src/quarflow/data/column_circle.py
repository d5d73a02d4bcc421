r"""Periodic columns: densities on the circle, without a seam."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from quarflow.data.column import Column

__all__ = ["Circles", "circle_bounds"]

SHARE = 1 / 8  # of the period, that the window is wider on either side
BINS = 72


def circle_bounds(x: np.ndarray, start: float, period: float) -> tuple[float, float]:
    """The ends of the window of a periodic column x (N): the seam is where rows are fewest."""
    turns = np.mod(x - start, period) / period
    counts = np.histogram(turns, bins=BINS, range=(0.0, 1.0))[0].astype(np.float64)
    wide = int(2 * SHARE * BINS)
    around = np.convolve(np.concatenate([counts[-wide:], counts, counts[:wide]]), np.ones(wide))
    middle = around[wide + wide // 2 : wide + wide // 2 + BINS]
    seam = start + period * (int(np.argmin(middle)) + 0.5) / BINS
    if seam > start + period / 2:  # the window lies about the values
        seam -= period
    margin = SHARE * period

    return seam - margin, seam + period + margin


class Circles:
    r"""Periodic columns on the line, and back on the circle.

    A value has an image every period. The window from ``lower`` to ``upper`` is longer than a
    period and holds one image or, within a margin of the seam, two. Training draws one of them,
    with probabilities w that rise smoothly from 0 at the ends of the window and add up to 1:

    .. math:: w(y) = 3 t^2 - 2 t^3, \quad t = (y - lower) / (upper - lower - period)

    at the lower end, and as much in reverse at the upper one. So the flow learns
    :math:`q(y) = p(y) w(y)`, and the sum of q over the images is a density on the circle, exactly
    normalised whatever q is, and continuous across the seam.

    Arguments:
        columns: All columns of a table; the periodic ones matter.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.index = [j for j, column in enumerate(columns) if column.kind == "periodic"]
        some = [columns[j] for j in self.index]
        self.start = _row([column.start for column in some])
        self.period = _row([column.period or 1.0 for column in some])
        lower = _row([column.lower or 0.0 for column in some])
        upper = _row([column.upper or 0.0 for column in some])
        self.margin = (upper - lower - self.period) / 2
        self.seam = lower + self.margin

    def __bool__(self) -> bool:
        return bool(self.index)

    def unrolled(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (*, D) with each periodic value replaced by one of its images, drawn."""
        x = x.to(torch.float64).clone()
        self._to(x.device)
        first, second = self._images(x[..., self.index])
        shape, home = first.shape, generator.device
        t = torch.rand(shape, generator=generator, dtype=torch.float64, device=home).to(x.device)
        x[..., self.index] = torch.where(t < self._weight(first), first, second)

        return x

    def rolled(self, x: Tensor) -> Tensor:
        """x (*, D) with each periodic value between its start and a period more."""
        x = x.to(torch.float64).clone()
        self._to(x.device)
        turned = (x[..., self.index] - self.start).remainder(self.period)
        turned = torch.where(turned < self.period, turned, 0.0)
        x[..., self.index] = self.start + turned

        return x

    def images(self, x: Tensor, modelled: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows x (n, D) with all combinations of images, and which rows (n) have each.

        Arguments:
            x: On the circle or on the line.
            modelled: Which values (n, D) count: the others have one image.
        """
        self._to(x.device)
        first, second = self._images(x[..., self.index].to(torch.float64))
        two = self._weight(first) < 1
        if modelled is not None:
            two &= modelled[..., self.index]
        for chosen in itertools.product((False, True), repeat=len(self.index)):
            other = torch.tensor(chosen, device=x.device)
            here = (two | ~other).all(-1)
            if here.any():
                image = x.to(torch.float64).clone()
                image[..., self.index] = torch.where(other & two, second, first)
                yield image, here

    def _images(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image in the period from the seam, and the nearest other one."""
        place = (x - self.seam).remainder(self.period)
        first = self.seam + place
        second = torch.where(place < self.period / 2, first + self.period, first - self.period)

        return first, second

    def _weight(self, y: Tensor) -> Tensor:
        """w of images in the period from the seam."""
        place = y - self.seam
        near = torch.minimum(place, self.period - place)
        t = ((near + self.margin) / (2 * self.margin)).clamp(0.0, 1.0)

        return t * t * (3 - 2 * t)

    def _to(self, device: torch.device) -> None:
        if self.start.device != device:
            for name in ("start", "period", "margin", "seam"):
                setattr(self, name, getattr(self, name).to(device))


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
