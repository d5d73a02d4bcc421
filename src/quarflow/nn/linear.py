r"""Block-triangular linear layers, and the effective weights they are applied with.

Layer inputs and outputs are grouped by dimension: unit ``j`` of dimension ``i`` stands at
``i * k + j``. A unit of dimension ``i`` may depend on units of dimensions up to ``i`` (or from
``i`` on, when the order is reversed), so the weight is block triangular with D x D blocks of
shape k_out x k_in. Only the blocks that exist are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quarflow.nn.derived import Derived
from quarflow.nn.draws import normal_, uniform_
from quarflow.nn.packing import Packing, assemble

__all__ = ["BlockTriangularLinear", "diagonal_product", "triangular_index"]


def triangular_index(features: int, units_in: int, units_out: int, reverse: bool) -> Tensor:
    r"""Flat positions, in the dense weight, of the off-diagonal then the diagonal blocks.

    Returns:
        Positions in a (D * k_out, D * k_in) matrix, row by row; the last D * k_out * k_in of
        them are the diagonal blocks in the order (D, k_out, k_in).

    Example:
        >>> triangular_index(2, 1, 1, reverse=False)  # [[1, -], [0, 2]]
        tensor([2, 0, 3])
    """
    rows = torch.arange(features).repeat_interleave(units_out)[:, None]
    columns = torch.arange(features).repeat_interleave(units_in)[None, :]
    strict = rows < columns if reverse else rows > columns
    width = features * units_in
    i, a, b = torch.meshgrid(
        torch.arange(features), torch.arange(units_out), torch.arange(units_in), indexing="ij"
    )
    diagonal = (i * units_out + a) * width + i * units_in + b

    return torch.cat((strict.flatten().nonzero().squeeze(-1), diagonal.flatten()))


def diagonal_product(tangent: Tensor, blocks: Tensor) -> Tensor:
    r"""Send tangents through the diagonal blocks only: D products of k_in x k_out.

    Arguments:
        tangent: Shape (*, D * k_in).
        blocks: Shape (D, k_out, k_in).

    Returns:
        Shape (*, D * k_out).

    Example:
        >>> diagonal_product(torch.ones(1, 4), torch.ones(2, 3, 2))
        tensor([[2., 2., 2., 2., 2., 2.]])
    """
    D, k_out, k_in = blocks.shape
    tangent = tangent.unflatten(-1, (D, k_in))  # (*, D, k_in)
    if k_out == 1:
        return (tangent * blocks.squeeze(1)).sum(-1)
    if k_in == 1:
        return (tangent * blocks.squeeze(2)).flatten(-2)

    batch = tangent.shape[:-2]
    by_dimension = tangent.reshape(-1, D, k_in).transpose(0, 1)  # (D, N, k_in)

    return torch.bmm(by_dimension, blocks.mT).transpose(0, 1).reshape(*batch, D * k_out)


class BlockTriangularLinear(Derived):
    r"""A stack of block-triangular layers of equal shape, one per residual step.

    Stacking lets the effective weights and norms of all the steps of a flow be computed at
    once. Masked-out weights do not exist, so they cost no gradient and no optimiser state.

    Arguments:
        features: Number D of dimensions.
        units_in, units_out: Units per dimension of the input and output.
        reverse: For each step of the stack, whether its order is reversed.
        context: Number of context variables, connected to every unit.

    Example:
        >>> layer = BlockTriangularLinear(3, 1, 2, reverse=[False, True])
        >>> layer.weight().shape
        torch.Size([2, 6, 3])
    """

    index: Tensor

    def __init__(
        self,
        features: int,
        units_in: int,
        units_out: int,
        reverse: Sequence[bool],
        context: int = 0,
    ) -> None:
        super().__init__()

        self.features, self.units_in, self.units_out = features, units_in, units_out
        self.reverse = tuple(reverse)
        steps = len(reverse)
        blocks = features * (features - 1) // 2

        self.off_diagonal = nn.Parameter(torch.empty(steps, blocks * units_out * units_in))
        self.diagonal = nn.Parameter(torch.empty(steps, features, units_out, units_in))
        self.bias = nn.Parameter(torch.zeros(steps, features * units_out))
        self.context = (
            nn.Parameter(torch.empty(steps, features * units_out, context)) if context else None
        )
        self.register_derived()
        self.reset_parameters()

    def derive(self) -> dict[str, Tensor]:
        """Where the weights stand in the dense matrices."""
        sizes = self.features, self.units_in, self.units_out

        return {"index": torch.stack([triangular_index(*sizes, r) for r in self.reverse])}

    @torch.no_grad()
    def reset_parameters(self, off_diagonal_gain: float = 0.3) -> None:
        r"""Diagonal blocks of norm about 1, small off-diagonal weights.

        With ``norm="dimension"`` the output scale is set by the diagonal blocks alone: were the
        off-diagonal weights of the usual size, that scale would blow them up and training
        would diverge.
        """
        k_out, k_in, D = self.units_out, self.units_in, self.features
        # Largest singular value of a Gaussian matrix: about sqrt(k_in) + sqrt(k_out).
        normal_(self.diagonal, std=1 / (k_in**0.5 + k_out**0.5) if k_in * k_out > 1 else 1.0)
        if k_in == 1 or k_out == 1:
            size = torch.linalg.vector_norm(self.diagonal, dim=(-2, -1), keepdim=True)
            self.diagonal.div_(size.clamp_min(1e-3))
        normal_(self.off_diagonal, std=off_diagonal_gain / (D * k_in) ** 0.5)
        uniform_(self.bias).mul_((D * k_in) ** -0.5)
        if self.context is not None:
            normal_(self.context, std=self.context.shape[-1] ** -0.5)

    @property
    def packing(self) -> Packing:
        """Where the weights stand in the dense matrices."""
        return Packing(self.index, self.features, self.units_in, self.units_out, self.reverse)

    def weight(self) -> Tensor:
        """Effective weights as dense matrices, shape (T, D * k_out, D * k_in)."""
        return assemble(self.off_diagonal, self.diagonal, self.packing)

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        D, steps = self.features, len(self.bias)
        context = "" if self.context is None else f", context={self.context.shape[-1]}"

        return f"{D}x{self.units_in} -> {D}x{self.units_out}, steps={steps}{context}"
