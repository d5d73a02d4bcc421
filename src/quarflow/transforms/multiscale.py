r"""Several scales of an image, squeezed in between, with or without factoring out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor

from quarflow.solvers import Solution
from quarflow.transforms.base import REALS, Transform, Visit
from quarflow.transforms.image import Squeeze

__all__ = ["MultiScale"]


class MultiScale(Transform):
    r"""Images (*, C, H, W) to vectors (*, C H W), through chains of transforms at each scale.

    After each scale but the last the image is squeezed. With ``factor_out`` half of what it then
    holds (of each 2 x 2 pixels one diagonal) is done and only the other half goes on.

    Reference:
        | Density estimation using Real NVP (Dinh et al., 2016), section 3.6
        | https://arxiv.org/abs/1605.08803

    Arguments:
        shape: (C, H, W) of the image.
        chains: For each scale, its transforms.
        factor_out: Whether half of the variables are done after each scale.

    Example:
        >>> MultiScale((1, 4, 4), [[], []], factor_out=True)(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 16])
    """

    domain = REALS[3]

    def __init__(
        self, shape: Sequence[int], chains: Sequence[Sequence[Transform]], factor_out: bool
    ) -> None:
        super().__init__()
        self.shape, self.chains, self.factor_out = (
            tuple(shape),
            [list(chain) for chain in chains],
            factor_out,
        )
        if self.chains[0]:
            self.domain = self.chains[0][0].domain

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) at each scale."""
        C, H, W = self.shape
        grow = 2 if self.factor_out else 4

        return [(C * grow**s, H >> s, W >> s) for s in range(len(self.chains))]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All scales; what is done early comes first in z."""
        total = [x.new_zeros(x.shape[:-3])]

        def step(transform: Transform, x: Tensor) -> Tensor:
            z, ladj = transform.call_and_ladj(x)
            total[0] = total[0] + ladj
            return z

        return self._down(x, step), total[0]

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All scales, from the last to the first."""
        total = [z.new_zeros(z.shape[:-1])]

        def step(transform: Transform, z: Tensor) -> Tensor:
            x, ladj = transform.inverse_and_ladj(z)
            total[0] = total[0] + ladj
            return x

        return self._up(z, step), total[0]

    def _call(self, x: Tensor) -> Tensor:
        # No log-dets where none is asked for: some transforms do without them.
        return self._down(x, lambda transform, x: transform._call(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return self._up(y, lambda transform, z: transform._inverse(z))

    @property
    def parts(self) -> list[Transform]:
        """Those of the chains, first to last."""
        return [part for chain in self.chains for transform in chain for part in transform.parts]

    def walk(self, x: Tensor, visit: Visit) -> Tensor:
        """All scales, each part by ``visit``."""
        return self._down(x, lambda transform, x: transform.walk(x, visit))

    def mapped(self, change: Callable[[Transform], Transform]) -> MultiScale:
        """The same with every part changed."""
        chains = [[t.mapped(change) for t in chain] for chain in self.chains]

        return MultiScale(self.shape, chains, self.factor_out)

    def invert(self, z: Tensor) -> tuple[Tensor, list[Solution]]:
        """The inverse and the solutions of its steps."""
        solutions: list[Solution] = []

        def step(transform: Transform, z: Tensor) -> Tensor:
            x, found = transform.invert(z)
            solutions[:0] = found
            return x

        return self._up(z, step), solutions

    def _down(self, x: Tensor, step: Visit) -> Tensor:
        done = []
        for scale, chain in enumerate(self.chains):
            if scale:
                x = Squeeze()(x)
                if self.factor_out:
                    out, x = _split(x)
                    done.append(out.flatten(-3))
            for transform in chain:
                x = step(transform, x)

        return torch.cat([*done, x.flatten(-3)], -1)

    def _up(self, z: Tensor, step: Visit) -> Tensor:
        batch, shapes = z.shape[:-1], self.shapes
        sizes = [math.prod(shape) for shape in shapes]
        # What is done before a scale is as much as goes on into it.
        parts = z.split(sizes[1:] + sizes[-1:], -1) if self.factor_out else (z,)
        x = parts[-1].reshape(*batch, *shapes[-1])
        for scale in range(len(self.chains) - 1, -1, -1):
            for transform in reversed(self.chains[scale]):
                x = step(transform, x)
            if scale:
                if self.factor_out:
                    x = _join(parts[scale - 1].reshape(*batch, *shapes[scale]), x)
                x = Squeeze()._inverse(x)

        return x

    def forward_shape(self, shape: Size) -> Size:
        """Three dimensions become one."""
        return Size((*shape[:-3], math.prod(self.shape)))

    def inverse_shape(self, shape: Size) -> Size:
        """One dimension becomes three."""
        return Size((*shape[:-1], *self.shape))

    @property
    def sign(self) -> int:
        """That of the reordering of the variables; the steps themselves are increasing."""
        size = math.prod(self.shape)
        plain = MultiScale(self.shape, [[] for _ in self.chains], self.factor_out)
        order = plain(torch.arange(size, dtype=torch.float64).view(self.shape)).long().tolist()
        cycles, seen = 0, [False] * size
        for start in range(size):
            cycles += not seen[start]
            while not seen[start]:
                seen[start], start = True, order[start]

        return -1 if (size - cycles) % 2 else 1

    def __repr__(self) -> str:
        inner = "".join(
            f"\n  ({s}): {shape}, {len(chain)} transforms"
            for s, (shape, chain) in enumerate(zip(self.shapes, self.chains, strict=True))
        )

        return f"MultiScale(factor_out={self.factor_out}{inner}\n)"


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each squeezed pixel, the rising diagonal (done) and the falling one (goes on)."""
    by_place = x.unflatten(-3, (-1, 4))

    return by_place[..., 1:3, :, :].flatten(-4, -3), by_place[..., ::3, :, :].flatten(-4, -3)


def _join(done: Tensor, on: Tensor) -> Tensor:
    done, on = (part.unflatten(-3, (-1, 2)) for part in (done, on))
    parts = (on[..., :1, :, :], done, on[..., 1:, :, :])

    return torch.cat(parts, -3).flatten(-4, -3)
