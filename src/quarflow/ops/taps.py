r"""How the taps of causal convolutions reach over an image.

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
from torch import Tensor

__all__ = ["Taps", "causal_taps", "gather_taps", "opposite", "sum_taps"]

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
    return tuple([(-i, -j) for i, j in taps])


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
