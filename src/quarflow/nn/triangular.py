r"""Block-triangular layers, with taps or without, and their effective weights.

Layer inputs and outputs are grouped by dimension: unit ``j`` of dimension ``i`` stands at
``i * k + j``. A unit of dimension ``i`` may depend on units of dimensions up to ``i`` (or from
``i`` on, when the order is reversed), so the weight is block triangular with D x D blocks of
shape k_out x k_in. Only the blocks that exist are parameters. Of a causal convolution, whose
dimensions are channels, this is the centre tap; the taps before it join all channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quarflow.nn.draws import normal_, uniform_
from quarflow.ops.packing import Packing, assemble, assemble_blocks
from quarflow.ops.taps import causal_taps

__all__ = ["TriangularLayer"]


class TriangularLayer(nn.Module):
    r"""A stack of block-triangular layers of equal shape, one per residual step.

    Stacking lets the effective weights and norms of all the steps of a flow be computed at
    once. Masked-out weights do not exist, so they cost no gradient and no optimiser state.

    Reference:
        | Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), appendix C

    Arguments:
        features: Number D of dimensions; of images, of channels.
        units_in, units_out: Units per dimension of the input and output.
        reverse: For each step of the stack, whether its order is reversed.
        context: Number of context variables, connected to every unit.
        kernel_size: Odd, for causal convolutions; None for layers of vectors.

    Example:
        >>> TriangularLayer(3, 1, 2, reverse=[False, True]).weight().shape
        torch.Size([2, 6, 3])
        >>> TriangularLayer(3, 1, 2, reverse=[False], kernel_size=3).weight().shape  # 5 taps
        torch.Size([1, 6, 5, 3])
    """

    def __init__(
        self,
        features: int,
        units_in: int,
        units_out: int,
        reverse: Sequence[bool],
        context: int = 0,
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        self.packing = Packing(features, (units_in, units_out), tuple(reverse))
        self.features, self.units_in, self.units_out = features, units_in, units_out
        self.reverse, T = tuple(reverse), len(reverse)
        pairs, outputs = features * (features - 1) // 2, features * units_out
        shape: tuple[int, ...] = (pairs * units_out * units_in,)
        self.taps = None
        if kernel_size is not None:
            self.taps = tuple(causal_taps(kernel_size, r) for r in reverse)
            before = len(causal_taps(kernel_size)) - 1
            self.off_center = nn.Parameter(torch.empty(T, outputs, before, features * units_in))
            shape = (pairs, units_out, units_in)

        self.off_diagonal = nn.Parameter(torch.empty(T, *shape))
        self.diagonal = nn.Parameter(torch.empty(T, features, units_out, units_in))
        self.bias = nn.Parameter(torch.zeros(T, outputs))
        self.context = nn.Parameter(torch.empty(T, outputs, context)) if context else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, off_diagonal_gain: float = 0.3) -> None:
        r"""Diagonal blocks of norm about 1, small off-diagonal weights.

        With ``norm="dimension"`` the output scale is set by the diagonal blocks alone: were the
        off-diagonal weights of the usual size, that scale would blow them up and training
        would diverge.
        """
        k_out, k_in = self.units_out, self.units_in
        inputs = self.features * k_in * (1 if self.taps is None else len(self.taps[0]))
        # Largest singular value of a Gaussian matrix: about sqrt(k_in) + sqrt(k_out).
        normal_(self.diagonal, std=1 / (k_in**0.5 + k_out**0.5) if k_in * k_out > 1 else 1.0)
        if k_in == 1 or k_out == 1:
            size = torch.linalg.vector_norm(self.diagonal, dim=(-2, -1), keepdim=True)
            self.diagonal.div_(size.clamp_min(1e-3))
        if self.taps is not None:
            normal_(self.off_center, std=off_diagonal_gain / inputs**0.5)
        normal_(self.off_diagonal, std=off_diagonal_gain / inputs**0.5)
        uniform_(self.bias).mul_(inputs**-0.5)
        if self.context is not None:
            normal_(self.context, std=self.context.shape[-1] ** -0.5)

    def weight(self) -> Tensor:
        """Effective weights, shape (T, D k_out, D k_in), or (T, D k_out, taps, D k_in)."""
        if self.taps is None:
            return assemble([self.off_diagonal], [self.diagonal], self.packing)[0]
        center = assemble_blocks(self.off_diagonal, self.diagonal, self.packing)

        return torch.cat((self.off_center, center[:, :, None]), 2)

    def biases(self, c: Tensor | None) -> Tensor:
        """Biases with the context bound, shape (T, out), or (T, *, out) for c of shape (*, C)."""
        if self.context is None or c is None:
            return self.bias
        T, outputs = self.bias.shape
        bias = self.bias.reshape(T, *(1,) * (c.dim() - 1), outputs)

        return bias + torch.stack([c @ w.mT for w in self.context])

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        D, T = self.features, len(self.reverse)
        taps = "" if self.taps is None else f", taps={len(self.taps[0])}"
        context = "" if self.context is None else f", context={self.context.shape[-1]}"

        return f"{D}x{self.units_in} -> {D}x{self.units_out}{taps}, steps={T}{context}"
