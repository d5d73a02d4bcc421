r"""The QuAR step: x + F(x) with a triangular Jacobian."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from quarflow.nn.branch import BoundBranch
from quarflow.solvers import Map, Solution, default_tolerance, other_dtype, solve
from quarflow.transforms.base import Transform, cast
from quarflow.transforms.implicit import implicit_root
from quarflow.transforms.substitution import substitute

__all__ = ["QuARStep"]

WIDENED = 5e-8  # residual asked for in float64 when the answer is rounded to float32


class QuARStep(Transform):
    r"""Quasi-autoregressive residual step :math:`f(x) = x + F(x)`.

    .. math:: \log\det J = \sum_i \log(1 + d_i), \quad d_i = \partial F_i / \partial x_i

    Since :math:`|d_i| \le \sigma < 1` and the Jacobian is triangular, f is increasing in each own
    variable and hence a global bijection, whatever the off-diagonal weights.

    Reference:
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), section 4
        | https://arxiv.org/abs/2009.07419

    Arguments:
        branch: F with effective weights and context bound.
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.nn import Branch
        >>> step = QuARStep(Branch(2, (8,), reverse=[False]).bind()[0])
        >>> x = torch.tensor([0.5, -1.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(self, branch: BoundBranch, **solver: Any) -> None:
        super().__init__()
        self.branch, self.solver = branch, solver

    def to(self, dtype: torch.dtype) -> Self:
        """The same step in another type; points that came in float32 need fewer digits."""
        new = super().to(dtype)
        if self.branch.bound.dtype != torch.float64 and dtype == torch.float64:
            new.solver = {"tolerance": WIDENED, **self.solver}

        return new

    def call_and_diagonal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and the diagonal d of F's Jacobian, both (*, D)."""
        F, d = self.branch(x)

        return x + F, d

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, in one pass; log1p of a d below -1 would be NaN, never a wrong number."""
        z, d = self.call_and_diagonal(x)

        return z, torch.log1p(d).sum(-1).expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By :func:`quarflow.solvers.solve`; gradients by the implicit function theorem."""
        if torch.is_grad_enabled():
            x = self._inverse(z)
            return x, -self.call_and_ladj(x)[1]
        found = self.solve(z)

        return (
            found.x.reshape(self._shape(z)),
            -found.slope.log().sum(-1).reshape(self._shape(z)[:-1]),
        )

    def _inverse(self, z: Tensor) -> Tensor:
        x = self.solve(z).x.reshape(self._shape(z))
        if torch.is_grad_enabled():
            x = implicit_root(x, z, self._call_and_slope, reverse=not self.branch.reverse)

        return x

    def inverse_near(self, z: Tensor, x: Tensor, tolerance: float) -> Tensor:
        """The inverse of z, found from an x that is close to it."""
        return self.solve(z, start=x, tolerance=tolerance).x.reshape(self._shape(z))

    def solve(self, z: Tensor, start: Tensor | None = None, **options: Any) -> Solution:
        """The inverse with iterations and residuals, rows flattened to (N, D).

        On a processor with compiled kernels one variable after the other is solved
        (:func:`quarflow.transforms.substitution.substitute`), unless a method is asked for;
        otherwise it is the method ``newton`` of :func:`quarflow.solvers.solve`.

        Arguments:
            z: Shape (*, D).
            start: Where to start, of the shape of the answer; z by default.
            options: Instead of the step's own options of the solver.
        """
        shape = self._shape(z)
        y = z.detach().expand(shape).reshape(-1, shape[-1])
        branch = self.branch.flat(shape[:-1])

        if start is not None:
            start = start.detach().expand(shape).reshape_as(y)
        options = {**self.solver, **options}
        found, tolerance = None, options.get("tolerance")
        tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
        if not options.keys() & {"method", "max_iterations"}:
            found = substitute(branch, y, start, tolerance)
        if found is None:
            return _by_sweeps(branch, y, start, options)

        left = (~(found.residual <= tolerance)).nonzero().squeeze(-1)
        if not len(left):
            return found
        rest = _by_sweeps(branch.rows(left), y[left], found.x[left], options)

        return found.replaced(left, rest)

    def _call_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, d = self.call_and_diagonal(x)

        return z, 1 + d

    def _shape(self, z: Tensor) -> torch.Size:
        return torch.broadcast_shapes(z.shape, (*self.branch.batch_shape, z.shape[-1]))

    def __repr__(self) -> str:
        order = "reversed" if self.branch.reverse else "natural"

        return f"QuARStep(features={len(self.branch.bound)}, order={order})"


def _by_sweeps(
    branch: BoundBranch, y: Tensor, start: Tensor | None, options: dict[str, Any]
) -> Solution:
    """By a method of the solvers, which evaluate the whole branch for the rows that are left."""

    def map_of(branch: BoundBranch) -> Map:
        def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, d = (branch if len(rows) == len(y) else branch.rows(rows))(x)
            return x + value, 1 + d

        return f

    def other() -> Map:
        return map_of(cast(branch, other_dtype(y.dtype)))

    return solve(map_of(branch), y, reverse=branch.reverse, start=start, other=other, **options)
