r"""All the steps of a QuAR flow, forward in one go."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from quarflow.nn.bound import BoundBranches
from quarflow.ops.chain import Chain, residual_chain
from quarflow.transforms.base import Transform
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine
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
        first: What comes before them, if anything does.

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
        first: Transform | None = None,
    ) -> None:
        super().__init__((), exact=True)
        self.first = first
        self.branches, self.shift, self.log_scale = branches, shift, log_scale
        self.scale = log_scale.exp()
        self._steps = None  # made when they are asked for: forward nobody does

    @property
    def transforms(self) -> list[Transform]:
        """The steps, first to last."""
        if self._steps is None:
            parts = zip(self.shift, self.log_scale, self.scale, strict=True)
            affines = [Affine(*part) for part in parts]
            self._steps = [] if self.first is None else [self.first]
            self._steps.append(affines[0])
            for branch, affine in zip(self.branches, affines[1:], strict=True):
                self._steps += [QuARStep(branch), affine]

        return self._steps

    def to(self, dtype: torch.dtype) -> Self:
        """The same map in another type."""
        self._steps = self.transforms  # each step decides what its solver needs in that type

        return super().to(dtype)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps forward."""
        b, constant = self.branches, self.log_scale.sum()
        if self.first is not None:
            x, own = self.first.call_and_ladj(x)
            constant = constant + own
        biases, batch = b.biases, x.shape[:-1]
        if biases[0].dim() > 2:
            batch = torch.broadcast_shapes(batch, biases[0].shape[1:-1])
            biases = tuple([_rows(bias, batch) for bias in biases])
        rows = x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1])
        phi = b.options[0].activation
        chain = Chain(self.scale, self.shift, b.weights, b.blocks, biases, phi, b.shape)
        z, ladj = residual_chain(rows, chain)

        return z.reshape(*batch, x.shape[-1]), ladj.reshape(batch) + constant

    def _call(self, x: Tensor) -> Tensor:
        wide = self._wide(x)
        if wide is not None:
            return wide._call(x.double()).to(x.dtype)

        return self.call_and_ladj(x)[0]


def _rows(bias: Tensor, batch: torch.Size) -> Tensor:
    """With a context of shape (T, *, H), a row for each point: (T, N, H)."""
    T, *context, H = bias.shape
    missing = len(batch) - len(context)

    return bias.view(T, *(1,) * missing, *context, H).expand(T, *batch, H).flatten(1, -2)
