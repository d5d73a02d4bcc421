r"""All the steps of a QuAR flow, forward in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from quarflow.nn.bound import BoundBranches
from quarflow.ops.chain import Chain, residual_chain
from quarflow.transforms.base import Transform
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine, Only, among
from quarflow.transforms.quar import QuARStep

__all__ = ["QuARChain"]


class QuARChain(Composed):
    r"""(First,) affine, QuAR step, affine, ..., affine: the same map composed, only faster.

    Forward it is one fused function of stacked parameters (:mod:`quarflow.ops.chain`); backward it
    is step after step. Like the transform of every flow it maps points in float64, see
    :class:`Composed`.

    Arguments:
        branches: T bound branches.
        shift, log_scale: Of the affine maps, shapes (T + 1, D).
        first, last: What comes before and after them, if anything does.

    Of branches that are masked the affine maps are so too; see :class:`Only`.

    Example:
        >>> from quarflow.nn import Branch
        >>> branches = Branch(2, (8,), reverse=[False, True]).bind()
        >>> f = QuARChain(branches, torch.zeros(3, 2), torch.zeros(3, 2))
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(f(x), Composed(f.transforms)(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        branches: BoundBranches,
        shift: Tensor,
        log_scale: Tensor,
        first: Sequence[Transform] = (),
        last: Sequence[Transform] = (),
    ) -> None:
        super().__init__((), exact=True)
        self.first, self.last = list(first), list(last)
        self.branches, self.shift, self.log_scale = branches, shift, log_scale
        self.scale = log_scale.exp()
        self._steps = None  # made when they are asked for: forward nobody does

    @property
    def transforms(self) -> list[Transform]:
        """The steps, first to last."""
        if self._steps is None:
            parts = zip(self.shift, self.log_scale, self.scale, strict=True)
            m = self.branches.modelled
            affines = [Affine(*part, modelled=m) for part in parts]
            only = [] if m is None else [Only(m)]
            self._steps = [*only, *self.first, affines[0]]
            for branch, affine in zip(self.branches, affines[1:], strict=True):
                self._steps += [QuARStep(branch), affine]
            self._steps += [*self.last, *only]

        return self._steps

    def to(self, dtype: torch.dtype) -> Self:
        """The same map in another type."""
        self._steps = self.transforms  # each step decides what its solver needs in that type

        return super().to(dtype)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps forward."""
        b, m = self.branches, self.branches.modelled
        constant = self.log_scale.sum() if m is None else _sum(self.log_scale, m)
        x = among(m, x, 0)
        for transform in self.first:
            x, own = transform.call_and_ladj(x)
            constant = constant + own
        biases, batch = b.biases, x.shape[:-1]
        if biases[0].dim() > 2:
            batch = torch.broadcast_shapes(batch, biases[0].shape[1:-1])
            biases = tuple([_rows(bias, batch) for bias in biases])
        rows = x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1])
        phi = b.options[0].activation
        chain = Chain(self.scale, self.shift, b.weights, b.blocks, biases, phi, b.shape)
        if m is not None:
            m = m.expand(*batch, x.shape[-1]).reshape(rows.shape)
        z, ladj = residual_chain(rows, chain, m)
        z, ladj = z.reshape(*batch, x.shape[-1]), ladj.reshape(batch) + constant
        for transform in self.last:
            z, own = transform.call_and_ladj(z)
            ladj = ladj + own

        return z, ladj

    def _call(self, x: Tensor) -> Tensor:
        wide = self._wide(x)
        if wide is not None:
            return wide._call(x.double()).to(x.dtype)

        return self.call_and_ladj(x)[0]


def _sum(log_scale: Tensor, modelled: Tensor) -> Tensor:
    """Of all maps (T + 1, D), and of the variables that are modelled, shape (*)."""
    return torch.where(modelled, log_scale.sum(0), 0).sum(-1)


def _rows(bias: Tensor, batch: torch.Size) -> Tensor:
    """With a context of shape (T, *, H), a row for each point: (T, N, H)."""
    T, *context, H = bias.shape
    missing = len(batch) - len(context)

    return bias.view(T, *(1,) * missing, *context, H).expand(T, *batch, H).flatten(1, -2)
