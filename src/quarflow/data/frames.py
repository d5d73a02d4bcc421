"""Frames made from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["frame_of"]


def frame_of(names: Sequence[str], values: np.ndarray) -> Any:
    """A polars frame of the first columns of values (N, D or more), by D names.

    Example:
        >>> frame_of(["u", "v"], np.eye(2)).to_dict(as_series=False)
        {'u': [1.0, 0.0], 'v': [0.0, 1.0]}
    """
    import polars as pl

    return pl.DataFrame({name: values[:, i] for i, name in enumerate(names)})
