r"""Causal convolutions that carry (value, diagonal), and how their taps reach over an image.

Images are *rows of pixels* here, (N, H, W, C): all channels of a pixel stand together. Pixels
come in raster order, and within a pixel the channels in theirs; a unit of channel ``c`` at pixel
``p`` may depend on every unit of the pixels before ``p``, and on those of channels up to ``c``
at ``p`` itself. Reversed, "before" is "after".

Of a 3 x 3 kernel 5 taps are left, and only these are ever touched: their inputs are gathered
side by side, so that a convolution is one matrix product per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.derived import Derived
from quarflow.nn.draws import normal_, uniform_

__all__ = ["CausalConv2d", "Taps", "causal_taps", "gather_taps", "opposite", "sum_taps"]

Taps = tuple[tuple[int, int], ...]  # offsets (row, column) of what is read, the centre last


def causal_taps(kernel_size: int, reverse: bool = False) -> Taps:
    """Offsets of the taps of a causal kernel, the centre last.

    Raises:
        ValueError: if the kernel has no centre.

    Example:
        >>> causal_taps(3)
        ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0))
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}.")
    r = kernel_size // 2
    before = [(i, j) for i in range(-r, 1) for j in range(-r, r + 1) if (i, j) < (0, 0)]

    return (*opposite(before), (0, 0)) if reverse else (*before, (0, 0))


def opposite(taps: Sequence[tuple[int, int]]) -> Taps:
    """The taps mirrored at the centre: those of the transposed convolution."""
    return tuple((-i, -j) for i, j in taps)


def _padding(taps: Taps) -> tuple[int, int, int, int]:
    """How far the taps reach: up, down, left, right."""
    rows, columns = zip(*taps, strict=True)

    return max(0, -min(rows)), max(0, *rows), max(0, -min(columns)), max(0, *columns)


def gather_taps(x: Tensor, taps: Taps) -> Tensor:
    """What each pixel reads through the taps, zero beyond the image.

    Arguments:
        x: Shape (N, H, W, C).
        taps: Offsets.

    Returns:
        Shape (N, H, W, taps * C), tap by tap.

    Example:
        >>> gather_taps(torch.tensor([1.0, 2.0]).view(1, 1, 2, 1), ((0, -1), (0, 0)))[0, 0]
        tensor([[0., 1.],
                [1., 2.]])
    """
    if taps == ((0, 0),):
        return x
    H, W = x.shape[1:3]
    up, down, left, right = _padding(taps)
    padded = fn.pad(x, (0, 0, left, right, up, down))

    return torch.cat(
        [padded[:, up + i : up + i + H, left + j : left + j + W] for i, j in taps], -1
    )


def sum_taps(y: Tensor, taps: Taps) -> Tensor:
    """Sum, over the taps, of what stands at their offset: a convolution's last step.

    With the opposite taps it is the transpose of :func:`gather_taps`.

    Arguments:
        y: Shape (N, H, W, taps * C), tap by tap.
        taps: Offsets.

    Returns:
        Shape (N, H, W, C).

    Example:
        >>> sum_taps(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2), ((0, -1), (0, 0)))
        tensor([[[[2.],
                  [5.]]]])
    """
    if taps == ((0, 0),):
        return y
    H, W = y.shape[1:3]
    C = y.shape[-1] // len(taps)
    up, down, left, right = _padding(taps)
    padded = fn.pad(y, (0, 0, left, right, up, down))
    parts = [
        padded[:, up + i : up + i + H, left + j : left + j + W, t * C : (t + 1) * C]
        for t, (i, j) in enumerate(taps)
    ]
    total = parts[-1]
    for part in parts[:-1]:
        total = total + part

    return total


class CausalConv2d(Derived):
    r"""A stack of causal convolutions of equal shape, one per residual step.

    The weights of taps before the centre join all channels; the centre tap is block triangular
    over the channels, with blocks of units_out x units_in. Only weights that exist are
    parameters: masked-out ones cost no gradient and no optimiser state.

    Reference:
        | Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), appendix C

    Arguments:
        channels: Number C of channels.
        units_in, units_out: Units per channel of the input and output.
        reverse: For each step of the stack, whether its order is reversed.
        kernel_size: Odd.

    Example:
        >>> layer = CausalConv2d(3, 1, 2, reverse=[False, True])
        >>> layer.weight().shape  # 5 taps, the centre last
        torch.Size([2, 6, 5, 3])
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        channels: int,
        units_in: int,
        units_out: int,
        reverse: Sequence[bool],
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        self.channels, self.units_in, self.units_out = channels, units_in, units_out
        self.reverse = tuple(reverse)
        self.taps = tuple(causal_taps(kernel_size, r) for r in reverse)
        C, T = channels, len(self.reverse)
        before = len(causal_taps(kernel_size)) - 1

        self.off_center = nn.Parameter(torch.empty(T, C * units_out, before, C * units_in))
        self.off_diagonal = nn.Parameter(torch.empty(T, C * (C - 1) // 2, units_out, units_in))
        self.diagonal = nn.Parameter(torch.empty(T, C, units_out, units_in))
        self.bias = nn.Parameter(torch.zeros(T, C * units_out))
        self.register_derived()
        self.reset_parameters()

    def derive(self) -> dict[str, Tensor]:
        """Where the weights below (or above) the diagonal blocks stand."""
        row, column = torch.tril_indices(self.channels, self.channels, -1)
        flip = torch.tensor(self.reverse)[:, None]

        return {
            "rows": torch.where(flip, column, row),
            "columns": torch.where(flip, row, column),
        }

    @torch.no_grad()
    def reset_parameters(self, off_diagonal_gain: float = 0.3) -> None:
        """Diagonal blocks of norm about 1, all other weights small, as in the dense layers."""
        k_out, k_in, C = self.units_out, self.units_in, self.channels
        normal_(self.diagonal, std=1 / (k_in**0.5 + k_out**0.5) if k_in * k_out > 1 else 1.0)
        if k_in == 1 or k_out == 1:
            size = torch.linalg.vector_norm(self.diagonal, dim=(-2, -1), keepdim=True)
            self.diagonal.div_(size.clamp_min(1e-3))
        inputs = C * k_in * (self.off_center.shape[2] + 1)
        for weights in (self.off_center, self.off_diagonal):
            normal_(weights, std=off_diagonal_gain / inputs**0.5)
        uniform_(self.bias).mul_(inputs**-0.5)

    def center(self) -> Tensor:
        """Centre taps as dense matrices, shape (T, C * units_out, C * units_in)."""
        C, T = self.channels, len(self.reverse)
        step = torch.arange(T, device=self.rows.device)[:, None]
        own = torch.arange(C, device=self.rows.device).expand(T, C)
        blocks = self.diagonal.new_zeros(T, C, C, self.units_out, self.units_in)
        blocks = blocks.index_put((step, own, own), self.diagonal)
        blocks = blocks.index_put((step, self.rows, self.columns), self.off_diagonal)

        return blocks.transpose(2, 3).reshape(T, C * self.units_out, C * self.units_in)

    def weight(self) -> Tensor:
        """Effective weights, shape (T, C * units_out, taps, C * units_in), the centre last."""
        return torch.cat((self.off_center, self.center()[:, :, None]), 2)

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        C, taps = self.channels, self.off_center.shape[2] + 1

        return (
            f"{C}x{self.units_in} -> {C}x{self.units_out}, taps={taps}, steps={len(self.reverse)}"
        )
