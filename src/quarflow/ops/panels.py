r"""Products with block-triangular matrices that leave most of the zeros out.

A triangular matrix of D x D blocks is cut into a few panels of rows; each is multiplied up to
its last block that is not zero. Four panels leave out three quarters of the zeros, and each
product is still one large dense one. Factors have shape (units, rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.modes import torch_only

__all__ = ["FeatureMajor"]


@dataclass(frozen=True)
class FeatureMajor:
    r"""Which blocks of a (D k_out, D k_in) matrix are not zero, and products with it.

    Attributes:
        features: Number D of blocks.
        reverse: Whether the matrix is upper triangular.
        parts: Number of panels; 1 for the whole matrix.
        joined: Whether results of panels are joined, rather than written in one place: for what
            may be mapped by ``torch.func``.

    Example:
        >>> W, h = torch.ones(4, 4).tril(), torch.eye(4)
        >>> torch.equal(FeatureMajor(4, False, 2).product(W, h, torch.zeros(4, 1)), W)
        True
    """

    features: int
    reverse: bool
    parts: int = 1
    joined: bool = False

    def product(self, weight: Tensor, h: Tensor, bias: Tensor | None) -> Tensor:
        """W h + b."""
        if bias is None:
            return weight @ h
        if self.parts == 1:
            return torch.addmm(bias, weight, h)
        panels = self._panels(weight.shape[0], weight.shape[1], self.reverse)
        if self._joins:
            return torch.cat([torch.addmm(bias[r], weight[r, c], h[c]) for r, c in panels])
        z = h.new_empty(weight.shape[0], h.shape[1])
        for r, c in panels:
            torch.addmm(bias[r], weight[r, c], h[c], out=z[r])

        return z

    def transposed(self, weight: Tensor, g: Tensor) -> Tensor:
        """W^T g."""
        if self.parts == 1:
            return weight.mT @ g
        # By columns of W: those of a dimension are read by it and by later ones.
        panels = self._panels(weight.shape[1], weight.shape[0], not self.reverse)
        if self._joins:
            return torch.cat([weight[r, c].mT @ g[r] for c, r in panels])
        out = g.new_empty(weight.shape[1], g.shape[1])
        for c, r in panels:
            torch.mm(weight[r, c].mT, g[r], out=out[c])

        return out

    def gradient(self, g: Tensor, h: Tensor) -> Tensor:
        """g h^T where W is not zero, and zeros (or anything) elsewhere."""
        if self.parts == 1:
            return g @ h.mT
        panels = self._panels(g.shape[0], h.shape[0], self.reverse)
        products = [g[r] @ h[c].mT for r, c in panels]
        missing = [len(h) - product.shape[1] for product in products]
        sides = [(m, 0) if self.reverse else (0, m) for m in missing]

        return torch.cat([fn.pad(p, s) for p, s in zip(products, sides, strict=True)])

    @property
    def _joins(self) -> bool:
        return (
            self.joined or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch_only()
        )

    def _panels(self, rows: int, columns: int, upper: bool) -> list[tuple[slice, slice]]:
        """Rows of each panel, and the columns up to, or from, its diagonal."""
        D, parts = self.features, min(self.parts, self.features)
        cuts = [i * D // parts for i in range(parts + 1)]
        k_out, k_in = rows // D, columns // D

        return [
            (
                slice(a * k_out, b * k_out),
                slice(a * k_in, columns) if upper else slice(0, b * k_in),
            )
            for a, b in pairwise(cuts)
        ]
