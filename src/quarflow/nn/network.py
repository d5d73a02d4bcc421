r"""What a network must give for the log-det of x + F(x) to be computed from products."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor

__all__ = ["Derivative", "Network"]


class Derivative(Protocol):
    """The derivative J of a network at N points, as a linear map of vectors (N, D)."""

    def jvp(self, v: Tensor) -> Tensor:
        """J v, for v of shape (N, D)."""

    def vjp(self, v: Tensor) -> Tensor:
        """v^T J, for v of shape (N, D)."""

    def dense(self) -> Tensor:
        """J as matrices, shape (N, D, D)."""

    def rows(self, index: Tensor | slice) -> Self:
        """The derivative at some of the points."""


class Network(Protocol):
    """F as a pure function of vectors and of its tensors."""

    def linearize(self, x: Tensor) -> tuple[Tensor, Derivative]:
        """The value and the derivative, for x of shape (N, D)."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that the value depends on, besides x."""

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        """The same network with other tensors."""
