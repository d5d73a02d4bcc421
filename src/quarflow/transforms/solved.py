r"""Steps x + F(x), of vectors or images, whose inverse is solved for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from quarflow.solvers import Map, Solution, default_tolerance, other_dtype
from quarflow.transforms.base import REALS, Transform
from quarflow.transforms.implicit import implicit_root

__all__ = ["Function", "SolvedStep", "among", "default_image_tolerance"]

# (x, rows) to (f(x), slopes), both (n, D), for some of the rows or, with None, for all
Function = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def default_image_tolerance(dtype: torch.dtype) -> float:
    """Residual, relative to 1 + abs(z), at which the inverse of an image stops.

    1e-5 in float32, far below a grey level; 2e-13 in float64.

    Example:
        >>> default_image_tolerance(torch.float32)
        1e-05
    """
    return 2e-13 if dtype == torch.float64 else 1e-5


def among(f: Function, index: Tensor) -> Map:
    """The function for some of its rows."""
    return lambda x, rows: f(x, index[rows])


class SolvedStep(Transform):
    r"""What steps have in common: rows for the solver, and gradients of its answer.

    Arguments:
        event_dim: 1 for vectors, shape (*, D), 3 for images, (*, C, H, W).
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.flows import QuAR
        >>> step = QuAR(2, transforms=1).branches.bind()[0]
        >>> from quarflow.transforms import QuARStep
        >>> QuARStep(step).solve(torch.zeros(5, 2)).x.shape
        torch.Size([5, 2])
    """

    def __init__(self, event_dim: int, solver: dict[str, Any]) -> None:
        super().__init__()
        self.solver = solver
        self.domain = self.codomain = REALS[event_dim]

    @abstractmethod
    def solve(self, z: Tensor) -> Solution:
        """The inverse with iterations and residuals, points flattened to rows (N, D)."""

    def root(self, z: Tensor) -> Tensor:
        """The inverse alone, points flattened to rows (N, D)."""
        return self.solve(z).x

    @abstractmethod
    def function(self, shape: Size) -> Function:
        """f and its slopes as the solver sees them, for points of a shape."""

    def other(self, shape: Size, dtype: torch.dtype) -> Callable[[], Function]:
        """Makes the function of another type, which shows how large rounding is in this one."""
        return lambda: self.to(other_dtype(dtype)).function(shape)

    @property
    @abstractmethod
    def bound(self) -> Tensor:
        """The certified bound on abs(d), or Lip(F)."""

    @abstractmethod
    def measured(self, x: Tensor) -> float:
        """The largest of what is bounded, over the points x."""

    @property
    @abstractmethod
    def context_shape(self) -> Size:
        """Batch shape of the context that is bound."""

    def solved(self, solution: Solution, z: Tensor) -> Tensor:
        """The points of a solution for z."""
        return self.points(solution.x, self.shape(z))

    def invert(self, z: Tensor) -> tuple[Tensor, list[Solution]]:
        """The inverse without gradients, and its solution."""
        solution = self.solve(z)

        return self.solved(solution, z), [solution]

    def _inverse(self, y: Tensor) -> Tensor:
        shape = self.shape(y)
        x = self.root(y)
        if torch.is_grad_enabled():
            f = self.function(shape)
            x = implicit_root(x, self.rows(y, shape), lambda x: f(x, None), **self._transposed)

        return self.points(x, shape)

    @property
    def _transposed(self) -> dict[str, Any]:
        """Options of the solver for the transposed map."""
        return {}

    def shape(self, x: Tensor) -> Size:
        """Of x with the context."""
        event = x.shape[x.dim() - self.event_dim :]

        return torch.broadcast_shapes(x.shape, (*self.context_shape, *event))

    def rows(self, x: Tensor, shape: Size) -> Tensor:
        """Points as rows (N, D), in the order of the variables."""
        return x.expand(shape).reshape(-1, math.prod(shape[len(shape) - self.event_dim :]))

    def points(self, rows: Tensor, shape: Size) -> Tensor:
        """Points of a shape from their rows."""
        return rows.reshape(shape)

    def tolerance(self, dtype: torch.dtype) -> float:
        """The residual to stop at if none is asked for."""
        return (default_tolerance if self.event_dim == 1 else default_image_tolerance)(dtype)
