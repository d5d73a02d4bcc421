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
from quarflow.density.patterns import draw_patterns, pack
from quarflow.training.identity import column_digests, digest
from quarflow.transforms import dequantise

__all__ = ["FIRST", "ImageRows", "PatternRows", "TableRows"]

FIRST = 256  # images for the data-dependent initialisation


class TableRows:
    """Some rows of a table in data units, with noise on the discrete columns.

    Arguments:
        rows, context: The whole table, (n, D), and its context, (n, C) or None.
        columns: The fitted preprocessing, which knows the discrete columns.
        index: Which rows.
        context_names: Of the context's columns.
    """

    def __init__(
        self,
        rows: NDArray[np.float64],
        context: NDArray[np.float64] | None,
        columns: Columns,
        index: NDArray[np.int64],
        context_names: Sequence[str] = (),
    ) -> None:
        self.x = torch.from_numpy(rows[index])
        self.c = None if context is None else torch.from_numpy(context[index])
        self.columns, self.context_names = columns, context_names
        self.cells = columns.cells()

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

        return found


class PatternRows(TableRows):
    """Some rows of a table with holes or categories, and what is asked of each, anew every time.

    A batch is rows (n, D), NaN where nothing is there, and what :func:`pack` makes of the masks
    and the context.

    Arguments:
        rows, context, columns, index, context_names: As of :class:`TableRows`.
        whole: The part of the rows that is modelled whole; the patterns of the others vary.
    """

    def __init__(
        self,
        rows: NDArray[np.float64],
        context: NDArray[np.float64] | None,
        columns: Columns,
        index: NDArray[np.int64],
        context_names: Sequence[str] = (),
        whole: float = 1.0,
    ) -> None:
        super().__init__(rows, context, columns, index, context_names)
        self.whole, self.parts = whole, columns.parts()
        self.x = self.parts.tidy(self.x)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (n, D) in data units, and masks and context, (n, 2 D + C), float64."""
        x = self.x[index]
        there = ~x.isnan()
        given, modelled = torch.zeros_like(there), there
        if self.whole < 1:
            blocks = [v.columns for v in self.parts.discrete if len(v.columns) > 1]
            given, modelled = draw_patterns(there, generator, self.whole, blocks)
        noisy = self.columns.dequantise(x, generator, self.cells)
        # what is given is exact, and single values that a number often holds have no noise
        exact = given.clone()
        exact[:, self.parts.numbers] |= self.parts.split(x)[0].isnan()

        return torch.where(exact, x, noisy), pack(given, modelled, self._context(index))

    def _context(self, index: Tensor) -> Tensor | None:
        return None if self.c is None else self.c[index]


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
