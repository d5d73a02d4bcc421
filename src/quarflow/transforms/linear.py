r"""Invertible linear mixes of all variables."""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.transforms.base import Transform

__all__ = ["LinearLU", "LinearTriangular"]


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

    Example:
        >>> t = LinearLU(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2))
        >>> t(torch.tensor([1.0, 2.0])), t.inv(torch.tensor([1.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 2.]))
    """

    def __init__(self, lower: Tensor, upper: Tensor, log_diagonal: Tensor) -> None:
        super().__init__()
        self.lower = lower.tril(-1) + torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        self.upper = upper.triu(1) + torch.diag_embed(log_diagonal.exp())
        self.log_diagonal = log_diagonal

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        z = fn.linear(x, self.lower @ self.upper)

        return z, self.log_diagonal.sum().expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Two triangular solves."""
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

    Example:
        >>> t = LinearTriangular(torch.ones(2, 2), torch.zeros(2), torch.zeros(2))
        >>> t(torch.tensor([1.0, 2.0])), t.inv(torch.tensor([1.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 2.]))
    """

    def __init__(self, lower: Tensor, log_diagonal: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.lower = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
        self.log_diagonal, self.shift = log_diagonal, shift

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product."""
        z = fn.linear(x, self.lower) + self.shift

        return z, self.log_diagonal.sum().expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """One triangular solve."""
        moved = z - self.shift
        x = torch.linalg.solve_triangular(
            self.lower, moved.reshape(-1, moved.shape[-1]).mT, upper=False
        ).mT.reshape(moved.shape)

        return x, (-self.log_diagonal.sum()).expand(x.shape[:-1])

    def __repr__(self) -> str:
        return f"LinearTriangular(features={len(self.log_diagonal)})"
