r"""The planar step: a ridge across one direction."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.solvers import solve
from quarflow.transforms.base import Transform
from quarflow.transforms.implicit import implicit_root
from quarflow.transforms.slopes import above_minus_one

__all__ = ["PlanarStep"]


class PlanarStep(Transform):
    r"""Planar step :math:`f(x) = x + \hat u \tanh(w^\top x + b)`.

    .. math:: \det J = 1 + (1 - \tanh^2(w^\top x + b)) \, w^\top \hat u

    It is invertible when :math:`w^\top \hat u > -1`, so u is moved along w to where that holds.
    The inverse is the root of an increasing function of the single number
    :math:`w^\top x`.

    Reference:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), appendix A.1
        | https://arxiv.org/abs/1505.05770

    Arguments:
        u, w: Shape (*, D).
        b: Shape (*, 1).

    Example:
        >>> step = PlanarStep(torch.tensor([-3.0, 0.0]), torch.ones(2), torch.zeros(1))
        >>> x = torch.tensor([0.5, -1.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        product = (w * u).sum(-1, keepdim=True)
        square = (w * w).sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        self.slope = above_minus_one(product)  # w^T of the moved u, (*, 1)
        self.u = u + (self.slope - product) * w / square
        self.w, self.b = w, b

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, at the cost of two inner products."""
        h = torch.tanh((x * self.w).sum(-1, keepdim=True) + self.b)
        z = x + self.u * h
        ladj = torch.log1p((1 - h * h) * self.slope).squeeze(-1)

        return z, ladj.expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By :func:`quarflow.solvers.solve`, for one number per sample."""
        target = (z * self.w).sum(-1, keepdim=True)
        slope, b = (
            t.expand(torch.broadcast_shapes(t.shape, target.shape)) for t in (self.slope, self.b)
        )
        target = target.expand(slope.shape)
        flat_slope, flat_b = slope.detach().reshape(-1, 1), b.detach().reshape(-1, 1)

        def f(a: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return _ridge(a, flat_slope[rows], flat_b[rows])

        a = solve(f, target.detach().reshape(-1, 1)).x.reshape(target.shape)
        if torch.is_grad_enabled():
            a = implicit_root(a, target, lambda a: _ridge(a, slope, b))
        x = z - self.u * torch.tanh(a + b)

        return x, -self.call_and_ladj(x)[1]

    def __repr__(self) -> str:
        return f"PlanarStep(features={self.w.shape[-1]})"


def _ridge(a: Tensor, slope: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(a + b)

    return a + slope * h, 1 + (1 - h * h) * slope
