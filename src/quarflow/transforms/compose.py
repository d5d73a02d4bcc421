r"""Composition of bijections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import prod

import torch
from torch import Size, Tensor

from quarflow.solvers import Solution
from quarflow.transforms.base import Transform, Visit
from quarflow.transforms.trust import Trust

__all__ = ["Composed"]


class Composed(Transform):
    r"""Apply transforms one after the other; log-dets add up.

    Arguments:
        transforms: The steps, first to last.
        exact: Whether points of lower precision are mapped, both ways, in float64 and rounded at
            the end. Rounding inside the steps is amplified by the inverses of the later ones: in
            float32 points came back up to 2e-5 away, this way 2e-6. ``call_and_ladj``, which
            log-densities are made of, stays in the precision of its argument.
        trusted: Whether the inverse checks how far it amplifies the rounding of z; see
            :class:`quarflow.transforms.trust.Trust`.

    Raises:
        InversionError: by the inverse, where it is too steep for the precision of z.

    Example:
        >>> import torch
        >>> from quarflow.transforms import Affine, Permutation
        >>> shift, flip = Affine(torch.ones(2), torch.zeros(2)), Permutation(torch.tensor([1, 0]))
        >>> Composed([shift, flip])(torch.tensor([1.0, 2.0]))
        tensor([3., 2.])
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        exact: bool = False,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        self._steps: list[Transform] | None = list(transforms)
        self.exact = exact
        self.trust = Trust() if trusted else None
        if self._steps:
            self.domain = self._steps[0].domain
            self.codomain = self._steps[-1].codomain

    @property
    def transforms(self) -> list[Transform]:
        """The steps, first to last."""
        return self._steps or []

    @property
    def unchecked(self) -> Composed:
        """The same map, whose inverse does not look at how far it amplifies rounding."""
        new = copy(self)
        new.trust = None
        new._steps = [t.unchecked if isinstance(t, Composed) else t for t in self.transforms]

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
            return x.to(z.dtype), ladj.to(z.dtype)
        ladj, path = z.new_zeros(z.shape[:-1]), [z]
        for transform in reversed(self.transforms):
            z, step = transform.inverse_and_ladj(z)
            ladj = ladj + step
            path.append(z)
        if self.trust is not None:
            self.trust.check(self.transforms, path)

        return z, ladj

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
            return wide._inverse(y.double()).to(y.dtype)
        path = [y]
        for transform in reversed(self.transforms):
            path.append(transform._inverse(path[-1]))
        if self.trust is not None:
            self.trust.check(self.transforms, path)

        return path[-1]

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
        new.trust = self.trust

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
        wide.exact = False
        wide.trust = None if self.trust is None else Trust(x.dtype)

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
