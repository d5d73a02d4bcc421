"""Images for image flows: from the user's files, or one of the sets that recipes know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quarflow.data.image_files import (
    PICTURES,
    ImageError,
    Layout,
    array_images,
    read_array_file,
    read_cifar_binary,
    read_folder,
    read_idx,
)

__all__ = ["ImageError", "Images", "is_images", "read_images"]


@dataclass(frozen=True)
class Images:
    """Images of one size, in whole numbers.

    Attributes:
        images: uint8, shape (N, C, H, W), values from 0 to ``levels - 1``.
        labels: Shape (N,), or None.
        levels: Number of grey levels of a channel, 2 to 256.
        name: What they are called.
        note: Sentences about what was done to them; empty if nothing.

    Raises:
        ImageError: if the parts do not suit each other.

    Example:
        >>> Images(np.zeros((2, 1, 8, 8), np.uint8), None, 17, "two").shape
        (1, 8, 8)
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    levels: int
    name: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ImageError(
                f"{self.name}: images must be uint8 of shape (N, C, H, W), not "
                f"{self.images.dtype} of shape {self.images.shape}."
            )
        if not 2 <= self.levels <= 256:
            raise ImageError(f"levels must be between 2 and 256, not {self.levels}.")
        if self.images.size and int(self.images.max()) >= self.levels:
            raise ImageError(
                f"{self.name} has values up to {self.images.max()}, but levels is {self.levels}: "
                f"values go from 0 to {self.levels - 1}."
            )
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ImageError(
                f"{self.name}: {len(self.images)} images and {len(self.labels)} labels."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, C, H, W = self.images.shape

        return C, H, W

    def __len__(self) -> int:
        return len(self.images)

    def pick(self, index: NDArray[Any] | slice) -> Images:
        """Some of the images."""
        labels = None if self.labels is None else self.labels[index]

        return replace(self, images=self.images[index], labels=labels)


def is_images(path: Path) -> bool:
    """Whether a path is a folder, or a file whose content can only be images, not a table."""
    name = path.name.lower()
    if path.is_dir():
        return True
    if not path.is_file():
        return False
    if name.removesuffix(".gz").endswith(("-ubyte", ".idx", ".bin")):
        return True
    if name.endswith(".npy"):
        return _dimensions(path) in (3, 4)
    if name.endswith(".npz"):
        return _archive_holds_images(path)

    return False


def _dimensions(path: Path) -> int:
    try:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except (ValueError, EOFError, OSError):
        return 0  # the reader of tables says what is wrong


def _archive_holds_images(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if {"webp", "offsets", "exact"} <= names:
                return True
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    if len(read(file)[0]) in (3, 4):
                        return True
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile):
        return False

    return False


def read_images(
    path: str | Path,
    *,
    levels: int | None = None,
    layout: Layout = "auto",
    keep_stand_ins: bool = False,
) -> Images:
    """Read images from a file or a folder.

    Arguments:
        path: A folder of equally sized PNG, JPEG or WebP files; .npy or .npz; an idx file, packed
            by gzip or not; a .bin batch of CIFAR-10.
        levels: Number of grey levels; 256 by default.
        layout: Of a four-dimensional array: ``nhwc``, ``nchw`` or ``auto``.
        keep_stand_ins: Whether to keep images that the file itself says are not exact.

    Raises:
        ImageError: if there are no images, or none that can be read.
        ValueError: if there is nothing at the path.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.")
    name = path.name.lower().removesuffix(".gz")
    exact = labels = None
    if path.is_dir():
        images, labels = read_folder(path)
    elif name.endswith((".npy", ".npz")):
        images, labels, exact = read_array_file(path, layout)
    elif name.endswith(".bin"):
        images, labels = read_cifar_binary(path)
    elif name.endswith(("-ubyte", ".idx")):
        images = array_images(read_idx(path), layout, str(path))
    else:
        raise ImageError(
            f"{path}: images come as a folder of {', '.join(PICTURES)} files, "
            "or as .npy, .npz, an idx file (-ubyte, packed by gzip or not) or .bin (CIFAR-10)."
        )
    found = Images(images, labels, levels or 256, path.name)
    found = without_stand_ins(found, exact, keep_stand_ins)
    most = int(found.images.max())
    if levels is None and most < 128:
        few = f"The largest value is {most}; if there are only {most + 1} levels, say so (levels)."
        found = replace(found, note=f"{found.note} {few}".strip())

    return found


def without_stand_ins(images: Images, exact: NDArray[np.bool_] | None, keep: bool) -> Images:
    """Images without those that only stand in for a lost original; the note says how many.

    Arguments:
        images: All of them.
        exact: Shape (N,): which are the original; None if all are.
        keep: Whether to keep the others, and only to say so.
    """
    if exact is None or exact.all():
        return images
    count = int((~exact).sum())
    those = f"{count} of {len(images):,} images that are stand-ins for lost originals were"
    if keep:
        return replace(images, note=f"{images.note} {those} kept.".strip())

    return replace(images.pick(exact), note=f"{images.note} {those} dropped.".strip())
