r"""Rows of the training loop, made anew in each batch: of tables, and of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarflow.data.columns import Columns
from quarflow.data.images import Images
from quarflow.training.identity import column_digests, digest
from quarflow.transforms import dequantise

__all__ = ["FIRST", "ImageRows", "TableRows"]

FIRST = 256  # images for the data-dependent initialisation


class TableRows:
    """Some rows of a table in data units, with noise on the discrete columns.

    Arguments:
        rows, context: The whole table, (n, D), and its context, (n, C) or None.
        columns: The fitted preprocessing, which knows the discrete columns.
        index: Which rows.
        context_names: Of the context's columns.
        weights: Of the rows of the whole table, (n), None if all count the same.

    Attributes:
        weights: Of these rows, with a mean of 1; None if all count the same.
    """

    def __init__(
        self,
        rows: NDArray[np.float64],
        context: NDArray[np.float64] | None,
        columns: Columns,
        index: NDArray[np.int64],
        context_names: Sequence[str] = (),
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.x = torch.from_numpy(rows[index])
        self.c = None if context is None else torch.from_numpy(context[index])
        self.columns, self.context_names = columns, context_names
        self.cells = columns.cells()
        self.weights = None
        if weights is not None:
            self.weights = torch.from_numpy(weights[index] / weights[index].mean())

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Rows (n, D) and context (n, C) in data units, float64."""
        x = self.columns.dequantise(self.x[index], generator, self.cells)

        return x, None if self.c is None else self.c[index]

    def identity(self) -> dict[str, str]:
        """A digest of every value of each column, in the order of the rows."""
        found = column_digests(self.x.numpy(), [f"column {n!r}" for n in self.columns.names])
        if self.c is not None:
            names = [f"context column {name!r}" for name in self.context_names]
            found |= column_digests(self.c.numpy(), names)
        if self.weights is not None:
            found["weights"] = digest(self.weights.numpy())

        return found


class ImageRows:
    """Images as rows of the training loop: dequantised anew in each batch.

    Arguments:
        images: Whole grey levels.
        flip: Whether each image is mirrored left to right with probability 1/2.
        device: Where they are kept; batches are made there.

    Example:
        >>> rows = ImageRows(Images(np.zeros((5, 1, 4, 4), np.uint8), None, 17, "black"))
        >>> x, _ = rows.batch(torch.arange(2), torch.Generator().manual_seed(0))
        >>> x.shape, bool((x < 1 / 17).all())
        (torch.Size([2, 1, 4, 4]), True)
    """

    first = FIRST

    def __init__(
        self, images: Images, flip: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images.images)).to(device)
        self.levels, self.flip = images.levels, flip
        self.device = self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """Images in [0, 1), shape (n, C, H, W), and no context."""
        x = self.images[index]
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator, device=self.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)

        return dequantise(x, self.levels, generator), None

    def identity(self) -> dict[str, Any]:
        """What is asked of the images, and a digest of every pixel of each, in their order."""
        pixels = digest(self.images.cpu().numpy())

        return {"levels": self.levels, "flip": self.flip, "pixels": pixels}
