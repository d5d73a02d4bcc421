r"""Toy densities in one and two dimensions, with their exact log-density where they have one.

The shapes, scales and noises are those of the density-estimation literature (the code of FFJORD
and of Residual Flows), so that figures in nats can be compared:

>>> sorted(TOYS)
['checkerboard', 'circles', 'eight_gaussians', 'pinwheel', 'rings', 'swiss_roll', 'two_moons',
 'two_spirals', 'two_uniforms']
>>> toy("eight_gaussians").entropy
2.8319
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["TOYS", "Boxes", "Curves", "Gaussians", "Pinwheel", "Rings", "Toy", "toy"]

Generator = torch.Generator | None


@dataclass(frozen=True)
class Toy(ABC):
    r"""A density to learn.

    Attributes:
        name: As in :data:`TOYS`.
        entropy: :math:`-E[\log p]` in nats, what a perfect model scores; None where not known.
            To the last digit given where it comes from quadrature.
        limits: Box that holds the data for plots and, but for 1e-6 of it, for quadrature:
            (low, high) for all dimensions alike.
        parts: Number of modes, arms, rings or squares: what labels count.
        features: Number of dimensions.
    """

    name: str
    entropy: float | None
    limits: tuple[float, float]
    parts: int
    features: int

    has_density = True

    def sample(self, n: int, generator: Generator = None) -> Tensor:
        """Independent samples, shape (n, features), of torch's default type."""
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(self, n: int, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """Samples, shape (n, features), and the part that each is from, shape (n)."""
        labels = torch.randint(self.parts, (n,), generator=generator)

        return self._draw(labels, generator).to(torch.get_default_dtype()), labels

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density in nats, shape (*), for x of shape (*, features).

        Raises:
            ValueError: if there is none in closed form (``has_density`` is False), or x has
                another number of features.
        """
        if not self.has_density:
            raise ValueError(f"The density of {self.name} has no closed form.")
        if x.dim() == 0 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (*, {self.features}), not {tuple(x.shape)}.")
        rows = x.detach().double().reshape(-1, self.features)
        found = [self._density(part) for part in rows.split(4096)]

        return torch.cat(found).reshape(x.shape[:-1]).to(x.dtype)

    @abstractmethod
    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        """One sample of each of the labelled parts, float64, shape (n, features)."""

    def _density(self, x: Tensor) -> Tensor:
        """Log-density of rows, float64, shape (n)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussians(Toy):
    r"""Mixture of equal round Gaussians.

    Attributes:
        centers: One point per mode.
        sd: Standard deviation of each coordinate.

    Example:
        >>> toy("eight_gaussians").log_prob(torch.zeros(2))
        tensor(-31.7587)
    """

    centers: tuple[tuple[float, ...], ...]
    sd: float

    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        return _table(self.centers)[labels] + self.sd * _normal(
            len(labels), self.features, generator
        )

    def _density(self, x: Tensor) -> Tensor:
        square = (x[:, None] - _table(self.centers)).square().sum(-1) / self.sd**2
        constant = self.features * math.log(self.sd * math.sqrt(2 * math.pi))

        return torch.logsumexp(-square / 2, -1) - constant - math.log(self.parts)


@dataclass(frozen=True)
class Boxes(Toy):
    r"""Uniform over equal boxes that do not overlap; the log-density outside is -inf.

    Attributes:
        corners: The lowest corner of each box.
        side: Length of all sides.

    Example:
        >>> toy("two_uniforms").log_prob(torch.tensor([[1.5], [0.0]]))
        tensor([-0.6931,    -inf])
    """

    corners: tuple[tuple[float, ...], ...]
    side: float

    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        return _table(self.corners)[labels] + self.side * _uniform(
            len(labels), self.features, generator
        )

    def _density(self, x: Tensor) -> Tensor:
        inside = (x[:, None] - _table(self.corners)) / self.side
        inside = ((inside >= 0) & (inside < 1)).all(-1).any(-1)
        level = -math.log(self.parts) - self.features * math.log(self.side)

        return torch.where(inside, level, -math.inf)


@dataclass(frozen=True)
class Rings(Toy):
    r"""Concentric circles of equal weight, blurred by round Gaussian noise.

    Attributes:
        radii: Of the circles.
        sd: Standard deviation of the noise in each coordinate.

    Example:
        >>> toy("rings").log_prob(torch.tensor([3.0, 0.0]))
        tensor(-3.8051)
    """

    radii: tuple[float, ...]
    sd: float

    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        angle = 2 * math.pi * _uniform(len(labels), 1, generator)
        radius = torch.tensor(self.radii, dtype=torch.double)[labels][:, None]
        points = radius * torch.cat((angle.cos(), angle.sin()), -1)

        return points + self.sd * _normal(len(labels), 2, generator)

    def _density(self, x: Tensor) -> Tensor:
        # The mean over the angle of exp(r R cos / sd^2) is a Bessel function.
        r = torch.linalg.vector_norm(x, dim=-1)[:, None]
        R = torch.tensor(self.radii, dtype=torch.double)
        bessel = torch.special.i0e(r * R / self.sd**2).log()
        rings = bessel - (r - R).square() / (2 * self.sd**2)

        return torch.logsumexp(rings, -1) - math.log(2 * math.pi * self.sd**2 * self.parts)


@dataclass(frozen=True)
class Curves(Toy):
    r"""Points on curves, moved by uniform and by Gaussian noise.

    The density is an integral along the curve, taken by Gauss-Legendre quadrature: with spacings
    well below ``sd`` it is exact to about 1e-10.

    Attributes:
        curve: Times (n) and labels (n) to points (n, 2).
        times: Where the curve begins and ends.
        power: The density of times is proportional to their power, 0 or 1.
        sd: Standard deviation of the Gaussian noise in each coordinate.
        width: Uniform noise on (0, width) in each coordinate; for odd labels on (-width, 0).
        nodes: Number of nodes of the quadrature.

    Example:
        >>> toy("two_moons").sample(3).shape
        torch.Size([3, 2])
    """

    curve: Callable[[Tensor, Tensor], Tensor]
    times: tuple[float, float]
    power: int
    sd: float
    width: float = 0.0
    nodes: int = 400

    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        n, k = len(labels), self.power + 1
        low, high = (t**k for t in self.times)
        t = (low + (high - low) * _uniform(n, 1, generator)[:, 0]) ** (1 / k)
        uniform = _signs(labels)[:, None] * self.width * _uniform(n, 2, generator)

        return self.curve(t, labels) + uniform + self.sd * _normal(n, 2, generator)

    def _density(self, x: Tensor) -> Tensor:
        t, weight = _legendre(self.nodes)
        low, high = self.times
        t = low + (high - low) * t
        weight = weight * t**self.power
        weight = (weight / weight.sum()).log()
        arms = []
        for part in range(self.parts):
            labels = torch.full_like(t, part, dtype=torch.long)
            offset = (x[:, None] - self.curve(t, labels)) * _signs(labels)[:, None]
            arms.append(torch.logsumexp(weight + self._noise(offset).sum(-1), -1))

        return torch.logsumexp(torch.stack(arms), 0) - math.log(self.parts)

    def _noise(self, offset: Tensor) -> Tensor:
        """Log-density of one coordinate of the noise."""
        if not self.width:
            return -(offset / self.sd).square() / 2 - math.log(self.sd * math.sqrt(2 * math.pi))
        # Phi(high) - Phi(low), on the side where neither of them is near 1
        high, low = offset / self.sd, (offset - self.width) / self.sd
        right = low > 0
        high, low = torch.where(right, -low, high), torch.where(right, -high, low)
        top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)

        return top + torch.log1p(-torch.exp(bottom - top)) - math.log(self.width)


@dataclass(frozen=True)
class Pinwheel(Toy):
    r"""Arms of a pinwheel (Johnson et al., 2016). Its density has no closed form.

    Example:
        >>> toy("pinwheel").has_density
        False
    """

    has_density = False

    def _draw(self, labels: Tensor, generator: Generator) -> Tensor:
        scale = torch.tensor([0.3, 0.1], dtype=torch.double)
        x = scale * _normal(len(labels), 2, generator)
        x[:, 0] += 1
        angle = labels * 2 * math.pi / self.parts + 0.25 * x[:, 0].exp()
        cos, sin = angle.cos(), angle.sin()

        return 2 * torch.stack((x[:, 0] * cos - x[:, 1] * sin, x[:, 0] * sin + x[:, 1] * cos), -1)


def toy(name: str) -> Toy:
    """Look up a toy density by name.

    Names of other libraries are understood too: ``8gaussians``, ``2spirals``, ``moons``,
    ``swissroll``.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> toy("8gaussians").name
        'eight_gaussians'
    """
    name = ALIASES.get(name, name)
    if name not in TOYS:
        raise ValueError(f"There is no toy density {name!r}; there are {', '.join(sorted(TOYS))}.")

    return TOYS[name]


ALIASES = {
    "8gaussians": "eight_gaussians",
    "2spirals": "two_spirals",
    "moons": "two_moons",
    "swissroll": "swiss_roll",
}


def _spiral(t: Tensor, labels: Tensor) -> Tensor:
    points = torch.stack((-t.cos() * t, t.sin() * t), -1) / 3

    return points * _signs(labels)[:, None]


def _moon(t: Tensor, labels: Tensor) -> Tensor:
    outer = torch.stack((t.cos(), t.sin()), -1)
    inner = torch.stack((1 - t.cos(), 0.5 - t.sin()), -1)
    points = torch.where((labels == 0)[:, None], outer, inner)

    return 2 * points + torch.tensor([-1.0, -0.2]).to(points)


def _roll(t: Tensor, labels: Tensor) -> Tensor:
    return torch.stack((t * t.cos(), t * t.sin()), -1) / 5


def _signs(labels: Tensor) -> Tensor:
    """1 for even labels, -1 for odd ones, float64."""
    return 1.0 - 2.0 * (labels % 2).double()


def _table(points: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(points, dtype=torch.double)


def _normal(n: int, features: int, generator: Generator) -> Tensor:
    return torch.randn(n, features, dtype=torch.double, generator=generator)


def _uniform(n: int, features: int, generator: Generator) -> Tensor:
    return torch.rand(n, features, dtype=torch.double, generator=generator)


@cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1)."""
    t, weight = np.polynomial.legendre.leggauss(nodes)

    return torch.from_numpy((t + 1) / 2), torch.from_numpy(weight / 2)


_CIRCLE = tuple(
    (4 / 1.414 * math.cos(k * math.pi / 4), 4 / 1.414 * math.sin(k * math.pi / 4))
    for k in range(8)
)
_DARK = tuple((2.0 * i, 2.0 * j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0)

TOYS: dict[str, Toy] = {
    t.name: t
    for t in (
        # radius 4, sd 0.5, all / 1.414
        Gaussians("eight_gaussians", 2.8319, (-5.5, 5.5), 8, 2, _CIRCLE, 0.5 / 1.414),
        # eight squares of side 2
        Boxes("checkerboard", math.log(32), (-4.0, 4.0), 8, 2, _DARK, 2.0),
        # The paper's figure 2 gives no numbers; these are ours.
        Boxes("two_uniforms", math.log(2), (-3.0, 3.0), 2, 1, ((-2.0,), (1.0,)), 1.0),
        Rings("rings", 3.4855, (-4.8, 4.8), 4, 2, (3.0, 2.25, 1.5, 0.75), 0.24),
        Rings("circles", 3.2681, (-4.8, 4.8), 2, 2, (3.0, 1.5), 0.24),
        Curves(
            "two_spirals", 2.6455, (-4.5, 4.5), 2, 2, _spiral, (0, 3 * math.pi), 1, 0.1, 0.5 / 3
        ),
        Curves("two_moons", 2.3939, (-4.5, 4.5), 2, 2, _moon, (0, math.pi), 0, 0.2),
        Curves(
            "swiss_roll", 2.6696, (-4.5, 4.5), 1, 2, _roll, (1.5 * math.pi, 4.5 * math.pi), 0, 0.2
        ),
        Pinwheel("pinwheel", None, (-4.5, 4.5), 5, 2),
    )
}
