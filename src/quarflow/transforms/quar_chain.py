r"""All the steps of a QuAR flow, forward in one go."""

from __future__ import annotations

from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from quarflow.nn.branch import BoundBranches
from quarflow.nn.chain import Chain, residual_chain
from quarflow.transforms.base import Transform
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine
from quarflow.transforms.quar import QuARStep

__all__ = ["QuARChain"]


class QuARChain(Composed):
    r"""(First,) affine, QuAR step, affine, ..., affine: the same map composed, only faster.

    Forward it is one fused function of stacked parameters (:mod:`quarflow.nn.chain`); backward it
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
        Transform.__init__(self)
        self.first = first
        self.branches, self.shift, self.log_scale = branches, shift, log_scale
        self.scale = log_scale.exp()
        self.exact = True

    @cached_property
    def transforms(self) -> list[Transform]:  # type: ignore[override]
        """The steps, first to last."""
        parts = zip(self.shift, self.log_scale, self.scale, strict=True)
        affines = [Affine(*part) for part in parts]
        chain: list[Transform] = [] if self.first is None else [self.first]
        chain.append(affines[0])
        for branch, affine in zip(self.branches, affines[1:], strict=True):
            chain += [QuARStep(branch), affine]

        return chain

    def to(self, dtype: torch.dtype) -> Self:
        """The same map in another type."""
        self.transforms  # noqa: B018 - each step decides what its solver needs in that type

        return super().to(dtype)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All the steps forward."""
        b, before = self.branches, x.new_zeros(())
        if self.first is not None:
            x, before = self.first.call_and_ladj(x)
        batch = torch.broadcast_shapes(x.shape[:-1], b.biases[0].shape[1:-1])
        rows = x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1])
        biases = tuple(_rows(bias, batch) for bias in b.biases)
        chain = Chain(self.scale, self.shift, b.weights, b.blocks, biases, b.activation, b.reverse)
        z, ladj = residual_chain(rows, chain)

        return (
            z.reshape(*batch, x.shape[-1]),
            ladj.reshape(batch) + (before + self.log_scale.sum()),
        )

    def _call(self, x: Tensor) -> Tensor:
        wide = self._wide(x)
        if wide is not None:
            return wide._call(x.double()).to(x.dtype)

        return self.call_and_ladj(x)[0]


def _rows(bias: Tensor, batch: torch.Size) -> Tensor:
    """(T, H) as it is; with a context of shape (T, *, H), a row for each point: (T, N, H)."""
    if bias.dim() == 2:
        return bias
    T, *context, H = bias.shape
    missing = len(batch) - len(context)

    return bias.view(T, *(1,) * missing, *context, H).expand(T, *batch, H).flatten(1, -2)
