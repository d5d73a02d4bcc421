r"""Which density is for which data, and which a folder holds: decided here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from quarflow.data.image_files import PICTURES
from quarflow.data.image_sets import SETS
from quarflow.data.images import is_images
from quarflow.data.tables import ENDINGS
from quarflow.density.image import ImageDensity
from quarflow.density.table import QuARDensity
from quarflow.store.folder import holds_images, is_model

__all__ = ["KINDS", "density_for", "open_density"]

KINDS = (QuARDensity, ImageDensity)


def open_density(folder: str | os.PathLike[str]) -> QuARDensity | ImageDensity:
    """The fitted density that a folder holds, of whatever data; nothing in it is executed.

    Raises:
        StoreError: if the folder does not hold a whole, valid model of one.
    """
    return (ImageDensity if holds_images(folder) else QuARDensity).load(folder)


def density_for(data: str | os.PathLike[str]) -> type[QuARDensity | ImageDensity]:
    """The density for what a file or folder holds, or for a set of images of that name.

    Raises:
        ValueError: for a folder that holds a model, or tables but no pictures.

    Example:
        >>> density_for("digits").of, density_for("data.csv").of
        ('images', 'tables')
    """
    path = Path(data)
    if path.is_dir():
        _check_pictures(path)
    images = is_images(path) or (not path.exists() and str(path) in SETS)

    return ImageDensity if images else QuARDensity


def _check_pictures(folder: Path) -> None:
    """Refuse a folder that holds a model, or tables but no pictures, with the way out."""
    if is_model(folder):
        raise ValueError(f"{folder} is the folder of a model, where data are wanted.")
    endings = {path.suffix.lower(): path for path in sorted(folder.iterdir(), reverse=True)}
    tables = [path for ending, path in endings.items() if ending in ENDINGS]
    if tables and not endings.keys() & set(PICTURES):
        raise ValueError(
            f"{folder} is a folder, not a table; give one file of it, such as {min(tables)}."
        )
