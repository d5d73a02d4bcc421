r"""Composition of bijections."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from quarflow.transforms.base import Transform

__all__ = ["Composed"]


class Composed(Transform):
    r"""Apply transforms one after the other; log-dets add up.

    Example:
        >>> import torch
        >>> from quarflow.transforms import Affine, Permutation
        >>> shift, flip = Affine(torch.ones(2), torch.zeros(2)), Permutation(torch.tensor([1, 0]))
        >>> Composed([shift, flip])(torch.tensor([1.0, 2.0]))
        tensor([3., 2.])
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = list(transforms)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps forward."""
        ladj = x.new_zeros(x.shape[:-1])
        for transform in self.transforms:
            x, step = transform.call_and_ladj(x)
            ladj = ladj + step

        return x, ladj

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps backward."""
        ladj = z.new_zeros(z.shape[:-1])
        for transform in reversed(self.transforms):
            z, step = transform.inverse_and_ladj(z)
            ladj = ladj + step

        return z, ladj

    def _call(self, x: Tensor) -> Tensor:
        # No log-dets where none is asked for: some transforms do without them.
        for transform in self.transforms:
            x = transform._call(x)

        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform._inverse(y)

        return y

    @property
    def sign(self) -> int:
        """Orientation is reversed by an odd number of reversals."""
        return prod(t.sign for t in self.transforms)

    def __repr__(self) -> str:
        inner = "".join(f"\n  ({i}): {t!r}" for i, t in enumerate(self.transforms))

        return f"{type(self).__name__}({inner}\n)"
