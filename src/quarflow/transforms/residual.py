r"""The residual step: x + F(x) with Lip(F) < 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quarflow.nn.lipschitz import LipschitzBranch
from quarflow.nn.mlp import BoundMLP
from quarflow.solvers import Map, Solution, other_dtype, solve
from quarflow.transforms.base import Transform, cast
from quarflow.transforms.implicit import implicit_root
from quarflow.transforms.logdet import LogDet, value_and_logdet

__all__ = ["ResidualStep"]


class ResidualStep(Transform):
    r"""Residual step :math:`f(x) = x + F(x)` with a dense Jacobian.

    Lip(F) < 1 makes it a bijection, whose inverse :math:`x \leftarrow z - F(x)` converges at the
    rate Lip(F). The log-det is a series, as :class:`quarflow.transforms.LogDet` says: an
    estimate, different from call to call, unless its mode is ``exact`` or grows without bound.

    Reference:
        | Invertible Residual Networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        branch: F with effective weights and context bound, and its Lipschitz bound.
        logdet: How the log-det is computed.
        generator: Of the random numbers of the log-det; the global one by default.
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.nn import LipschitzMLP
        >>> step = ResidualStep(LipschitzMLP(2, (8,), steps=1).bind()[0], LogDet("exact"))
        >>> x = torch.tensor([0.5, -1.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        branch: LipschitzBranch,
        logdet: LogDet | None = None,
        generator: torch.Generator | None = None,
        **solver: Any,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.logdet = LogDet() if logdet is None else logdet
        self.generator = generator
        self.solver = solver

    def with_generator(self, generator: torch.Generator | None) -> ResidualStep:
        """The same step, its random numbers from another generator."""
        return ResidualStep(self.branch, self.logdet, generator, **self.solver)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and its ladj, or an estimate of it."""
        shape = self._shape(x)
        flat = x.expand(shape).reshape(-1, shape[-1])
        network = self.branch.network.flat(shape[:-1])
        F, ladj = value_and_logdet(network, flat, self.logdet, self.generator)

        return x + F.reshape(shape), ladj.reshape(shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By fixed point; gradients by the implicit function theorem; the ladj as forward."""
        x = self._inverse(z)

        return x, -self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        # No log-det where none is asked for.
        return x + self.branch.network(x)

    def _inverse(self, y: Tensor) -> Tensor:
        x = self.solve(y).x.reshape(self._shape(y))
        if torch.is_grad_enabled():
            x = implicit_root(x, y, self._call_and_slope, method="fixed_point")

        return x

    def solve(self, z: Tensor) -> Solution:
        """The inverse with iterations and residuals, rows flattened to (N, D)."""
        shape = self._shape(z)
        y = z.detach().expand(shape).reshape(-1, shape[-1])
        network = self.branch.network.flat(shape[:-1])

        def map_of(network: BoundMLP) -> Map:
            def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
                F = (network if len(rows) == len(y) else network.rows(rows))(x)
                return x + F, torch.ones_like(x)

            return f

        def other() -> Map:
            return map_of(cast(network, other_dtype(y.dtype)))

        options: dict[str, Any] = {"method": "fixed_point"} | self.solver

        return solve(map_of(network), y, other=other, **options)

    @torch.no_grad()
    def largest_norm(self, x: Tensor) -> float:
        """Largest spectral norm of F's Jacobian over the points x, (*, D): below Lip(F)."""
        shape = self._shape(x)
        flat = x.expand(shape).reshape(-1, shape[-1])
        J = self.branch.network.flat(shape[:-1]).linearize(flat)[1].dense()

        return float(torch.linalg.matrix_norm(J, 2).max())

    def _call_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Slopes of 1 make the solver's sweep that of the fixed point.
        return x + self.branch.network(x), torch.ones_like(x)

    def _shape(self, x: Tensor) -> torch.Size:
        return torch.broadcast_shapes(x.shape, (*self.branch.network.batch_shape, x.shape[-1]))

    def __repr__(self) -> str:
        features = self.branch.network.weights[0].shape[-1]

        return f"ResidualStep(features={features}, logdet={self.logdet.mode!r})"
