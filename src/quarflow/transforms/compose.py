r"""Composition of bijections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import Self

import torch
from torch import Size, Tensor

from quarflow.solvers import Solution
from quarflow.transforms.base import Transform, Visit
from quarflow.transforms.trust import (
    Amplification,
    amplification,
    check_errors,
    check_finite,
)

__all__ = ["Composed"]


class Composed(Transform):
    r"""Apply transforms one after the other; log-dets add up.

    Arguments:
        transforms: The steps, first to last.
        exact: Whether points of lower precision are mapped, both ways, in float64 and rounded at
            the end. Rounding inside the steps is amplified by the inverses of the later ones: in
            float32 points came back up to 2e-5 away, this way 2e-6. ``call_and_ladj``, which
            log-densities are made of, stays in the precision of its argument.

    Raises:
        InversionError: by the inverse, where a step does not converge, or x would not be finite.

    Example:
        >>> import torch
        >>> from quarflow.transforms import Affine, Permutation
        >>> shift, flip = Affine(torch.ones(2), torch.zeros(2)), Permutation(torch.tensor([1, 0]))
        >>> Composed([shift, flip])(torch.tensor([1.0, 2.0]))
        tensor([3., 2.])
    """

    precision: torch.dtype | None = None  # of the points that a map in float64 is for
    checks = False

    def __init__(self, transforms: Sequence[Transform], exact: bool = False) -> None:
        super().__init__()
        self._steps: list[Transform] | None = list(transforms)
        self.exact = exact
        if self._steps:
            self.domain = self._steps[0].domain
            self.codomain = self._steps[-1].codomain

    @property
    def transforms(self) -> list[Transform]:
        """The steps, first to last."""
        return self._steps or []

    @property
    def checked(self) -> Self:
        """The same map, whose inverse raises where rounding of z may move x by more than 1e-5
        (points in float32) or 1e-10 (float64), relative to 1 + abs(x); at twice the time.
        """
        new = copy(self)
        new.checks = True

        return new

    def loosened(self, tolerance: float) -> Self:
        """The same map, whose inverse stays in the type of z and stops at larger residuals."""
        new = copy(self)
        new.exact = False
        new._steps = [t.loosened(tolerance) for t in self.transforms]

        return new

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps forward."""
        ladj = x.new_zeros(x.shape[: x.dim() - self.domain.event_dim])
        for transform in self.transforms:
            x, step = transform.call_and_ladj(x)
            ladj = ladj + step

        return x, ladj

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps backward."""
        wide = self._wide(z)
        if wide is not None:
            x, ladj = wide.inverse_and_ladj(z.double())
            x = x.to(z.dtype)
            self._check_finite(z, x)
            return x, ladj.to(z.dtype)
        ladj, path = z.new_zeros(z.shape[: z.dim() - self.codomain.event_dim]), [z]
        for transform in reversed(self.transforms):
            x, step = transform.inverse_and_ladj(path[-1])
            ladj = ladj + step
            path.append(x)
        self._check(path)

        return path[-1], ladj

    def _call(self, x: Tensor) -> Tensor:
        # No log-dets where none is asked for: some transforms do without them.
        wide = self._wide(x)
        if wide is not None:
            return wide._call(x.double()).to(x.dtype)
        for transform in self.transforms:
            x = transform._call(x)

        return x

    def _inverse(self, y: Tensor) -> Tensor:
        wide = self._wide(y)
        if wide is not None:
            x = wide._inverse(y.double()).to(y.dtype)
            self._check_finite(y, x)
            return x

        return self._path(y)[-1]

    def inverse_and_amplification(self, z: Tensor) -> tuple[Tensor, Amplification]:
        """x, and what rounding does to it; see :func:`amplification`."""
        wide = self._wide(z)
        if wide is not None:
            x, found = wide.inverse_and_amplification(z.double())
            return x.to(z.dtype), found
        path = self._path(z)

        if not self.transforms:
            return z, amplification([self], path * 2, self.precision)

        return path[-1], amplification(self.transforms, path, self.precision)

    def _path(self, z: Tensor) -> list[Tensor]:
        """z, then what it becomes by the inverse of each step, last to first."""
        path = [z]
        for transform in reversed(self.transforms):
            path.append(transform._inverse(path[-1]))
        self._check(path)

        return path

    def _check(self, path: Sequence[Tensor]) -> None:
        self._check_finite(path[0], path[-1])
        if self.checks and self.transforms and path[0].numel():
            check_errors(amplification(self.transforms, path, self.precision))

    def _check_finite(self, z: Tensor, x: Tensor) -> None:
        check_finite(x, z, (self.domain.event_dim, self.codomain.event_dim))

    @property
    def parts(self) -> list[Transform]:
        """Those of the steps, first to last."""
        return [part for transform in self.transforms for part in transform.parts]

    def walk(self, x: Tensor, visit: Visit) -> Tensor:
        """All the steps forward, each part by ``visit``."""
        for transform in self.transforms:
            x = transform.walk(x, visit)

        return x

    def mapped(self, change: Callable[[Transform], Transform]) -> Composed:
        """The same with every part changed."""
        new = Composed([t.mapped(change) for t in self.transforms], self.exact)
        new.precision, new.checks = self.precision, self.checks

        return new

    def invert(self, z: Tensor) -> tuple[Tensor, list[Solution]]:
        """The inverse and the solutions of its steps; how steep it is is not looked at."""
        wide = self._wide(z)
        if wide is not None:
            x, found = wide.invert(z.double())
            return x.to(z.dtype), found
        solutions: list[Solution] = []
        for transform in reversed(self.transforms):
            z, found = transform.invert(z)
            solutions = found + solutions

        return z, solutions

    def _wide(self, x: Tensor) -> Composed | None:
        """The same map in float64, for tensors of lower precision."""
        if x.dtype == torch.float64 or not self.exact:
            return None
        wide = self.to(torch.float64)
        wide.exact, wide.precision = False, x.dtype

        return wide

    def forward_shape(self, shape: Size) -> Size:
        """Shapes change as the transforms change them."""
        for transform in self.transforms:
            shape = transform.forward_shape(shape)

        return shape

    def inverse_shape(self, shape: Size) -> Size:
        """Shapes change as the transforms change them."""
        for transform in reversed(self.transforms):
            shape = transform.inverse_shape(shape)

        return shape

    @property
    def sign(self) -> int:
        """Orientation is reversed by an odd number of reversals."""
        return prod(t.sign for t in self.transforms)

    def __repr__(self) -> str:
        inner = "".join(f"\n  ({i}): {t!r}" for i, t in enumerate(self.transforms))

        return f"{type(self).__name__}({inner}\n)"
