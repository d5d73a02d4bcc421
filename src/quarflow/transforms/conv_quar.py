r"""The convolutional QuAR step: x + F(x) with a Jacobian that is triangular in raster order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quarflow.nn.bound import BoundBranch
from quarflow.solvers import Solution, solve
from quarflow.transforms.image import ImageTransform
from quarflow.transforms.implicit import implicit_root

__all__ = ["ConvQuARStep", "default_image_tolerance"]


def default_image_tolerance(dtype: torch.dtype) -> float:
    """Residual, relative to 1 + abs(z), at which an inverse stops.

    1e-5 in float32, far below a grey level; 2e-13 in float64.

    Example:
        >>> default_image_tolerance(torch.float32)
        1e-05
    """
    return 2e-13 if dtype == torch.float64 else 1e-5


class ConvQuARStep(ImageTransform):
    r"""Quasi-autoregressive residual step :math:`f(x) = x + F(x)` of images.

    .. math:: \log\det J = \sum_i \log(1 + d_i), \quad d_i = \partial F_i / \partial x_i

    A pixel's channels depend on the pixels before it in raster order and on its own channels up
    to theirs (reversed, on those after). Since :math:`|d_i| \le \sigma < 1`, f is increasing in
    each own variable and hence a global bijection.

    Reference:
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), appendix C
        | https://arxiv.org/abs/2009.07419

    Arguments:
        branch: F with its effective weights.
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.nn import ConvBranch
        >>> step = ConvQuARStep(ConvBranch((1, 4, 4), 8, [False], [True]).bind()[0])
        >>> x = torch.randn(2, 1, 4, 4)
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-3)
        True
    """

    def __init__(self, branch: BoundBranch, **solver: Any) -> None:
        super().__init__()
        self.branch, self.solver = branch, solver

    def call_and_diagonal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and the diagonal d of F's Jacobian, both (*, C, H, W)."""
        F, d = (_images(part, x.shape) for part in self.branch(_rows(x)))

        return x + F, d

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, in one pass; log1p of a d below -1 would be NaN, never a wrong number."""
        z, d = self.call_and_diagonal(x)

        return z, torch.log1p(d).sum((-3, -2, -1))

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By :func:`quarflow.solvers.solve`; gradients by the implicit function theorem."""
        if torch.is_grad_enabled():
            x = self._inverse(z)
            return x, -self.call_and_ladj(x)[1]
        # The solver's sweep at its answer gave the slopes there.
        solution = self.solve(z)
        ladj = -solution.slope.log().sum(-1).reshape(z.shape[:-3])

        return self._to_images(solution.x, z), ladj

    def _inverse(self, y: Tensor) -> Tensor:
        x = self.solve(y).x
        if torch.is_grad_enabled():
            rows = _rows(y)
            x = implicit_root(
                x,
                rows.reshape(x.shape),
                lambda x: self._call_and_slope(x, rows.shape),
                reverse=not self.branch.reverse,
            )

        return self._to_images(x, y)

    def solve(self, z: Tensor) -> Solution:
        """The inverse with iterations and residuals, in raster order, (N, H W C)."""
        rows = _rows(z.detach())
        y = rows.reshape(len(rows), rows[:1].numel() if len(rows) else z.shape[-3:].numel())

        def f(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            return self._call_and_slope(x, rows.shape)

        options: dict[str, Any] = {"tolerance": default_image_tolerance(y.dtype)} | self.solver

        return solve(f, y, reverse=self.branch.reverse, **options)

    def _call_and_slope(self, x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        F, d = self.branch(x.reshape(-1, *shape[1:]))

        return x + F.reshape(x.shape), 1 + d.reshape(x.shape)

    def solved(self, solution: Solution, z: Tensor) -> Tensor:
        """The images of a solution for z."""
        return self._to_images(solution.x, z)

    def _to_images(self, x: Tensor, z: Tensor) -> Tensor:
        *_, C, H, W = z.shape

        return _images(x.reshape(-1, H, W, C), z.shape)

    def __repr__(self) -> str:
        order = "reversed" if self.branch.reverse else "natural"

        return f"ConvQuARStep(channels={len(self.branch.bound)}, order={order})"


def _rows(x: Tensor) -> Tensor:
    """(*, C, H, W) to rows of pixels (N, H, W, C)."""
    return x.reshape(-1, *x.shape[-3:]).permute(0, 2, 3, 1).contiguous()


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows of pixels back to (*, C, H, W)."""
    return rows.permute(0, 3, 1, 2).reshape(shape)
