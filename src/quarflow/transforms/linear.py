r"""Invertible linear mixes of all variables."""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.transforms.base import Transform
from quarflow.transforms.elementwise import among

__all__ = ["LinearLU", "LinearTriangular"]


def _solved(matrix: Tensor, z: Tensor, modelled: Tensor, upper: bool) -> Tensor:
    """The x (*, D) that a triangular matrix, without the rows and columns of variables that are
    not modelled, maps to z (*, D): one variable after the other, each for all rows at once.
    """
    D = z.shape[-1]
    z = z.expand(torch.broadcast_shapes(z.shape, modelled.shape))
    found: list[Tensor] = []
    order = range(D - 1, -1, -1) if upper else range(D)
    for i in order:
        here = z[..., i]
        if found:
            known = torch.where(modelled[..., order[: len(found)]], torch.stack(found, -1), 0)
            here = here - known @ matrix[i, order[: len(found)]]
        found.append(torch.where(modelled[..., i], here / matrix[i, i], z[..., i]))

    return torch.stack(found[::-1] if upper else found, -1)


class LinearLU(Transform):
    r"""Linear map :math:`z = L U x` with L unit lower and U upper triangular.

    Its log-det is the sum of the logarithms of U's diagonal, which is positive.

    Reference:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Arguments:
        lower: L, shape (D, D); only what lies below the diagonal is read.
        upper: U, shape (D, D); only what lies above the diagonal is read.
        log_diagonal: Logarithm of U's diagonal, shape (D).
        modelled: Which variables it mixes, bool, shape (*, D): both factors without the rows and
            columns of all others, which stay.

    Example:
        >>> t = LinearLU(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2))
        >>> t(torch.tensor([1.0, 2.0])), t.inv(torch.tensor([1.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 2.]))
    """

    def __init__(
        self,
        lower: Tensor,
        upper: Tensor,
        log_diagonal: Tensor,
        modelled: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.modelled = modelled
        self.lower = lower.tril(-1) + torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        self.upper = upper.triu(1) + torch.diag_embed(log_diagonal.exp())
        self.log_diagonal = log_diagonal

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product, two where not all variables are modelled."""
        m = self.modelled
        if m is None:
            z = fn.linear(x, self.lower @ self.upper)
            return z, self.log_diagonal.sum().expand(z.shape[:-1])
        between = torch.where(m, fn.linear(torch.where(m, x, 0), self.upper), 0)
        z = torch.where(m, fn.linear(between, self.lower), x)

        return z, among(m, self.log_diagonal, 0).sum(-1).expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Two triangular solves."""
        m = self.modelled
        if m is not None:
            x = _solved(self.upper, _solved(self.lower, z, m, upper=False), m, upper=True)
            return x, -among(m, self.log_diagonal, 0).sum(-1).expand(x.shape[:-1])
        x = torch.linalg.solve_triangular(
            self.lower, z.reshape(-1, z.shape[-1]).mT, upper=False, unitriangular=True
        )
        x = torch.linalg.solve_triangular(self.upper, x, upper=True).mT.reshape(z.shape)

        return x, (-self.log_diagonal.sum()).expand(x.shape[:-1])

    def __repr__(self) -> str:
        return f"LinearLU(features={len(self.log_diagonal)})"


class LinearTriangular(Transform):
    r"""Affine map :math:`z = L x + b` with L lower triangular, its diagonal positive.

    Arguments:
        lower: L, shape (D, D); only what lies below the diagonal is read.
        log_diagonal: Logarithm of L's diagonal, shape (D).
        shift: b, shape (*, D).
        modelled: Which variables it maps, bool, shape (*, D): L without the rows and columns of
            all others, which stay.

    Example:
        >>> t = LinearTriangular(torch.ones(2, 2), torch.zeros(2), torch.zeros(2))
        >>> t(torch.tensor([1.0, 2.0])), t.inv(torch.tensor([1.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 2.]))
    """

    def __init__(
        self,
        lower: Tensor,
        log_diagonal: Tensor,
        shift: Tensor,
        modelled: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.modelled = modelled
        self.lower = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
        self.log_diagonal, self.shift = log_diagonal, shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        m = self.modelled
        z = fn.linear(among(m, x, 0), self.lower) + self.shift

        return among(m, z, x), self._ladj(z)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """One triangular solve."""
        m = self.modelled
        if m is not None:
            x = _solved(self.lower, among(m, z - self.shift, z), m, upper=False)
            return x, -self._ladj(x)
        moved = z - self.shift
        x = torch.linalg.solve_triangular(
            self.lower, moved.reshape(-1, moved.shape[-1]).mT, upper=False
        ).mT.reshape(moved.shape)

        return x, -self._ladj(x)

    def _ladj(self, x: Tensor) -> Tensor:
        return among(self.modelled, self.log_diagonal, 0).sum(-1).expand(x.shape[:-1])

    def __repr__(self) -> str:
        return f"LinearTriangular(features={len(self.log_diagonal)})"
