r"""The map from data units to standardised values, with its exact log-det."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quarflow.data.column_levels import LevelMap
from quarflow.data.column_reference import BetaMap, GammaMap, reference_maps
from quarflow.transforms.base import Transform

if TYPE_CHECKING:
    from quarflow.data.column import Column

__all__ = ["ColumnTransform"]


class ColumnTransform(Transform):
    r"""Column by column: bounds, then asinh, then standardising; increasing in each column.

    .. math::
        v &= x, \quad \log(x - l), \quad -\log(u - x) \quad \text{or} \quad
             \log(x - l) - \log(u - x) \\
        w &= v \quad \text{or} \quad \mathrm{asinh}((v - c) / s) \\
        z &= (w - m) / a

    A column with levels, or with the shape of a reference density, has
    :math:`z = \Phi^{-1}(G(x))` instead: see :class:`LevelMap`, :class:`GammaMap` and
    :class:`BetaMap`.

    Takes data (*, D) of any float type and computes, and returns, float64, so that log-dets are
    exact. Outside the support of a bounded column, and on its edge, the ladj is -inf (density
    zero) and z some finite value. NaN stays NaN.

    Example:
        >>> from quarflow.data.columns import Column
        >>> t = ColumnTransform([Column(name="a", mean=1.0, scale=2.0), Column(name="b", lower=0)])
        >>> z, ladj = t.call_and_ladj(torch.tensor([[3.0, 1.0], [1.0, -1.0]]))
        >>> z[0], ladj
        (tensor([1., 0.], dtype=torch.float64), tensor([-0.6931,    -inf], dtype=torch.float64))
        >>> t.inv(z[0])
        tensor([3., 1.], dtype=torch.float64)
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()

        def row(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        by_levels = [j for j, column in enumerate(columns) if column.levels]
        by_shape = [j for j, c in enumerate(columns) if c.shape is not None and not c.levels]
        own = {*by_levels, *by_shape}  # these have maps of their own
        open_ends = (-torch.inf, torch.inf)
        support = [open_ends if j in own else c.support for j, c in enumerate(columns)]
        self.lower = row([ends[0] for ends in support])
        self.upper = row([ends[1] for ends in support])
        self.center = row([column.center for column in columns])
        self.spread = row([column.spread or 1.0 for column in columns])
        self.tamed = torch.tensor(
            [column.spread is not None and j not in own for j, column in enumerate(columns)]
        )
        self.mean = row([column.mean for column in columns])
        self.scale = row([column.scale for column in columns])
        self._tames = bool(self.tamed.any())
        self._bounded = bool((self.lower.isfinite() | self.upper.isfinite()).any())
        self.maps: list[tuple[Tensor, LevelMap | GammaMap | BetaMap]] = []
        if by_levels:
            self.maps.append((torch.tensor(by_levels), LevelMap([columns[j] for j in by_levels])))
        for where, found in reference_maps(columns):
            self.maps.append((torch.tensor(where), found))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (*, D) and the ladj (*), float64."""
        z, logs = self._by_column(self._checked(x))

        return z, logs.sum(-1)

    def call_and_logs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and the logs of its derivatives, both (*, D), float64; 0 where x is NaN.

        Example:
            >>> from quarflow.data.columns import Column
            >>> t = ColumnTransform([Column(name="a", scale=2.0), Column(name="b", lower=0)])
            >>> t.call_and_logs(torch.tensor([torch.nan, 1.0]))
            (tensor([0., 0.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
        """
        x = self._checked(x)
        gone = x.isnan()
        if not gone.any():
            return self._by_column(x)
        # some value of the support, so that neither the result nor its gradient is NaN
        middle = self._inverse(torch.zeros_like(self.mean))
        z, logs = self._by_column(torch.where(gone, middle, x))

        return torch.where(gone, 0.0, z), torch.where(gone, 0.0, logs)

    def _by_column(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, ladj = self._unbound(x) if self._bounded else (x, torch.zeros_like(x))
        if self._tames:
            t = (v - self.center) / self.spread
            # log d asinh((v - c) / s) / dv = -log s - log sqrt(1 + t^2), no overflow in t^2
            root = torch.hypot(torch.ones_like(t), t)
            ladj = ladj - torch.where(self.tamed, root.log() + self.spread.log(), 0.0)
            v = torch.where(self.tamed, torch.asinh(t), v)
        for where, own in self.maps:
            z, slope = own.call(x[..., where])
            v, ladj = v.index_copy(-1, where, z), ladj.index_copy(-1, where, slope)

        return (v - self.mean) / self.scale, ladj - self.scale.log()

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (*, D) and the ladj of the inverse (*), float64."""
        z = self._checked(z)
        w = z * self.scale + self.mean
        # sinh only where it is wanted: elsewhere it may overflow, and inf * 0 spoils gradients
        bent = self.spread * torch.sinh(torch.where(self.tamed, w, 0.0)) + self.center
        v = torch.where(self.tamed, bent, w)
        x = self._rebound(v) if self._bounded else v
        for where, own in self.maps:
            x = x.index_copy(-1, where, own.inverse(w[..., where]))

        return x, -self.call_and_ladj(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _unbound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.lower.isfinite(), self.upper.isfinite()
        outside = (x <= self.lower) | (x >= self.upper)
        a = torch.where(low & ~outside, x - self.lower, 1.0)
        b = torch.where(high & ~outside, self.upper - x, 1.0)
        width = torch.where(low & high, self.upper - self.lower, 1.0)
        v = torch.where(low | high, a.log() - b.log(), x)
        ladj = width.log() - a.log() - b.log()  # 0 where there is no bound: a = b = width = 1

        return v, torch.where(outside, -torch.inf, ladj)

    def _rebound(self, v: Tensor) -> Tensor:
        low, high = self.lower.isfinite(), self.upper.isfinite()
        lower, upper = torch.where(low, self.lower, 0.0), torch.where(high, self.upper, 0.0)
        above = lower + torch.where(low & ~high, v, 0.0).exp()
        below = upper - torch.where(high & ~low, -v, 0.0).exp()
        s = torch.where(low & high, v, 0.0)
        # from the nearer end, so that the distance to it keeps its digits
        between = torch.where(
            s > 0,
            upper - (upper - lower) * torch.sigmoid(-s),
            lower + (upper - lower) * torch.sigmoid(s),
        )
        x = torch.where(low & ~high, above, torch.where(high & ~low, below, v))

        return torch.where(low & high, between, x)

    def _checked(self, x: Tensor) -> Tensor:
        features = self.mean.shape[0]
        if x.ndim == 0 or x.shape[-1] != features:
            got = x.shape[-1] if x.ndim else 0
            raise ValueError(f"The data have {got} columns, but {features} are expected.")
        if self.mean.device != x.device:
            for name in ("lower", "upper", "center", "spread", "tamed", "mean", "scale"):
                setattr(self, name, getattr(self, name).to(x.device))
            self.maps = [(where.to(x.device), own) for where, own in self.maps]
            for _, own in self.maps:
                own.to(x.device)

        return x.to(torch.float64)

    def __repr__(self) -> str:
        return f"ColumnTransform(features={self.mean.shape[0]})"
