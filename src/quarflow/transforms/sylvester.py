r"""The Sylvester step: several ridges at once."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.solvers import Solution, solve
from quarflow.transforms.base import Transform
from quarflow.transforms.implicit import implicit_root
from quarflow.transforms.slopes import LEAST_SLOPE

__all__ = ["SylvesterStep"]


class SylvesterStep(Transform):
    r"""Sylvester step :math:`f(x) = x + Q R \tanh(\tilde R Q^\top x + b)`.

    .. math:: \det J = \prod_m 1 + (1 - \tanh^2(\cdot)_m) \, R_{mm} \tilde R_{mm}

    Q has M orthonormal columns; R and R̃ are upper triangular. It is invertible when all
    :math:`R_{mm} \tilde R_{mm} > -1`, which holds as both diagonals are brought into (-1, 1) by
    tanh. Along Q the map is triangular with known slopes, so the inverse is that of a triangular
    map of M variables, solved as all others here; across Q it is the identity.

    Reference:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649

    Arguments:
        q: Q, shape (D, M), with orthonormal columns.
        r, r_tilde: R and R̃ before tanh on their diagonals, shape (*, M, M); what lies below the
            diagonal is not read.
        b: Shape (*, M).

    Example:
        >>> q = torch.linalg.qr(torch.randn(3, 2))[0]
        >>> step = SylvesterStep(q, torch.randn(2, 2), torch.randn(2, 2), torch.randn(2))
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q, self.b = q, b
        self.r, self.r_tilde = _tamed(r), _tamed(r_tilde)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, at the cost of D M + M^2."""
        s = x @ self.q
        moved, slope = _along(s, self.r, self.r_tilde, self.b)

        return x + (moved - s) @ self.q.mT, slope.log().sum(-1)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By :func:`quarflow.solvers.solve`, for M numbers per sample."""
        target = z @ self.q
        shape = self._shape(target)
        target = target.expand(shape)
        s = self.solve(z).x.reshape(shape)
        if torch.is_grad_enabled():
            r, r_tilde, b = self.r, self.r_tilde, self.b
            s = implicit_root(s, target, lambda s: _along(s, r, r_tilde, b))
        x = z + (s - target) @ self.q.mT

        return x, -self.call_and_ladj(x)[1]

    def solve(self, z: Tensor) -> Solution:
        """The inverse along Q with iterations and residuals, rows flattened to (N, M)."""
        target = (z @ self.q).detach()
        shape = self._shape(target)
        y = target.expand(shape).reshape(-1, shape[-1])
        r, r_tilde = (_flat(t.detach(), shape[:-1], 2) for t in (self.r, self.r_tilde))
        b = _flat(self.b.detach(), shape[:-1], 1)

        def f(s: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            parts = (
                t if t.dim() == dims else t[rows] for t, dims in ((r, 2), (r_tilde, 2), (b, 1))
            )
            return _along(s, *parts)

        return solve(f, y, reverse=True)

    def _shape(self, s: Tensor) -> torch.Size:
        return torch.broadcast_shapes(s.shape, self.b.shape, self.r.shape[:-1])

    def __repr__(self) -> str:
        features, ridges = self.q.shape

        return f"SylvesterStep(features={features}, ridges={ridges})"


def _tamed(r: Tensor) -> Tensor:
    diagonal = (1 - LEAST_SLOPE) * torch.tanh(r.diagonal(dim1=-2, dim2=-1))

    return r.triu(1) + torch.diag_embed(diagonal)


def _along(s: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """s + R tanh(R̃ s + b) and its slopes, both (*, M)."""
    h = torch.tanh(_apply(r_tilde, s) + b)
    product = r.diagonal(dim1=-2, dim2=-1) * r_tilde.diagonal(dim1=-2, dim2=-1)

    return s + _apply(r, h), 1 + (1 - h * h) * product


def _apply(matrix: Tensor, s: Tensor) -> Tensor:
    return s @ matrix.mT if matrix.dim() == 2 else (matrix @ s[..., None]).squeeze(-1)


def _flat(t: Tensor, batch_shape: torch.Size, dims: int) -> Tensor:
    """Batch flattened to (N, ...); as it is where there is none."""
    if t.dim() == dims:
        return t

    return t.expand(*batch_shape, *t.shape[-dims:]).reshape(-1, *t.shape[-dims:])
