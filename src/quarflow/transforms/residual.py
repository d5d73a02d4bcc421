r"""The residual step: x + F(x) with Lip(F) < 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor

from quarflow.nn.lipschitz import LipschitzBranch
from quarflow.nn.mlp import BoundMLP, Linearization
from quarflow.solvers import Solution, solve
from quarflow.transforms.logdet import LogDet, value_and_logdet
from quarflow.transforms.solved import Function, SolvedStep

__all__ = ["ResidualStep"]


class ResidualStep(SolvedStep):
    r"""Residual step :math:`f(x) = x + F(x)` with a dense Jacobian, of vectors or images.

    Lip(F) < 1 makes it a bijection, whose inverse :math:`x \leftarrow z - F(x)` converges at the
    rate Lip(F). The log-det is a series, as :class:`quarflow.transforms.LogDet` says: an
    estimate, different from call to call, unless its mode is ``exact`` or grows without bound.

    Reference:
        | Invertible Residual Networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        branch: F with effective weights and context bound, and its Lipschitz bound; its network
            says whether of vectors, shape (*, D), or of images, (*, C, H, W).
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
        super().__init__(branch.network.event_dim, solver)
        self.branch = branch
        self.logdet = LogDet() if logdet is None else logdet
        self.generator = generator

    def with_generator(self, generator: torch.Generator | None) -> ResidualStep:
        """The same step, its random numbers from another generator."""
        return ResidualStep(self.branch, self.logdet, generator, **self.solver)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and its ladj, or an estimate of it."""
        shape = self.shape(x)
        flat, network = self.rows(x, shape), self._flat_network(shape)
        F, ladj = value_and_logdet(network, flat, self.logdet, self.generator)

        return x + F.reshape(shape), ladj.reshape(shape[: len(shape) - self.event_dim])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By fixed point; gradients by the implicit function theorem; the ladj as forward."""
        x = self._inverse(z)

        return x, -self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        # No log-det where none is asked for.
        shape = self.shape(x)

        return x + self._flat_network(shape)(self.rows(x, shape)).reshape(shape)

    def solve(self, z: Tensor) -> Solution:
        """The inverse with iterations and residuals, points flattened to rows (N, D)."""
        shape = self.shape(z)
        y = self.rows(z.detach(), shape)
        options = {**self._transposed, "tolerance": self.tolerance(y.dtype), **self.solver}

        return solve(self.function(shape), y, other=self.other(shape, y.dtype), **options)

    def function(self, shape: Size) -> Function:
        """f as the solver sees it; slopes of 1 make its sweep that of the fixed point."""
        network = self._flat_network(shape)
        total = shape[: len(shape) - self.event_dim].numel()

        def f(x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
            own = network if rows is None or len(rows) == total else network.rows(rows)
            return x + own(x), torch.ones_like(x)

        return f

    @torch.no_grad()
    def measured(self, x: Tensor) -> float:
        """Largest norm of F's Jacobian over the points x: below Lip(F).

        Of vectors it is exact; of images it is found by power iteration, from below.
        """
        shape = self.shape(x)
        derivative = self._flat_network(shape).linearize(self.rows(x, shape))[1]
        if self.event_dim == 1:
            return float(torch.linalg.matrix_norm(derivative.dense(), 2).max())

        return float(power_norm(derivative, self.rows(x, shape)).max())

    @property
    def bound(self) -> Tensor:
        """The certified bound on Lip(F), a scalar."""
        return self.branch.bound

    @property
    def context_shape(self) -> Size:
        """Batch shape of the context that is bound."""
        return self.branch.network.batch_shape

    def _flat_network(self, shape: Size) -> BoundMLP:
        return self.branch.network.flat(shape[: len(shape) - self.event_dim])

    @property
    def _transposed(self) -> dict[str, Any]:
        return {"method": "fixed_point"}

    def __repr__(self) -> str:
        network = self.branch.network
        size = f"features={network.weights[0].shape[-1]}"
        if network.shape is not None:
            size = f"shape={network.shape}"

        return f"ResidualStep({size}, logdet={self.logdet.mode!r})"


def power_norm(derivative: Linearization, like: Tensor, iterations: int = 20) -> Tensor:
    """Spectral norms from below, shape (N), by power iteration from vectors like (N, D)."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    tiny = torch.finfo(v.dtype).tiny
    for _ in range(iterations):
        v = derivative.vjp(derivative.jvp(v))
        v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(tiny)

    return torch.linalg.vector_norm(derivative.jvp(v), dim=-1)
