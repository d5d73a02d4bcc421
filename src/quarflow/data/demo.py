"""The built-in data set: MAGIC Gamma Telescope."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

__all__ = ["CITATION", "MagicGamma", "load_magic", "magic_path"]

CITATION = (
    "Bock, R. (2004). MAGIC Gamma Telescope [data set]. UCI Machine Learning Repository. "
    "https://doi.org/10.24432/C52C8B. Licensed under CC BY 4.0. Changed here: each column "
    "standardised (as in ADBench), rounded to float32."
)


@dataclass(frozen=True)
class MagicGamma:
    """19,020 simulated telescope events: images of gamma rays, and of hadrons taken for them.

    Attributes:
        X: float64 (19020, 10), each column at mean 0 and standard deviation 1 over all rows (the
            original is in millimetres, degrees and logarithms), rounded to float32.
        names: The 10 columns.
        hadron: bool (19020,).
        citation: Source and licence.
    """

    X: np.ndarray
    names: list[str]
    hadron: np.ndarray
    citation: str = CITATION


def magic_path() -> Path:
    """The Parquet file inside the package: ten numeric columns and ``class`` (gamma or hadron)."""
    return Path(str(files("quarflow.data").joinpath("magic_gamma.parquet")))


def load_magic() -> MagicGamma:
    """The MAGIC Gamma Telescope data (Bock et al. 2004, UCI, CC BY 4.0), gammas and hadrons.

    Example:
        >>> magic = load_magic()
        >>> magic.X.shape, int(magic.hadron.sum()), magic.names[:3]
        ((19020, 10), 6688, ['fLength', 'fWidth', 'fSize'])
    """
    import polars as pl

    frame = pl.read_parquet(magic_path())
    X = frame.drop("class").cast(pl.Float64)
    return MagicGamma(
        X=X.to_numpy(order="c", writable=True),
        names=X.columns,
        hadron=(frame["class"] == "hadron").to_numpy(),
    )
