r"""New data, of tables and of images, which know how to write themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quarflow.data.columns import Columns
from quarflow.data.decode import decode
from quarflow.data.table_writer import TableWriter
from quarflow.density.base import Place
from quarflow.files import write_array
from quarflow.report.image_grid import save_grid
from quarflow.report.words import duration

__all__ = ["ImageSamples", "TableSamples"]

CHUNK = 65_536


class TableSamples:
    """Rows that are drawn while they are written, so that there may be more than fit in memory.

    Arguments:
        sample: Draws rows (n, D) for n and a seed.
        columns: The fitted columns.
        number: How many rows.
        seed: Of all the rows; the first part is what ``sample(n, seed)`` gives.
    """

    def __init__(
        self,
        sample: Callable[[int, int], NDArray[np.float64]],
        columns: Columns,
        number: int,
        seed: int,
    ) -> None:
        self.sample, self.columns, self.number, self.seed = sample, columns, number, seed

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        more = -(-self.number // CHUNK) - 1
        seeds = [self.seed, *np.random.SeedSequence(self.seed).generate_state(more).tolist()]
        for part, seed in enumerate(seeds):
            yield self.sample(min(CHUNK, self.number - part * CHUNK), seed)

    def write(self, path: Place) -> str:
        """Write them as .csv, .parquet or .npy, whole or not at all; tell how long it took.

        Raises:
            ValueError: for a .npy of columns that are no numbers.
        """
        path, begun = Path(path), time.perf_counter()
        other = [c.name for c in self.columns.columns if c.kind not in ("number", "periodic")]
        if path.suffix.lower() == ".npy" and other:
            raise ValueError(
                f"Column {other[0]!r} holds no numbers, which have no place in a .npy file; write "
                "a .csv or .parquet."
            )
        if path.suffix.lower() == ".npy":
            write_array(path, np.concatenate(list(self)))
        else:
            with TableWriter(path) as writer:
                for rows in self:
                    writer.write(decode(rows, self.columns))
        seconds = time.perf_counter() - begun

        return f"{self.number:,} samples in {duration(seconds)}, written to {path}."


class ImageSamples:
    """Images that were drawn, and what that took.

    Arguments:
        images: uint8, shape (N, C, H, W).
        evaluations: Of each step's branch for each image, (steps, N).
        seconds: What drawing them took.
        levels: Grey levels.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        evaluations: NDArray[np.int64],
        seconds: float,
        levels: int,
    ) -> None:
        self.images, self.evaluations = images, evaluations
        self.seconds, self.levels = seconds, levels

    def write(self, path: Place) -> str:
        """Write a grid as .png, or an array (N, C, H, W) as .npy; tell what drawing took."""
        path = Path(path)
        if path.suffix.lower() == ".npy":
            write_array(path, self.images)
        else:
            save_grid(self.images, path, self.levels)

        return (
            f"{len(self.images):,} images in {duration(self.seconds)}, with "
            f"{np.median(self.evaluations):.0f} evaluations per step in the median and "
            f"{int(self.evaluations.max())} at most; written to {path}."
        )
