r"""The convolutional residual step: x + F(x) of images with Lip(F) < 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quarflow.nn.conv_lipschitz import BoundConvNet
from quarflow.solvers import Solution, solve
from quarflow.transforms.conv_quar import default_image_tolerance
from quarflow.transforms.image import ImageTransform
from quarflow.transforms.implicit import implicit_root
from quarflow.transforms.logdet import LogDet, value_and_logdet

__all__ = ["ConvResidualStep"]


class ConvResidualStep(ImageTransform):
    r"""Residual step :math:`f(x) = x + F(x)` of images, with a dense Jacobian.

    As :class:`quarflow.transforms.ResidualStep`, for images: the inverse is a fixed point, the
    log-det a series, an estimate unless its mode is ``exact``.

    Reference:
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        network: F with its effective weights.
        bound: The certified bound on Lip(F), a scalar tensor.
        logdet: How the log-det is computed.
        generator: Of the random numbers of the log-det; the global one by default.
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.nn import LipschitzConvNet
        >>> network, bound = LipschitzConvNet((1, 4, 4), 8, [True]).bind()[0]
        >>> step = ConvResidualStep(network, bound, LogDet("exact"))
        >>> x = torch.randn(2, 1, 4, 4)
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-3)
        True
    """

    def __init__(
        self,
        network: BoundConvNet,
        bound: Tensor,
        logdet: LogDet | None = None,
        generator: torch.Generator | None = None,
        **solver: Any,
    ) -> None:
        super().__init__()
        self.network, self.bound = network, bound
        self.logdet = LogDet() if logdet is None else logdet
        self.generator, self.solver = generator, solver

    def with_generator(self, generator: torch.Generator | None) -> ConvResidualStep:
        """The same step, its random numbers from another generator."""
        return ConvResidualStep(self.network, self.bound, self.logdet, generator, **self.solver)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and its ladj, or an estimate of it."""
        F, ladj = value_and_logdet(self.network, self._flat(x), self.logdet, self.generator)

        return x + F.reshape(x.shape), ladj.reshape(x.shape[:-3])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By fixed point; gradients by the implicit function theorem; the ladj as forward."""
        x = self._inverse(z)

        return x, -self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        # No log-det where none is asked for.
        return x + self.network(self._flat(x)).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        x = self.solve(y).x
        if torch.is_grad_enabled():
            x = implicit_root(x, self._flat(y), self._call_and_slope, method="fixed_point")

        return x.reshape(y.shape)

    def solve(self, z: Tensor) -> Solution:
        """The inverse with iterations and residuals, images flattened to (N, C H W)."""
        y = self._flat(z.detach())
        options: dict[str, Any] = {
            "method": "fixed_point",
            "tolerance": default_image_tolerance(y.dtype),
        }

        return solve(lambda x, _: self._call_and_slope(x), y, **options | self.solver)

    def solved(self, solution: Solution, z: Tensor) -> Tensor:
        """The images of a solution for z."""
        return solution.x.reshape(z.shape)

    @torch.no_grad()
    def largest_norm(self, x: Tensor, iterations: int = 20) -> float:
        """Largest norm of F's Jacobian over images x found by power iteration: below Lip(F)."""
        flat = self._flat(x)
        derivative = self.network.linearize(flat)[1]
        v = torch.randn(
            flat.shape, generator=torch.Generator().manual_seed(0), dtype=flat.dtype
        ).to(flat.device)
        tiny = torch.finfo(v.dtype).tiny
        for _ in range(iterations):
            v = derivative.vjp(derivative.jvp(v))
            v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(tiny)

        return float(torch.linalg.vector_norm(derivative.jvp(v), dim=-1).max())

    def _call_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Slopes of 1 make the solver's sweep that of the fixed point.
        return x + self.network(x), torch.ones_like(x)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[:-3].numel(), x.shape[-3:].numel())

    def __repr__(self) -> str:
        return f"ConvResidualStep(shape={self.network.shape}, logdet={self.logdet.mode!r})"
