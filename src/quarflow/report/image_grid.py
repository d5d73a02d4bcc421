"""Samples of an image model as one picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quarflow.files import write_whole

__all__ = ["grid_array", "grid_png", "save_grid"]

SMALLEST = 480  # pixels across that a grid should have at least: small images are enlarged
GAP = 1


def grid_array(
    images: NDArray[np.uint8], levels: int = 256, columns: int | None = None
) -> NDArray[np.uint8]:
    """Images side by side, on white, grey levels spread over 0 to 255.

    Arguments:
        images: Shape (N, C, H, W), with 1, 3 or any other number of channels; of others the
            first is shown.
        levels: Grey levels; the last is shown white.
        columns: How many side by side; about the square root of N by default.

    Returns:
        Shape (height, width, 3).

    Example:
        >>> grid_array(np.zeros((6, 1, 8, 8), np.uint8), columns=3).shape
        (19, 28, 3)
    """
    N, C, H, W = images.shape
    columns = min(columns or math.ceil(math.sqrt(N)), N)
    rows = -(-N // columns)
    spread = np.rint(images.astype(np.float64) * (255 / (levels - 1))).astype(np.uint8)
    colour = spread if C == 3 else np.repeat(spread[:, :1], 3, axis=1)
    grid = np.full((rows * (H + GAP) + GAP, columns * (W + GAP) + GAP, 3), 255, np.uint8)
    for i, image in enumerate(colour.transpose(0, 2, 3, 1)):
        row, column = divmod(i, columns)
        top, left = row * (H + GAP) + GAP, column * (W + GAP) + GAP
        grid[top : top + H, left : left + W] = image

    return grid


def grid_png(
    images: NDArray[np.uint8], levels: int = 256, columns: int | None = None
) -> tuple[bytes, int]:
    """The grid as the bytes of a PNG, enlarged without smoothing, and its width in pixels.

    Arguments:
        images, levels, columns: As for ``grid_array``.
    """
    from PIL import Image

    grid = grid_array(images, levels, columns)
    factor = max(1, SMALLEST // grid.shape[1])
    large = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, format="png", optimize=True)

    return buffer.getvalue(), large.shape[1]


def save_grid(
    images: NDArray[np.uint8], path: Path, levels: int = 256, columns: int | None = None
) -> None:
    """Write the grid as a PNG; the file appears whole or not at all.

    Arguments:
        images, levels, columns: As for ``grid_array``.
        path: The file; its folder must exist.
    """
    write_whole(path, grid_png(images, levels, columns)[0])
