r"""Products with block-triangular matrices that leave most of the zeros out.

A triangular matrix of C x C blocks is cut into a few panels of rows; each is multiplied up to
its last block that is not zero. Four panels leave out three quarters of the zeros, and each
product is still one large dense one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.modes import plain

__all__ = ["FeatureMajor", "Triangular"]

PANELS = 4


@dataclass(frozen=True)
class Triangular:
    r"""Which blocks of a (C k_out, C k_in) matrix are not zero.

    Attributes:
        channels: Number C of blocks.
        reverse: Whether the matrix is upper triangular.
        parts: Number of panels.

    Example:
        >>> W = torch.ones(4, 4).tril()
        >>> torch.equal(Triangular(4, False).linear(torch.eye(4), W, torch.zeros(4)), W.mT)
        True
    """

    channels: int
    reverse: bool
    parts: int = PANELS

    def _panels(self, rows: int, columns: int, upper: bool) -> list[tuple[slice, slice]]:
        """Rows of each panel, and the columns up to, or from, its diagonal."""
        C, parts = self.channels, min(self.parts, self.channels)
        cuts = [i * C // parts for i in range(parts + 1)]
        k_out, k_in = rows // C, columns // C

        return [
            (
                slice(a * k_out, b * k_out),
                slice(a * k_in, columns) if upper else slice(0, b * k_in),
            )
            for a, b in pairwise(cuts)
        ]

    def linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """h W^T + b."""
        if self.channels == 1:
            return fn.linear(h, weight, bias)
        parts = [
            fn.linear(h[:, c], weight[r, c], bias[r])
            for r, c in self._panels(weight.shape[0], weight.shape[1], self.reverse)
        ]

        return torch.cat(parts, 1)

    def input_gradient(self, g: Tensor, weight: Tensor) -> Tensor:
        """g W."""
        if self.channels == 1:
            return g @ weight
        # By columns of W: those of a channel are read by it and by later ones.
        panels = self._panels(weight.shape[1], weight.shape[0], not self.reverse)

        return torch.cat([g[:, r] @ weight[r, c] for c, r in panels], 1)

    def weight_gradient(self, g: Tensor, h: Tensor) -> list[Tensor]:
        """g^T h, panel by panel."""
        if self.channels == 1:
            return [g.mT @ h]

        return [
            g[:, r].mT @ h[:, c] for r, c in self._panels(g.shape[1], h.shape[1], self.reverse)
        ]

    def assemble(self, panels: list[Tensor], columns: int) -> Tensor:
        """The whole gradient of the weight from its panels."""
        if self.channels == 1:
            return panels[0]
        missing = [columns - panel.shape[1] for panel in panels]
        sides = [(m, 0) if self.reverse else (0, m) for m in missing]

        return torch.cat([fn.pad(p, s) for p, s in zip(panels, sides, strict=True)])


@dataclass(frozen=True)
class FeatureMajor(Triangular):
    r"""The same products with tensors of shape (units, rows).

    Example:
        >>> W, h = torch.ones(4, 4).tril(), torch.eye(4)
        >>> torch.equal(FeatureMajor(4, False).product(W, h, torch.zeros(4, 1)), W)
        True
    """

    def product(self, weight: Tensor, h: Tensor, bias: Tensor) -> Tensor:
        """W h + b."""
        if self.parts == 1:
            return torch.addmm(bias, weight, h)
        panels = self._panels(weight.shape[0], weight.shape[1], self.reverse)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or plain():
            return torch.cat([torch.addmm(bias[r], weight[r, c], h[c]) for r, c in panels])
        z = h.new_empty(weight.shape[0], h.shape[1])
        for r, c in panels:
            torch.addmm(bias[r], weight[r, c], h[c], out=z[r])

        return z

    def transposed(self, weight: Tensor, g: Tensor) -> Tensor:
        """W^T g."""
        if self.parts == 1:
            return weight.mT @ g
        panels = self._panels(weight.shape[1], weight.shape[0], not self.reverse)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or plain():
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

        return self.assemble([g[r] @ h[c].mT for r, c in panels], h.shape[0])
